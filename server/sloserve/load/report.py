"""
What a run found, as values and as JSON: one format for `bench` and `simulate`.

A report names the command, commit and machine that made it, so that a figure can be made again.
"""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sloserve
from sloserve.load.summary import ALL, ClassSummary, class_summary_from_dict


@dataclass(frozen=True, slots=True)
class Window:
    """One stretch of load at one rate. `facts` are numbers of the tool that made it."""

    rate: float  # offered requests/s
    duration_s: float
    policy: str
    classes: dict[str, ClassSummary]
    notes: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def all(self) -> ClassSummary:
        """Every class together."""
        return self.classes[ALL]

    def to_dict(self) -> dict[str, Any]:
        """As JSON wants it."""
        return {
            "rate": self.rate,
            "duration_s": self.duration_s,
            "policy": self.policy,
            "classes": {name: row.to_dict() for name, row in self.classes.items()},
            "notes": list(self.notes),
            "facts": self.facts,
        }


def window_from_dict(raw: Mapping[str, Any]) -> Window:
    """The inverse of `Window.to_dict`."""
    return Window(
        rate=raw["rate"],
        duration_s=raw["duration_s"],
        policy=raw["policy"],
        classes={name: class_summary_from_dict(row) for name, row in raw["classes"].items()},
        notes=tuple(raw["notes"]),
        facts=raw["facts"],
    )


@dataclass(frozen=True, slots=True)
class Capacity:
    """The highest rate (requests/s) found to hold `target` (share) strict attainment."""

    policy: str
    target: float
    rate: float
    tried: tuple[tuple[float, float], ...]  # (rate, attainment), in the order tried
    confirmed: bool


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run. `kind` is `bench`, `simulate`, `capacity` or `replay`."""

    kind: str
    settings: dict[str, Any]
    windows: tuple[Window, ...]
    capacities: tuple[Capacity, ...] = ()
    made: dict[str, Any] = field(default_factory=lambda: provenance())

    def to_dict(self) -> dict[str, Any]:
        """As JSON wants it."""
        return {
            "kind": self.kind,
            "made": self.made,
            "settings": self.settings,
            "windows": [window.to_dict() for window in self.windows],
            "capacities": [
                {
                    "policy": c.policy,
                    "target": c.target,
                    "rate": c.rate,
                    "confirmed": c.confirmed,
                    "tried": [list(point) for point in c.tried],
                }
                for c in self.capacities
            ],
        }


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write atomically: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)


def provenance() -> dict[str, Any]:
    """Command, version, commit, machine and time of this process."""
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "version": sloserve.__version__,
        "commit": _commit(),
        "machine": machine(),
        "python": platform.python_version(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def machine() -> str:
    """The CPU's name, its cores and the system, as one line."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next((x.split(":", 1)[1].strip() for x in file if "model name" in x), name)
    except OSError:
        pass
    return f"{name}, {os.cpu_count()} cores, {platform.system()}"


def _commit() -> str | None:
    """The commit of the source tree this runs from (with + when changed); None outside one."""
    here = Path(__file__).parent

    def git(*args: str) -> str:
        done = subprocess.run(
            ["git", *args], cwd=here, capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        dirty = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if dirty else "")
    except (OSError, subprocess.SubprocessError):
        return None
