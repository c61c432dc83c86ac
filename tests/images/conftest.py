"""Dockerfiles, read as far as the tests must."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

FILES = ("operator/Dockerfile", "server/Dockerfile.gateway", "server/Dockerfile.engine")


@dataclass
class Stage:
    """One stage: its base, its name, and its instructions in order."""

    base: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        """The arguments of every such instruction."""
        return [words for name, words in self.steps if name == instruction]


@dataclass
class Dockerfile:
    """A file: the arguments before its first stage, and the stages."""

    path: Path
    arguments: dict[str, str]
    stages: list[Stage]

    def stage(self, name: str) -> Stage:
        """The stage of that name."""
        (found,) = [stage for stage in self.stages if stage.name == name]
        return found


def read_dockerfile(path: Path) -> Dockerfile:
    """Comments dropped, continued lines joined."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for line in filter(None, text.splitlines()):
        instruction, _, words = line.partition(" ")
        if instruction == "FROM":
            base, _, name = words.partition(" AS ")
            stages.append(Stage(base, name))
        elif not stages:
            assert instruction == "ARG", line
            name, _, default = words.partition("=")
            arguments[name] = default
        else:
            stages[-1].steps.append((instruction, words.strip()))
    return Dockerfile(path, arguments, stages)


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of pyproject.toml."""
    return next(p for p in Path(__file__).resolve().parents if (p / "pyproject.toml").is_file())


@pytest.fixture(params=FILES)
def dockerfile(request: pytest.FixtureRequest, root: Path) -> Dockerfile:
    """Every Dockerfile of the project."""
    return read_dockerfile(root / str(request.param))


@pytest.fixture(scope="session")
def dockerfiles(root: Path) -> dict[str, Dockerfile]:
    """Every Dockerfile by its path."""
    return {name: read_dockerfile(root / name) for name in FILES}
