"""Which way a model writes calls: known by its chat template, or named by a flag."""

import secrets
import string
from collections.abc import Callable, Collection
from dataclasses import dataclass

from sloserve.tools.bare import TAG, LlamaParser
from sloserve.tools.listed import ARGS, MARKER, MistralParser
from sloserve.tools.pieces import ToolParser
from sloserve.tools.tagged import CLOSE, OPEN, HermesParser

_LETTERS = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """
    One way of writing calls. Written out, calls are

        first, call, between, call, ..., last      call = before, name, after, arguments, close

    each a sequence of texts; those among `markers` may be special tokens of the model.
    """

    name: str
    new_parser: Callable[[Collection[str]], ToolParser]
    """Takes the names of the functions that are offered."""
    before: tuple[str, ...]
    after: tuple[str, ...]
    close: tuple[str, ...]
    between: tuple[str, ...]
    first: tuple[str, ...] = ()
    last: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()
    id_length: int = 24

    def call_id(self) -> str:
        """A new id. Templates of Mistral's models take nine letters and digits, nothing else."""
        text = "".join(secrets.choice(_LETTERS) for _ in range(self.id_length))
        return text if self.id_length == 9 else f"call_{text}"


HERMES = ToolFormat(
    "hermes",
    lambda names: HermesParser(),
    before=(OPEN, '\n{"name": "'),
    after=('", "arguments": ',),
    close=("}\n", CLOSE),
    between=("\n",),
    markers=(OPEN, CLOSE),
)
LLAMA3 = ToolFormat(
    "llama3",
    LlamaParser,
    before=('{"name": "',),
    after=('", "parameters": ',),
    close=("}",),
    between=("; ",),
    markers=(TAG,),
)
MISTRAL = ToolFormat(
    "mistral",
    lambda names: MistralParser(),
    first=(MARKER, "["),
    before=('{"name": "',),
    after=('", "arguments": ',),
    close=("}",),
    between=(", ",),
    last=("]",),
    markers=(MARKER,),
    id_length=9,
)
MISTRAL_ARGS = ToolFormat(
    "mistral-args",
    lambda names: MistralParser(),
    before=(MARKER,),
    after=(ARGS,),
    close=(),
    between=(),
    markers=(MARKER, ARGS),
    id_length=9,
)
FORMATS = {f.name: f for f in (HERMES, LLAMA3, MISTRAL, MISTRAL_ARGS)}


def format_of(template: str) -> ToolFormat | None:
    """The format that a chat template teaches; None: it teaches none that is known here."""
    if MARKER in template:
        return MISTRAL_ARGS if ARGS in template else MISTRAL
    if OPEN in template:
        return None if "<function=" in template else HERMES
    if TAG in template or ("ipython" in template and '"parameters"' in template):
        return LLAMA3
    return None
