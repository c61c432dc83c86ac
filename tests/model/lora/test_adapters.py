"""Adapters served beside each other say what plain transformers with PEFT says of each alone."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from sloserve.engine.runner import StepRow
from sloserve.engine.sampling import SamplingParams
from sloserve.errors import BadInput
from sloserve.frontend.loading import load
from sloserve.model.cuda_graphs import DecodeGraphs
from sloserve.model.cuda_runner import GraphRunner
from sloserve.model.load import load_runner
from sloserve.model.lora import adapters, product, step
from sloserve.model.selftest import Mismatch
from sloserve.model.sources import resolve_source
from sloserve.slo import EngineSpec, LoraSpec, ModelSpec, parse_service

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

TOLERANCE = 1e-4
VOCABULARY = 128
FAMILIES = ("llama", "qwen2", "opt", "gpt2", "phi3")
World = Any
"""A runner with adapters, and what PEFT makes of each (conftest)."""
Load = Callable[..., Any]


def prompts(*lengths: int) -> list[list[int]]:
    source = random.Random(3)
    return [[source.randrange(3, VOCABULARY) for _ in range(n)] for n in lengths]


def assert_same(own: Any, expected: Any, *, where: str) -> None:
    for n, (token, right) in enumerate(zip(own[0], expected[0], strict=True)):
        difference = float((own[1][n] - expected[1][n]).abs().max())
        assert difference < TOLERANCE, f"{where}: logits of token {n} differ by {difference:.1e}"
        assert token == right, where


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_several_adapters_say_what_peft_says_through_joins_and_preemptions(
    family: str, the_adapted: Callable[[str], World], a_talk: Any, a_service: Any
) -> None:
    world = the_adapted(family)
    head, *rest = prompts(33, 5, 17, 8, 23)
    asked = [
        ("", rest[0]),
        ("polite", head + rest[1]),
        ("terse", head + rest[1]),
        ("polite", head + rest[2]),
        ("rude one", head + rest[1]),
        ("", head + rest[1]),
    ]
    talks = [
        a_talk(tokens, num_output=12, joins=joins, adapter=adapter)
        for (adapter, tokens), joins in zip(asked, (0, 0, 2, 3, 4, 5), strict=True)
    ]
    service = a_service(world.runner, num_blocks=8, max_batch_tokens=27)
    heard = service.run(*talks)
    assert service.runner.num_mixed >= 3
    assert service.runner.num_padded >= 3
    assert service.scheduler.counters.num_preemptions >= 2
    answers = set()
    for (adapter, prompt), own in zip(asked, heard, strict=True):
        assert_same(own, world.greedy(adapter, prompt, 12), where=adapter or "the model")
        answers.add((tuple(prompt), tuple(own[0])))
    assert len(answers) == len(asked), "an adapter changes nothing: this test proves nothing"


def test_one_prompt_under_two_adapters_shares_no_keys_and_under_one_it_does(
    the_adapted: Callable[[str], World], a_talk: Any, a_service: Any
) -> None:
    world = the_adapted("llama")
    (prompt,) = prompts(80)
    turns = [
        ("polite", ""), ("", ""), ("terse", ""), ("polite", ""), ("", "6:polite"),
        ("", "polite"), ("polite", "x"), ("", ""),
    ]  # fmt: skip
    talks = [
        a_talk(prompt, num_output=4, joins=8 * i, adapter=adapter, salt=salt)
        for i, (adapter, salt) in enumerate(turns)
    ]
    service = a_service(world.runner, num_blocks=40, max_batch_tokens=128)
    heard = service.run(*talks)
    assert service.num_cached == [0, 0, 0, 64, 0, 0, 0, 64]
    for (adapter, _), own in zip(turns, heard, strict=True):
        assert_same(own, world.greedy(adapter, prompt, 4), where=adapter)


def test_a_batch_without_adapter_rows_runs_the_layers_as_they_are(
    loaded: Load, base: Path, saved: Path, a_driver: Any, a_talk: Any
) -> None:
    runner = loaded(base, saved)
    seen: set[bool] = set()
    layer = runner.model.get_submodule("model.layers.0.self_attn.q_proj")
    layer.register_forward_pre_hook(lambda module, given: seen.add("forward" in vars(module)))
    a_driver(runner).run(a_talk([5, 6, 7, 8], num_output=3))
    assert seen == {False}
    a_driver(runner).run(a_talk([5, 6, 7, 8], num_output=3, adapter="polite"))
    assert seen == {False, True}
    assert "forward" not in vars(layer)
    runner.close()


@pytest.mark.parametrize("limit", [0, 1_000_000])
def test_both_ways_to_multiply_agree_with_peft(
    limit: int, the_adapted: Any, a_driver: Any, a_talk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(product, "MASKED_PRODUCTS", limit)
    world = the_adapted("llama")
    names = ["", "polite", "terse", "polite", "rude one"]
    talks = [
        a_talk(prompt, num_output=8, adapter=name)
        for name, prompt in zip(names, prompts(9, 14, 21, 6, 17), strict=True)
    ]
    a_driver(world.runner).run(*talks)
    for talk in talks:
        assert talk.output == world.greedy(talk.adapter, talk.prompt, 8)[0]


def test_the_self_test_catches_rows_that_get_another_rows_adapter(
    loaded: Load, base: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = step.adapted_step

    def wrong(batch: Any, numbers: Any) -> Any:
        batch.adapters = batch.adapters[::-1]
        return right(batch, numbers)

    monkeypatch.setattr(adapters, "adapted_step", wrong)
    with pytest.raises(Mismatch, match=r"adapter 'polite' can't be served: .* differ"):
        loaded(base, saved)


def test_a_draft_model_without_the_adapter_changes_no_answer_of_it(
    loaded: Load, base: Path, saved: Path, a_talk: Any, a_service: Any
) -> None:
    plain = loaded(base, saved)
    drafted = load_runner(
        base,
        model=ModelSpec(source="file:///model", served_name="m"),
        engine=EngineSpec(threads=1, dtype="float32", kv_bytes=4_000_000),
        adapters={"polite": saved},
        drafter=base,
    )
    tried = kept = 0
    for seed, adapter in ((None, "polite"), (3, "polite"), (None, "")):
        sampling = SamplingParams(temperature=0.0 if seed is None else 1.0, seed=seed)
        told = []
        for runner, num_drafts in ((plain, 0), (drafted, 3)):
            tokens = list(prompts(20)[0])
            table = list(range(8))
            computed = 0
            out: list[int] = []
            while len(out) < 12:
                row = StepRow(
                    request_id=7, tokens=tokens, num_prompt=20, start=computed,
                    count=len(tokens) - computed, block_table=table, sample=True,
                    sampling=sampling, adapter=adapter, num_drafts=num_drafts * (computed > 0),
                )  # fmt: skip
                (one,) = runner.step([row])
                new = [s.token_id for s in (*one.accepted, one) if s.token_id is not None]
                computed = len(tokens) + len(one.accepted)
                tokens += new
                out += new
                tried, kept = tried + one.num_drafted, kept + len(one.accepted)
            runner.forget(7)
            told.append(out[:12])
        assert told[0] == told[1]
    assert tried > kept > 0, "the model itself is drafted for well, its adapter is not"


@pytest.mark.parametrize("drafts", [[0, 0], None])
def test_drafts_are_verified_by_the_adapter_of_their_row(
    drafts: list[int] | None, the_adapted: Any, a_talk: Any, a_driver: Any
) -> None:
    runner = the_adapted("llama").runner
    right, says = prompts(12)[0], []
    for adapter in ("", "polite"):
        talk = a_talk(right, num_output=3, adapter=adapter)
        a_driver(runner).run(talk)
        says.append(talk.output)
    assert says[0] != says[1]
    rows = [
        StepRow(
            request_id=90 + i, tokens=right, num_prompt=12, start=0, count=12,
            block_table=[2 * i], sample=True, sampling=SamplingParams(temperature=0.0),
            adapter=adapter,
        )
        for i, adapter in enumerate(("", "polite"))
    ]  # fmt: skip
    first = runner.step(rows)
    rows = [
        replace(
            row, tokens=[*right, sampled.token_id], start=12, count=1, num_drafts=2,
            drafts=drafts or said[1:3],
        )
        for row, sampled, said in zip(rows, first, says, strict=True)
    ]  # fmt: skip
    for sampled, said in zip(runner.step(rows), says, strict=True):
        kept = [one.token_id for one in sampled.accepted]
        assert [*kept, sampled.token_id][:2] == (said[1:3] if drafts is None else said[1:2])[:2]
        assert len(kept) == (2 if drafts is None else 0)


def test_a_manifest_with_adapters_loads_through_its_sources_in_the_dtype_of_this_machine(
    tmp_path: Path, adapter_of: Callable[..., Path]
) -> None:
    tiny = resolve_source("builtin://tiny")
    folder = adapter_of(tiny, tmp_path / "polite", seed=2, target_modules=["q_proj", "down_proj"])
    spec = parse_service(
        {
            "apiVersion": "sloserve.io/v1alpha1",
            "kind": "SLOService",
            "metadata": {"name": "assistant"},
            "spec": {
                "model": {
                    "source": "builtin://tiny",
                    "maxModelLen": 512,
                    "lora": [{"name": "polite", "source": folder.as_uri()}],
                },
                "engine": {"threads": 1, "kvCache": {"size": "16Mi"}},
                "sloClasses": [{"name": "chat", "ttft": {"target": "1s"}, "tpot": "100ms"}],
            },
        }
    )
    phases: list[str] = []
    found = load(spec, profile="tiny-cpu", on_phase=lambda phase, *_: phases.append(phase))
    assert found.facts.adapters == ("polite",)
    assert "loading weights" in phases
    found.runner.close()
    wrong = replace(spec, model=replace(spec.model, lora=(LoraSpec("x", "builtin://tiny"),)))
    with pytest.raises(BadInput, match="'builtin://tiny' holds a whole model"):
        load(wrong, profile="tiny-cpu", on_phase=lambda *_: None)


def test_decode_graphs_are_of_the_model_without_adapters(
    loaded: Load, base: Path, saved: Path, a_talk: Any, a_driver: Any
) -> None:
    class Graphs:
        asked: list[str] = []  # noqa: RUF012

        def step(self, rows: Any) -> None:
            self.asked += [row.adapter for row in rows]

    plain, graphs = loaded(base, saved), Graphs()
    runner = GraphRunner(
        plain.model,
        cache=plain.cache,
        facts=plain.facts,
        graphs=cast("DecodeGraphs", graphs),
        adapters=plain.adapters,
    )
    mixed = [a_talk([5, 6, 7], num_output=4, adapter=name) for name in ("polite", "")]
    a_driver(runner).run(*mixed)
    assert graphs.asked == []
    a_driver(runner).run(a_talk([5, 6, 7], num_output=4))
    assert graphs.asked == [""] * 4
    assert mixed[0].output != mixed[1].output
