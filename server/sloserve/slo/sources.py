"""Where a model comes from, as text; nothing is looked up here."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from urllib.parse import parse_qsl, unquote

from sloserve.errors import BadInput

ALLOWED = (
    "builtin://tiny, builtin://sim?profile=h200, hf://org/name, file:///path/to/folder "
    "or pvc://claim/path (on Kubernetes)"
)

MANIFEST_SOURCE = (
    r"builtin://(tiny|sim(\?profile=[\w./-]+)?)"
    r"|hf://[\w.-]+(/[\w.-]+)?"
    r"|file:///[^\x00-\x1f\x7f]*[^\x00-\x20\x7f]"
    r"|pvc://[a-z0-9][a-z0-9.-]*/[^\x00-\x1f\x7f]*[^\x00-\x20\x7f]"
)
"""What a manifest may say, and the CRD says too."""


class SourceKind(StrEnum):
    """The scheme of a source, and for `builtin` what it names."""

    TINY = "builtin://tiny"
    SIM = "builtin://sim"
    HUB = "hf"
    FOLDER = "file"
    CLAIM = "pvc"


@dataclass(frozen=True, slots=True)
class ModelSource:
    """
    A parsed source. `ref` is the hub's name, the absolute path, `claim/path`, or "".

    `hint` is a remark for the person who wrote it, when the text was accepted although it is not
    of the proper form.
    """

    kind: SourceKind
    ref: str = ""
    options: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    hint: str = ""

    @property
    def profile(self) -> str | None:
        """The step-time profile of a simulated model, if named."""
        return self.options.get("profile")


def parse_source(text: str, *, field: str | None = None) -> ModelSource:
    """
    The source that `text` names.

    A bare path (`./models/x`, `/models/x`) is accepted, with a hint. Raises BadInput, which shows
    what was seen and what is allowed; `field` names where the text came from.
    """
    scheme, separator, rest = text.strip().partition("://")
    if not text.strip():
        raise BadInput(f"no model source was given; use {ALLOWED}", field=field)
    if not separator:
        return _bare(text.strip(), field)
    if scheme == "builtin":
        return _builtin(text.strip(), rest, field)
    if scheme == "hf":
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", rest):
            raise BadInput(
                f"'{text}' does not name a model on the hub; it looks like hf://org/name. A "
                "branch, tag or commit goes into `revision`.",
                field=field,
            )
        return ModelSource(SourceKind.HUB, rest)
    if scheme == "file":
        if not rest.startswith("/") or rest == "/":
            raise BadInput(
                f"'{text}' is not an absolute path; three slashes: file:///path/to/folder",
                field=field,
            )
        return ModelSource(SourceKind.FOLDER, unquote(rest))
    if scheme == "pvc":
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*/.+", rest):
            raise BadInput(
                f"'{text}' does not name a claim and a path in it; it looks like "
                "pvc://claim/path/to/folder",
                field=field,
            )
        return ModelSource(SourceKind.CLAIM, rest)
    raise BadInput(f"'{text}' has the unknown scheme '{scheme}://'; use {ALLOWED}", field=field)


def _bare(text: str, field: str | None) -> ModelSource:
    if text.startswith(("/", "./", "../", "~")):
        return ModelSource(
            SourceKind.FOLDER,
            text,
            hint=f"'{text}' is taken as a folder; a manifest wants file:///absolute/path",
        )
    guess = f" Did you mean hf://{text}?" if re.fullmatch(r"[\w.-]+/[\w.-]+", text) else ""
    if text in ("tiny", "sim"):
        guess = f" Did you mean builtin://{text}?"
    raise BadInput(f"'{text}' is no model source;{guess} Use {ALLOWED}", field=field)


def _builtin(text: str, rest: str, field: str | None) -> ModelSource:
    name, _, query = rest.partition("?")
    if name == "tiny" and not query:
        return ModelSource(SourceKind.TINY)
    if name != "sim":
        raise BadInput(
            f"'{text}' is no builtin model; there are builtin://tiny and "
            "builtin://sim?profile=NAME",
            field=field,
        )
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(set(options) - {"profile"})
    if unknown or (query and not options) or not all(options.values()):
        raise BadInput(
            f"'{text}' has an option that builtin://sim does not know; there is `profile`: "
            "builtin://sim?profile=h200",
            field=field,
        )
    return ModelSource(SourceKind.SIM, options=MappingProxyType(options))
