"""Model sources as text."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sloserve.errors import BadInput
from sloserve.slo.sources import SourceKind, parse_source


@pytest.mark.parametrize(
    ("text", "kind", "ref"),
    [
        ("builtin://tiny", SourceKind.TINY, ""),
        ("builtin://sim", SourceKind.SIM, ""),
        ("builtin://sim?profile=h200", SourceKind.SIM, ""),
        ("hf://Qwen/Qwen3-8B", SourceKind.HUB, "Qwen/Qwen3-8B"),
        ("hf://gpt2", SourceKind.HUB, "gpt2"),
        ("file:///models/my%20model", SourceKind.FOLDER, "/models/my model"),
        ("pvc://models/qwen", SourceKind.CLAIM, "models/qwen"),
        (" builtin://tiny ", SourceKind.TINY, ""),
    ],
)
def test_every_kind_of_source_is_understood(text: str, kind: SourceKind, ref: str) -> None:
    source = parse_source(text)
    assert (source.kind, source.ref, source.hint) == (kind, ref, "")


def test_the_profile_of_a_simulated_model_is_read() -> None:
    assert parse_source("builtin://sim?profile=h200").profile == "h200"
    assert parse_source("builtin://sim").profile is None


@pytest.mark.parametrize("path", ["/models/x", "./x", "../x", "~/x"])
def test_a_bare_path_is_taken_as_a_folder_with_a_hint(path: str) -> None:
    source = parse_source(path)
    assert (source.kind, source.ref) == (SourceKind.FOLDER, path)
    assert "file:///" in source.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no model source was given"),
        ("tiny", "Did you mean builtin://tiny"),
        ("Qwen/Qwen3-8B", "Did you mean hf://Qwen/Qwen3-8B"),
        ("builtin://huge", "there are builtin://tiny"),
        ("builtin://tiny?profile=h200", "no builtin model"),
        ("builtin://sim?speed=2", "there is `profile`"),
        ("builtin://sim?profile=", "there is `profile`"),
        ("builtin://sim?nonsense", "there is `profile`"),
        ("hf://", "hf://org/name"),
        ("hf://a/b/c", "hf://org/name"),
        ("hf://org/name@v1", "goes into `revision`"),
        ("file://models/x", "three slashes"),
        ("file:///", "three slashes"),
        ("pvc://claim", "pvc://claim/path"),
        ("s3://bucket/x", "unknown scheme 's3://'"),
    ],
)
def test_what_is_no_source_is_refused_with_what_to_write(text: str, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_source(text, field="spec.model.source")
    assert message in caught.value.message
    assert caught.value.field == "spec.model.source"


@given(st.text())
def test_any_text_is_parsed_or_refused_in_words(text: str) -> None:
    with contextlib.suppress(BadInput):
        assert parse_source(text).kind in SourceKind
