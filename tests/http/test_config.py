"""Manifest files: what is wrong with them is told with file, line and field."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sloserve.errors import BadInput
from sloserve.http.config import load_manifest, load_yaml

Write = Callable[[str], Path]


def test_a_good_manifest_is_a_service(manifest_text: str, manifest_file: Write) -> None:
    assert load_manifest(manifest_file(manifest_text)).name == "assistant"


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("tpot: 50ms", "tpot: 50", 14, "spec.sloClasses[1].tpot"),
        ("tpot: 20ms", "tpot: fast", 16, "spec.sloClasses[1].tightest.tpot"),
        ("defaultClass: chat", "defaultClass: gold", 23, "spec.defaultClass"),
        ("    source: builtin://sim", "    sauce: builtin://sim", 7, "spec.model"),
        ("kind: SLOService", "kind: Pod", 2, "kind"),
        ("  name: assistant", "  name: Assistant", 4, "metadata.name"),
    ],
)
def test_a_bad_field_is_told_with_its_line(
    manifest_text: str, manifest_file: Write, old: str, new: str, line: int, words: str
) -> None:
    path = manifest_file(manifest_text.replace(old, new))
    with pytest.raises(BadInput) as caught:
        load_manifest(path)
    assert caught.value.message.startswith(f"{path}, line {line}: {words}")


def test_broken_yaml_is_told_with_its_line(manifest_file: Write) -> None:
    with pytest.raises(BadInput, match=r"service.yaml, line 3, column \d+: not YAML"):
        load_manifest(manifest_file("a: 1\nb: [1, 2\nc: 3\n"))


def test_a_key_that_is_there_twice_is_refused(manifest_file: Write) -> None:
    with pytest.raises(BadInput, match="line 3: 'a' is there twice"):
        load_yaml(manifest_file("x:\n  a: 1\n  a: 2\n"))


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_an_empty_file_is_refused(manifest_file: Write, text: str) -> None:
    with pytest.raises(BadInput):
        load_manifest(manifest_file(text))


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"can't read .*: No such file"):
        load_manifest(tmp_path / "none.yaml")
    with pytest.raises(BadInput, match="can't read"):
        load_manifest(tmp_path)


def test_two_documents_in_one_file_are_refused(manifest_text: str, manifest_file: Write) -> None:
    with pytest.raises(BadInput, match="single document"):
        load_manifest(manifest_file(manifest_text + "---\n" + manifest_text))


@pytest.mark.parametrize("text", ["a: !!python/object:os.system x", "a: 2020-13-45", "{[a]: 1}"])
def test_odd_yaml_is_refused_and_never_run(manifest_file: Write, text: str) -> None:
    with pytest.raises(BadInput):
        load_manifest(manifest_file(text))


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="not UTF-8"):
        load_yaml(path)
