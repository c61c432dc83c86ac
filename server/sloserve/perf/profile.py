"""
Profile files: a step-time model, what it was measured on, and how far it is off.

    {"hardware": ..., "model": ..., "dtype": ..., "threads": ..., "date": "YYYY-MM-DD",
     "coefficients": {"w": ..., "a0": ..., "c1": ..., "a1": ..., "b": ..., "d": ..., "k2": ...},
     "error": {"mape": 0.03, "p95": 0.08, "by_kind": {"decode": {"mape", "p95", "num_samples"}}}}

Coefficients in seconds (per token, per context token, per pair, per draft); errors as shares.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path

from sloserve.errors import BadInput, NotFound
from sloserve.perf.fit import FitError
from sloserve.perf.model import StepModel
from sloserve.perf.samples import BatchKind


@dataclass(frozen=True, slots=True)
class Profile:
    """What `load_profile` reads and `save_profile` writes."""

    hardware: str
    """CPU or GPU as a person names it."""
    model: str
    dtype: str
    threads: int
    """Compute threads; 0 where that means nothing (GPUs)."""
    date: str
    """Day of the measurement (of the composing, for what was not measured), YYYY-MM-DD."""
    step: StepModel
    mape: float
    """Mean of |predicted - measured| / measured."""
    p95: float
    by_kind: Mapping[BatchKind, FitError] = field(default_factory=dict)
    source: str = ""
    """Where the numbers come from, and their licence, when they were not measured by sloserve."""
    kv_tokens: int | None = None
    """Tokens that the KV cache of this machine holds beside this model, where known."""
    kv_bytes_per_token: int | None = None


def builtin_profiles() -> tuple[str, ...]:
    """Names for `builtin://sim?profile=NAME` and `--profile NAME`."""
    folder = files("sloserve.perf") / "profiles"
    return tuple(sorted(p.name.removesuffix(".json") for p in folder.iterdir()))


def builtin_profile(name: str) -> Profile:
    """A profile that ships in the package. Raises NotFound, which lists them."""
    if name not in builtin_profiles():
        raise NotFound(
            f"no builtin profile is called '{name}'; there are: {', '.join(builtin_profiles())}. "
            "Or give the path of a file that `sloserve profile` wrote."
        )
    text = (files("sloserve.perf") / "profiles" / f"{name}.json").read_text("utf-8")
    return parse_profile(text, origin=f"builtin profile {name}")


def load_profile(path: str | Path) -> Profile:
    """
    The profile in a file, or the builtin one of that name.

    Raises NotFound when there is neither, BadInput when the file does not hold a profile.
    """
    text = str(path)
    if "/" not in text and text in builtin_profiles():
        return builtin_profile(text)
    try:
        content = Path(path).read_text("utf-8")
    except FileNotFoundError:
        raise NotFound(
            f"there is no profile file '{path}', and no builtin profile of that name (there are: "
            f"{', '.join(builtin_profiles())}). `sloserve profile --output {path}` makes one."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"can't be read as a profile: {error}", field=text) from error
    return parse_profile(content, origin=text)


def save_profile(profile: Profile, path: str | Path) -> None:
    """Write the file whole or not at all; its folder is made when missing."""
    target = Path(path)
    data: dict[str, object] = {
        "hardware": profile.hardware,
        "model": profile.model,
        "dtype": profile.dtype,
        "threads": profile.threads,
        "date": profile.date,
        "coefficients": {f.name: getattr(profile.step, f.name) for f in fields(StepModel)},
        "error": {
            "mape": profile.mape,
            "p95": profile.p95,
            "by_kind": {
                kind.value: {"mape": e.mape, "p95": e.p95, "num_samples": e.num_samples}
                for kind, e in profile.by_kind.items()
            },
        },
    }
    if profile.source:
        data["source"] = profile.source
    for name in ("kv_tokens", "kv_bytes_per_token"):
        if getattr(profile, name) is not None:
            data[name] = getattr(profile, name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".part")
        partial.write_text(json.dumps(data, indent=2) + "\n", "utf-8")
        partial.replace(target)
    except OSError as error:
        raise BadInput(f"the profile can't be written there: {error}", field=str(path)) from error


def parse_profile(text: str, *, origin: str) -> Profile:
    """The profile in JSON text; `origin` names it in the messages of BadInput."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadInput(f"is not JSON: {error}", field=origin) from error
    top = _Part(data, origin)
    coefficients, error_part = top.inner("coefficients"), top.inner("error")
    kinds = error_part.inner("by_kind", optional=True)
    step = StepModel(
        **{
            f.name: coefficients.number(f.name, 0.0 if f.name == "k2" else None)
            for f in fields(StepModel)
        }
    )
    if step.step_s(1) <= 0:
        raise BadInput("makes a step of one token take no time", field=coefficients.where)
    return Profile(
        hardware=top.text("hardware"),
        model=top.text("model"),
        dtype=top.text("dtype"),
        threads=top.count("threads") or 0,
        date=top.text("date"),
        step=step,
        mape=error_part.number("mape"),
        p95=error_part.number("p95"),
        by_kind={
            kind: _error(kinds.inner(kind.value)) for kind in BatchKind if kind.value in kinds.data
        },
        source=top.text("source", ""),
        kv_tokens=top.count("kv_tokens"),
        kv_bytes_per_token=top.count("kv_bytes_per_token"),
    )


def _error(part: "_Part") -> FitError:
    return FitError(part.number("mape"), part.number("p95"), part.count("num_samples") or 0)


class _Part:
    """A JSON object that is read field by field; messages say which field of which file."""

    def __init__(self, data: object, where: str) -> None:
        if not isinstance(data, dict):
            raise BadInput(f"must be an object with named fields, is {data!r:.60}", field=where)
        self.data: dict[str, object] = data
        self.where = where

    def inner(self, key: str, *, optional: bool = False) -> "_Part":
        if optional and key not in self.data:
            return _Part({}, f"{self.where}: {key}")
        return _Part(self._get(key), f"{self.where}: {key}")

    def number(self, key: str, default: float | None = None) -> float:
        if default is not None and key not in self.data:
            return default
        value = self._get(key)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
            or value < 0
        ):
            raise BadInput(f"must be a number, 0 or above, is {value!r:.60}", field=self._at(key))
        return float(value)

    def count(self, key: str) -> int | None:
        if key not in self.data:
            return None
        value = self.data[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise BadInput(
                f"must be a whole number, 0 or above, is {value!r:.60}", field=self._at(key)
            )
        return value

    def text(self, key: str, default: str | None = None) -> str:
        if default is not None and key not in self.data:
            return default
        value = self._get(key)
        if not isinstance(value, str):
            raise BadInput(f"must be text, is {value!r:.60}", field=self._at(key))
        return value

    def _get(self, key: str) -> object:
        if key not in self.data:
            raise BadInput(
                f"has no '{key}'; a profile is a file that `sloserve profile` wrote",
                field=self.where,
            )
        return self.data[key]

    def _at(self, key: str) -> str:
        return f"{self.where}: {key}"
