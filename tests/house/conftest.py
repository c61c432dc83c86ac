"""Where the project is."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of pyproject.toml."""
    return next(p for p in Path(__file__).resolve().parents if (p / "pyproject.toml").is_file())
