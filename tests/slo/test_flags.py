"""Flags over a manifest, and instead of one."""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from sloserve.errors import BadInput
from sloserve.slo import EngineSpec, ModelSpec, ServiceSpec, parse_service
from sloserve.slo.flags import FLAGS, add_service_flags, with_flags

IN_THE_CLUSTER = {"lora", "token_secret", "cache", "rollout", "pod"}
"""Fields that are lists or concern Kubernetes alone."""


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_service_flags(parser)
    return parser.parse_args(words)


def service(*words: str, over: ServiceSpec | None = None) -> ServiceSpec:
    return with_flags(over, parsed(*words))


def test_a_model_alone_is_a_service_with_one_class() -> None:
    spec = service("--model", "builtin://tiny")
    assert spec.model.source == "builtin://tiny"
    assert [c.name for c in spec.classes] == ["default"]
    assert spec.default_class == "default"


def test_a_flag_overrides_its_field_and_nothing_else(complete: dict[str, Any]) -> None:
    before = parse_service(complete)
    after = service("--dtype", "float32", "--no-prefix-caching", over=before)
    assert after.engine.dtype == "float32"
    assert not after.engine.prefix_caching
    assert after.model == before.model
    assert after.classes == before.classes
    assert after.generation == before.generation


def test_no_flag_leaves_the_manifest_as_it_is(complete: dict[str, Any]) -> None:
    before = parse_service(complete)
    assert service(over=before) == before


def test_every_field_of_model_and_engine_is_a_flag() -> None:
    model = {f.name for f in fields(ModelSpec)} - IN_THE_CLUSTER
    engine = {f.name for f in fields(EngineSpec)} - IN_THE_CLUSTER
    # one flag for each; speculation is three fields, loading one
    assert len([f for f in FLAGS if f.path[0] == "model"]) == len(model)
    assert len([f for f in FLAGS if f.path[0] == "engine"]) == len(engine) - 1 + 3


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.flag)
def test_each_flag_reaches_a_field_of_the_spec(flag: Any) -> None:
    given = {"--model": "builtin://sim?profile=h200", "--kv-memory-fraction": "0.5",
             "--kv-size": "1Mi", "--device": "cuda", "--dtype": "float16",
             "--load-timeout": "5m", "--tool-parser": "llama3", "--speculation": "Never",
             "--drafter": "hf://org/small",
             "--attention": "torch"}.get(flag.flag, "17")  # fmt: skip
    words = [flag.flag, given] if flag.kind != "switch" else [f"--no-{flag.flag[2:]}"]
    base = service("--model", "builtin://tiny")
    assert service(*words, over=base) != base


def test_a_folder_may_be_named_as_a_shell_does(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert service("--model", "./my model").model.source == f"{tmp_path.as_uri()}/my%20model"
    assert service("--model", "/models/x").model.source == "file:///models/x"


def test_a_bad_flag_names_the_field() -> None:
    with pytest.raises(BadInput, match=r"spec\.engine\.dtype: is 'fp8'; must be one of auto"):
        service("--model", "builtin://tiny", "--dtype", "fp8")
