"""Images: bases from outside, users without a name, only what is needed, and all of it pinned."""

import importlib.metadata
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ENTRY = {"operator": "sloserve-operator", "gateway": "sloserve", "engine-cpu": "sloserve",
         "engine-cuda": "sloserve"}  # fmt: skip
HEAVY = {"torch", "transformers", "numpy", "safetensors", "tokenizers"}


def finals(dockerfile: Any) -> list[Any]:
    """The stages that become images: those that nothing else builds on or copies from."""
    used = {stage.base for stage in dockerfile.stages}
    for stage in dockerfile.stages:
        used |= {m[1] for words in stage.all("COPY") if (m := re.match(r"--from=(\S+)", words))}
    return [stage for stage in dockerfile.stages if stage.name not in used]


def test_every_base_is_a_build_argument_or_a_stage(dockerfile: Any) -> None:
    assert list(dockerfile.arguments) == ["PYTHON_IMAGE"]
    seen: set[str] = set()
    for stage in dockerfile.stages:
        assert stage.base == "${PYTHON_IMAGE}" or stage.base in seen
        seen.add(stage.name)


def test_no_image_runs_as_root_or_needs_a_user_name(dockerfile: Any) -> None:
    for stage in finals(dockerfile):
        (user,) = stage.all("USER")
        uid, _, gid = user.partition(":")
        assert int(uid) > 0, "numeric: a kubelet can't check a name against runAsNonRoot"
        assert int(gid) > 0
        assert stage.steps.index(("USER", user)) > max(
            i for i, (name, _) in enumerate(stage.steps) if name in ("COPY", "RUN")
        )
        env = " ".join(stage.all("ENV"))
        assert "USER=sloserve" in env
        assert "HOME=/tmp" in env


def test_every_image_starts_the_program_of_its_part(dockerfiles: Any) -> None:
    started = {
        stage.name: stage.all("ENTRYPOINT") for d in dockerfiles.values() for stage in finals(d)
    }
    assert started == {name: [f'["{program}"]'] for name, program in ENTRY.items()}


def test_what_is_copied_is_there_and_not_ignored(dockerfile: Any, root: Path) -> None:
    ignored = (root / ".dockerignore").read_text().split()
    kept = [line[1:] for line in ignored if line.startswith("!")]
    assert "*" in ignored
    sources = set()
    for stage in dockerfile.stages:
        for words in stage.all("COPY"):
            if not words.startswith("--from"):
                sources |= {*words.split()[:-1]}
    assert {"server", "operator", "pyproject.toml", "constraints.txt"} <= sources
    for source in sources:
        assert (root / source).exists(), source
        assert any(k == source or k.startswith(f"{source}/") for k in kept), source


def test_only_the_environment_goes_into_an_image(dockerfile: Any) -> None:
    for stage in finals(dockerfile):
        copies = stage.all("COPY")
        assert len(copies) == 1
        assert re.fullmatch(r"--from=build(-cpu|-cuda)? /opt/sloserve /opt/sloserve", copies[0])
        assert [w for w in stage.all("RUN") if "pip" in w] == []


def test_every_install_is_pinned_and_takes_a_mirror(dockerfile: Any) -> None:
    stages = {stage.name: stage for stage in dockerfile.stages}
    for stage in dockerfile.stages:
        installs = [words for words in stage.all("RUN") if "pip install" in words]
        for words in installs:
            ours = "PIP_BUILD_CONSTRAINT=constraints.txt" in words and "--no-deps ." in words
            assert "-c constraints.txt" in words or ours or "^torch==" in words
        if installs:
            parent = stages.get(stage.base, stage)
            assert {"PIP_INDEX_URL", "PIP_FIND_LINKS", "PIP_CERT"} <= {*parent.all("ARG")}


def closure(extras: dict[str, list[str]], name: str) -> set[str]:
    """Every distribution that an extra brings, as installed here."""
    found: set[str] = set()
    pending = [(text, "") for text in extras[name]]
    while pending:
        text, extra = pending.pop()
        needed = Requirement(text)
        if needed.marker and not needed.marker.evaluate({"extra": extra}):
            continue
        if needed.name == "sloserve":
            pending += [(other, "") for own in needed.extras for other in extras[own]]
            continue
        key = canonicalize_name(needed.name)
        if key in found:
            continue
        found.add(key)
        try:
            own_needs = importlib.metadata.requires(needed.name) or []
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{needed.name} is not installed: make setup")
        pending += [(other, e) for other in own_needs for e in (needed.extras or {""})]
    return found


@pytest.fixture(scope="module")
def extras(root: Path) -> dict[str, list[str]]:
    """The optional dependencies of the package."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert project["dependencies"] == []
    found: dict[str, list[str]] = project["optional-dependencies"]
    return found | {"build": ["hatchling"]}


@pytest.mark.parametrize("part", ["operator", "gateway"])
def test_operator_and_gateway_carry_no_torch(
    part: str, extras: dict[str, list[str]], dockerfiles: Any
) -> None:
    brought = closure(extras, part)
    assert len(brought) > 10
    assert brought & HEAVY == set()
    (path,) = [p for p in dockerfiles if p.endswith(("operator/Dockerfile", ".gateway"))
               and any(s.name == part for s in dockerfiles[p].stages)]  # fmt: skip
    text = dockerfiles[path].path.read_text()
    assert f"['optional-dependencies']['{part}']" in text
    assert ("['optional-dependencies']['tracing']" in text) == (part == "gateway")
    assert "torch==" not in text


@pytest.mark.parametrize("part", ["operator", "gateway", "engine", "tracing", "grammar", "build"])
def test_whatever_an_image_installs_is_pinned(
    part: str, extras: dict[str, list[str]], root: Path
) -> None:
    pins = {
        canonicalize_name(line.partition("==")[0])
        for line in (root / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    own_to_cuda = {name for name in closure(extras, part) if name.startswith(("nvidia-", "triton"))}
    assert closure(extras, part) - own_to_cuda - pins == set()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_images_builds_them_with_whatever_builder(root: Path, dockerfiles: Any) -> None:
    def commands(*words: str) -> list[str]:
        done = subprocess.run(
            ["make", "--no-print-directory", "-n", "images", *words],
            cwd=root, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.splitlines()

    every = "IMAGES=operator gateway engine engine-cuda"
    built = set()
    for line in commands(every, "BUILDER=podman", "REGISTRY=registry.example.com/llm", "TAG=7"):
        words = line.split()
        assert words[:3] == ["podman", "build", "--tag"]
        name, file, target = words[3], words[5], words[7]
        assert name.startswith("registry.example.com/llm/sloserve-")
        assert name.endswith(":7")
        assert target in [stage.name for stage in finals(dockerfiles[file])]
        built.add(name.removeprefix("registry.example.com/llm/").removesuffix(":7"))
    values = (root / "charts" / "sloserve" / "values.yaml").read_text()
    assert built == set(re.findall(r"repository: ([\w-]+)", values))
    own = commands("IMAGES=gateway", "BUILD=kaniko --file $(2) --destination $(1)")
    assert own == ["kaniko --file server/Dockerfile.gateway --destination localhost/"
                   "sloserve-gateway:0.1.0"]  # fmt: skip
