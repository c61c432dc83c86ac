"""The layout that Python, tools and readers rely on."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

MAX_LINES = 480  # "about 400": a little more is better than a cut in the wrong place
SOURCES = ("server", "operator", "tests")


def python_files(root: Path) -> Iterator[Path]:
    for folder in SOURCES:
        yield from sorted((root / folder).rglob("*.py"))


def test_source_roots_and_tests_are_no_packages(root: Path) -> None:
    # operator/__init__.py would shadow Python's own module and break the interpreter
    wrong = [root / "operator" / "__init__.py", root / "server" / "__init__.py"]
    assert [p for p in wrong if p.exists()] == []
    assert list((root / "tests").rglob("__init__.py")) == []


def test_no_file_grows_past_what_a_person_reads_at_once(root: Path) -> None:
    lengths = {
        str(p.relative_to(root)): len(p.read_text().splitlines()) for p in python_files(root)
    }
    assert {name: n for name, n in lengths.items() if n > MAX_LINES} == {}


def test_only_the_model_package_imports_torch(root: Path) -> None:
    outside = [
        str(path.relative_to(root))
        for path in sorted((root / "server").rglob("*.py"))
        if "model" not in path.relative_to(root / "server" / "sloserve").parts[:1]
        and {"torch", "transformers"} & imported(path)
    ]
    assert outside == []


def imported(path: Path) -> set[str]:
    """Top-level names of everything a file imports, wherever the import stands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def test_every_package_says_what_it_is(root: Path) -> None:
    packages = sorted((root / "server" / "sloserve").rglob("__init__.py"))
    assert len(packages) > 10
    silent = [
        str(path.relative_to(root))
        for path in packages
        if len(ast.get_docstring(ast.parse(path.read_text())) or "") < 10
    ]
    assert silent == []


def test_every_package_is_in_the_map_of_the_project(root: Path) -> None:
    maps = (root / "README.md").read_text() + (root / "ARCHITECTURE.md").read_text()
    folders = [p for p in (root / "server" / "sloserve").iterdir() if (p / "__init__.py").is_file()]
    missing = [p.name for p in folders if not re.search(rf"\b{p.name}\b", maps)]
    assert missing == []


def test_links_between_documents_lead_somewhere(root: Path) -> None:
    broken = []
    for document in [
        *root.glob("*.md"),
        *(root / "examples").glob("*.md"),
        *(root / "bench").glob("*.md"),
    ]:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text()):
            if "://" not in target and not (document.parent / target).exists():
                broken.append(f"{document.name}: {target}")
    assert broken == []


@pytest.mark.parametrize(
    "name", ["LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "ARCHITECTURE.md"]
)
def test_the_documents_a_stranger_looks_for_exist(root: Path, name: str) -> None:
    assert (root / name).stat().st_size > 500
