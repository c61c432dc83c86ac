"""A library is compiled once, whoever comes at the same time, and never taken from strangers."""

import ctypes
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sloserve.errors import BadInput
from sloserve.model import choice, compiler
from sloserve.model.choice import choose_path
from sloserve.model.compiler import NotCompiled, compiled
from sloserve.model.kv import LayerShape

CPU = torch.device("cpu")
LAYERS = [LayerShape(2, 64, 64)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A function that says 42."""
    try:
        compiler._compiler()
    except NotCompiled as error:
        pytest.skip(str(error))
    path = tmp_path / "answer.cpp"
    path.write_text('extern "C" int answer() { return 42; }')
    return path


def answer(library: Path) -> int:
    return int(ctypes.CDLL(str(library)).answer())


def test_it_is_compiled_once_and_found_again(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "kernels"
    first = compiled(source, folder=folder)
    made_ns = first.stat().st_mtime_ns
    assert answer(first) == 42
    assert compiled(source, folder=folder) == first
    assert first.stat().st_mtime_ns == made_ns


def test_another_source_other_flags_or_another_processor_is_another_library(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    libraries = {compiled(source, folder=tmp_path)}
    with monkeypatch.context() as patch:
        patch.setattr(compiler, "FLAGS", (*compiler.FLAGS, "-DNOTHING"))
        libraries.add(compiled(source, folder=tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(compiler, "_processor", lambda: "another one")
        libraries.add(compiled(source, folder=tmp_path))
    source.write_text('extern "C" int answer() { return 43; }')
    changed = compiled(source, folder=tmp_path)
    assert answer(changed) == 43
    assert len({*libraries, changed}) == 4


def test_two_processes_at_once_get_the_same_whole_library(source: Path, tmp_path: Path) -> None:
    code = (
        "import ctypes, sys; from pathlib import Path\n"
        "from sloserve.model.compiler import compiled\n"
        "library = compiled(Path(sys.argv[1]), folder=Path(sys.argv[2]))\n"
        "print(ctypes.CDLL(str(library)).answer(), library.stat().st_mtime_ns)"
    )
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "kernels")]
    pair = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = {process.communicate(timeout=60)[0] for process in pair}
    assert len(told) == 1, "both compiled"
    assert told.pop().startswith("42 ")


def test_a_library_that_others_may_write_is_compiled_anew(source: Path, tmp_path: Path) -> None:
    library = compiled(source, folder=tmp_path)
    library.write_bytes(b"from somebody else")
    library.chmod(0o777)
    assert answer(compiled(source, folder=tmp_path)) == 42


def test_an_error_of_the_compiler_is_told(source: Path, tmp_path: Path) -> None:
    source.write_text("no C++ at all")
    with pytest.raises(NotCompiled, match="error"):
        compiled(source, folder=tmp_path)
    assert not list(tmp_path.glob("*.so"))


def test_without_a_compiler_auto_takes_torchs_kernels_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with caplog.at_level(logging.WARNING):
        path = choose_path("auto", device=CPU, dtype=torch.float32, layers=LAYERS)
    assert path.name == "torch"
    assert "there is no C++ compiler" in caplog.text
    with pytest.raises(BadInput, match=r"there is no C\+\+ compiler .* allowed: auto, torch"):
        choose_path("compiled", device=CPU, dtype=torch.float32, layers=LAYERS)


@pytest.mark.parametrize(
    ("dtype", "layers", "why"),
    [
        (torch.float16, LAYERS, "float32 and bfloat16"),
        (torch.float32, [LayerShape(1, 64, 1024)], "at most 512 numbers, not 1024"),
    ],
)
def test_what_the_kernel_does_not_take_goes_through_torch(
    dtype: torch.dtype, layers: list[LayerShape], why: str, source: Path
) -> None:
    assert choose_path("auto", device=CPU, dtype=dtype, layers=layers).name == "torch"
    with pytest.raises(BadInput, match=why):
        choose_path("compiled", device=CPU, dtype=dtype, layers=layers)


def test_a_folder_that_cant_be_used_is_no_reason_to_fail(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(choice, "cache_folder", lambda kind: tmp_path / "file" / kind)
    assert choose_path("auto", device=CPU, dtype=torch.float32, layers=LAYERS).name == "torch"
