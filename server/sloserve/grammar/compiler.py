"""Constraints into grammars, by llguidance. The only module that imports it."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import any_to_lark

from sloserve.errors import BadInput
from sloserve.grammar.constraint import MAX_CHARACTERS, Constraint, Kind
from sloserve.grammar.matcher import Grammar, first_line

MAX_ITEMS = 1000
"""
Ways in which what was written so far may go on. A schema needs about four per optional property.
An ambiguous grammar takes time with their cube: 2 ms a token at 500, 140 ms at 2000, and all
requests of the step wait for it. A grammar that needs more fails there.
"""
MAX_LEXER_STATES = 20_000
"""Of one answer, at 1 to 2 kB each; they are made as an answer reaches them."""
NUM_CACHED = 128
"""Compiled grammars that are kept, the latest used."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of a model: `definition` is a tokenizer.json, or there is one text a token."""

    definition: str | tuple[bytes, ...]
    special_ids: frozenset[int]
    eos_ids: tuple[int, ...]
    num_logits: int


class Compiler:
    """
    Compiles for one vocabulary. Any number of threads may. What was compiled lately is kept.

    Raises BadInput for a tokenizer that llguidance can't read.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._eos_ids = vocabulary.eos_ids
        self._tokenizer = _tokenizer(vocabulary)
        self._limits = LLParserLimits(
            max_items_in_row=MAX_ITEMS, max_lexer_states=MAX_LEXER_STATES, verbose_errors=False
        )
        self._cache: OrderedDict[tuple[Kind, str], Grammar] = OrderedDict()
        self._lock = threading.Lock()

    def cached(self, constraint: Constraint) -> Grammar | None:
        """The grammar, if it was compiled lately."""
        key = (constraint.kind, constraint.text)
        with self._lock:
            found = self._cache.get(key)
            if found is not None:
                self._cache.move_to_end(key)
            return found

    def compile(self, constraint: Constraint) -> Grammar:
        """
        The grammar of a constraint. Takes milliseconds, a second for a hard one, with the
        interpreter free meanwhile. Raises BadInput that names the field.
        """
        found = self.cached(constraint)
        if found is not None:
            return found
        size = len(constraint.text)
        if size > MAX_CHARACTERS:
            raise BadInput(
                f"got a {constraint.kind} of {size} characters, allowed: at most {MAX_CHARACTERS}",
                field=constraint.field,
            )
        matcher = LLMatcher(self._tokenizer, _source(constraint), log_level=0, limits=self._limits)
        if matcher.is_error():
            _refuse(constraint, matcher.get_error())
        if not any(matcher.compute_bitmask()):
            _refuse(constraint, matcher.get_error() or "no token of this model can begin it")
        grammar = Grammar(matcher, eos_ids=self._eos_ids)
        with self._lock:
            self._cache[constraint.kind, constraint.text] = grammar
            if len(self._cache) > NUM_CACHED:
                self._cache.popitem(last=False)
        return grammar


def _source(constraint: Constraint) -> str:
    """The constraint as llguidance takes it."""
    try:
        match constraint.kind:
            case Kind.JSON:
                return str(LLMatcher.grammar_from_json_schema(constraint.text))
            case Kind.REGEX:
                return str(LLMatcher.grammar_from_regex(constraint.text))
            case Kind.GRAMMAR:
                return str(LLMatcher.grammar_from_lark(any_to_lark(constraint.text)))
    except Exception as error:  # the converter of GBNF raises plain Exceptions
        _refuse(constraint, str(error))
    raise AssertionError(constraint.kind)


def _refuse(constraint: Constraint, why: str) -> None:
    text = first_line(why)
    shown = text if len(text) <= 500 else text[:497] + "..."
    raise BadInput(f"this {constraint.kind} can't be followed: {shown}", field=constraint.field)


class _Bytes:
    """One text a token, as llguidance wants to see a tokenizer."""

    def __init__(self, tokens: Sequence[bytes], special_ids: frozenset[int], eos_id: int) -> None:
        self.tokens = tokens
        self.special_token_ids = sorted(special_ids)
        self.eos_token_id = eos_id
        self.bos_token_id = None
        self._ids = {text: i for i, text in enumerate(tokens)}

    def __call__(self, text: bytes) -> list[int]:
        return [self._ids[text[i : i + 1]] for i in range(len(text))]


def _tokenizer(vocabulary: Vocabulary) -> LLTokenizer:
    if not vocabulary.eos_ids:
        raise BadInput("structured output needs a token that ends answers; this model has none")
    given = vocabulary.definition
    try:
        if isinstance(given, str):
            return LLTokenizer(given, vocabulary.num_logits, list(vocabulary.eos_ids))
        tokens = _Bytes(given, vocabulary.special_ids, vocabulary.eos_ids[0])
        return LLTokenizer(TokenizerWrapper(tokens), eos_token=list(vocabulary.eos_ids))
    except Exception as error:  # of its Rust side, as whatever it likes
        raise BadInput(f"this model's tokenizer can't be constrained: {error}") from error
