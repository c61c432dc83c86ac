"""C++ compiled on this machine for this machine, once."""

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fno-math-errno", "-fPIC")
TIMEOUT_S = 120.0


class NotCompiled(Exception):
    """No library came of it; the message says why."""


def compiled(source: Path, *, folder: Path) -> Path:
    """
    The shared library of `source`, from `folder` or compiled into it now (a few seconds).

    Its name covers the source, the compiler, the flags and the processor. Of several processes
    that come at once one compiles and the others wait. OpenMP is linked by nobody: its functions
    are found in the library that torch has loaded, so that both share one set of threads.
    Raises NotCompiled.
    """
    compiler = _compiler()
    try:
        key = "\0".join((source.read_text(), _version(compiler), " ".join(FLAGS), _processor()))
        name = f"{source.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        library = folder / name
        with _lock(folder / f"{name}.lock"):
            if not _ours(library):
                _compile(compiler, source, into=library)
    except OSError as error:
        raise NotCompiled(f"{folder} can't be used: {error}") from error
    return library


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "g++", "c++", "clang++"):
        if name and (found := shutil.which(name)):
            return found
    raise NotCompiled("there is no C++ compiler (g++, c++, clang++ or $CXX)")


def _version(compiler: str) -> str:
    return _run([compiler, "--version"]).splitlines()[0]


def _processor() -> str:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    keys = ("model name", "flags", "Features", "CPU part")
    return "\n".join(
        [platform.machine(), *sorted({line for line in lines if line.startswith(keys)})]
    )


def _ours(library: Path) -> bool:
    """Whether it is there and nobody else can have put it there."""
    try:
        status = library.stat()
    except FileNotFoundError:
        return False
    return status.st_uid == os.getuid() and not status.st_mode & 0o022


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(compiler: str, source: Path, *, into: Path) -> None:
    with tempfile.TemporaryDirectory(dir=into.parent) as folder:
        part, made = Path(folder) / "part.o", Path(folder) / into.name
        _run([compiler, *FLAGS, "-c", str(source), "-o", str(part)])
        _run([compiler, "-shared", str(part), "-o", str(made)])  # without OpenMP, see above
        made.chmod(0o700)
        made.replace(into)


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise NotCompiled(f"{command[0]} took longer than {TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        told = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        errors = [line for line in told if "error" in line]
        raise NotCompiled(f"{Path(command[0]).name}: {(errors or told)[0][:300]}")
    return done.stdout
