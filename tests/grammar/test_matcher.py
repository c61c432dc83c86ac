"""Masks, moving on, and asking about drafts, over the bytes and over real tokens."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers

from sloserve.engine.tokenizer import ByteTokenizer
from sloserve.errors import BadInput
from sloserve.grammar.compiler import Compiler, Vocabulary
from sloserve.grammar.constraint import Constraint, Kind, of_choices, of_schema
from sloserve.grammar.matcher import Matcher
from sloserve.model.sources import resolve_source
from sloserve.model.tokenizer import HfTokenizer

END = 256
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "n": {"type": "integer"}},
    "required": ["name", "n"],
    "additionalProperties": False,
}


def of_bytes(*eos_ids: int) -> Compiler:
    tokenizer = ByteTokenizer()
    ids = eos_ids or (END,)
    return Compiler(Vocabulary(tokenizer.definition(), tokenizer.special_ids, ids, 259))


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    return of_bytes()


@pytest.fixture(scope="module")
def tiny() -> HfTokenizer:
    """The tokenizer of the model that ships."""
    return HfTokenizer(resolve_source("builtin://tiny"))


@pytest.fixture(scope="module")
def for_tiny(tiny: HfTokenizer) -> Compiler:
    """With more logits than tokens, as models have that pad theirs."""
    return Compiler(Vocabulary(tiny.definition(), tiny.special_ids, (0,), 4096 + 64))


def allowed(mask: bytes) -> set[int]:
    return {i for i in range(8 * len(mask)) if mask[i // 8] >> (i % 8) & 1}


def regex(compiler: Compiler, text: str) -> Matcher:
    return compiler.compile(Constraint(Kind.REGEX, text, "guided_regex")).matcher()


def test_a_mask_holds_what_may_come_next_and_the_end_where_it_may_end(compiler: Compiler) -> None:
    matcher = regex(compiler, "a[bc]*")
    assert allowed(matcher.mask()) == set(b"a")
    matcher.accept(ord("a"))
    assert allowed(matcher.mask()) == {*b"bc", END}
    assert not matcher.ended
    matcher.accept(END)
    assert matcher.ended


def test_it_has_ended_when_nothing_may_follow(compiler: Compiler) -> None:
    matcher = compiler.compile(of_choices(["ab", "ac"], field="x")).matcher()
    for byte in b"ac":
        assert not matcher.ended
        matcher.accept(byte)
    assert matcher.ended
    assert allowed(matcher.mask()) == {END}


def test_every_end_of_the_model_may_end_it() -> None:
    matcher = regex(of_bytes(256, 258), "a*")
    assert allowed(matcher.mask()) == {*b"a", 256, 258}
    matcher.accept(258)
    assert matcher.ended
    assert matcher.is_end(256)


def test_answers_of_one_grammar_do_not_disturb_each_other(compiler: Compiler) -> None:
    grammar = compiler.compile(of_choices(["ab", "cd"], field="x"))
    first, second = grammar.matcher(), grammar.matcher()
    first.accept(ord("a"))
    assert allowed(first.mask()) == set(b"b")
    assert allowed(second.mask()) == set(b"ac")
    assert allowed(grammar.matcher().mask()) == set(b"ac")


def test_a_token_outside_is_a_failure_that_stays(compiler: Compiler) -> None:
    matcher = regex(compiler, "a{4}")
    matcher.accept(ord("x"))
    assert "doesn't satisfy the grammar" in matcher.failure
    failure = matcher.failure
    matcher.accept(ord("a"))
    assert matcher.failure == failure
    assert not matcher.ended


def test_a_place_that_is_too_hard_is_a_failure_not_an_exception(compiler: Compiler) -> None:
    ambiguous = Constraint(Kind.GRAMMAR, 'start: s\ns: "a" | s s | s s s', "guided_grammar")
    matcher = compiler.compile(ambiguous).matcher()
    num_accepted = 0
    while not matcher.failure:
        matcher.accept(ord("a"))
        num_accepted += 1
        assert num_accepted < 1000
    assert "items; max is 1000" in matcher.failure
    assert "<state>" not in matcher.failure
    assert allowed(matcher.mask()) == {END}
    assert matcher.masks([1]) == [matcher.mask()]
    assert not matcher.ended


def test_drafts_are_judged_without_moving(compiler: Compiler) -> None:
    matcher = regex(compiler, "ab(c|d)e?")
    assert matcher.num_fitting(list(b"abd")) == 3
    assert matcher.num_fitting(list(b"abx")) == 2
    assert matcher.num_fitting(list(b"x")) == 0
    assert matcher.num_fitting([]) == 0
    rows = [allowed(row) for row in matcher.masks(list(b"abd"))]
    assert rows == [set(b"a"), set(b"b"), set(b"cd"), {*b"e", END}]
    assert [allowed(row) for row in matcher.masks(list(b"axd"))] == rows[:2]
    assert [allowed(row) for row in matcher.masks([])] == rows[:1]
    assert allowed(matcher.mask()) == set(b"a")
    assert not matcher.failure


def test_a_draft_that_ends_the_answer_has_no_row_after_it(compiler: Compiler) -> None:
    matcher = regex(compiler, "a*")
    rows = [allowed(row) for row in matcher.masks([*b"a", END, *b"a"])]
    assert rows == [{*b"a", END}] * 2
    assert not any(matcher.mask(after=[*b"a", END]))
    closed = regex(compiler, "ab")
    assert [allowed(row) for row in closed.masks([*b"ab", END])] == [set(b"a"), set(b"b"), {END}]
    assert allowed(closed.mask()) == set(b"a")
    assert not closed.failure


@given(st.lists(st.sampled_from(b'{}[]":,a1 \n'), max_size=12), st.integers(0, 12))
def test_rows_after_drafts_are_those_of_accepting_them(
    compiler: Compiler, drafts: list[int], num_kept: int
) -> None:
    grammar = compiler.compile(of_schema({}, field="x", lenient=False))
    asked, moved = grammar.matcher(), grammar.matcher()
    rows, expected = asked.masks(drafts), [moved.mask()]
    for draft in drafts:
        if draft not in allowed(expected[-1]):
            break
        moved.accept(draft)
        expected.append(moved.mask())
    assert rows == expected
    for count in range(1, len(drafts) + 1):
        alone = asked.mask(after=drafts[:count])
        assert alone == (rows[count] if count < len(rows) else bytes(len(rows[0])))
    assert asked.num_fitting(drafts) == len(expected) - 1
    kept = drafts[: min(num_kept, len(rows) - 1)]
    for draft in kept:
        asked.accept(draft)
    assert asked.mask() == expected[len(kept)]


PLAIN = st.text(
    st.characters(min_codepoint=32, exclude_categories=["Cs", "Cc"], exclude_characters="<"),
    max_size=8,
)
"""Without what a special token is spelt with: it would become one."""


@settings(max_examples=40)
@given(PLAIN, st.integers(-9999, 9999), st.sampled_from([None, 2]))
def test_json_that_fits_a_schema_passes_token_by_token(
    tiny: HfTokenizer, for_tiny: Compiler, name: str, n: int, indent: int | None
) -> None:
    matcher = for_tiny.compile(of_schema(SCHEMA, field="x", lenient=False)).matcher()
    value = {"name": name, "n": n}  # in the order of the schema
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    tokens = tiny.encode(text, add_special=False)
    assert tiny.decode(tokens) == text
    for token in tokens:
        assert token in allowed(matcher.mask())
        matcher.accept(token)
    assert matcher.ended


@settings(max_examples=40)
@given(data=st.data())
def test_whatever_is_drawn_under_masks_fits_the_schema(
    tiny: HfTokenizer, for_tiny: Compiler, data: st.DataObject
) -> None:
    matcher = for_tiny.compile(of_schema(SCHEMA, field="x", lenient=False)).matcher()
    tokens: list[int] = []
    while not matcher.ended and len(tokens) < 24:
        choices = sorted(allowed(matcher.mask()))
        assert choices
        assert choices[-1] < 4096  # never one of the logits that pad
        tokens.append(data.draw(st.sampled_from(choices)))
        matcher.accept(tokens[-1])
    assert not matcher.failure
    if matcher.ended:
        value = json.loads(tiny.decode(tokens), strict=False)
        assert len(value["name"]) <= 8
        assert isinstance(value["n"], int)


@pytest.fixture(scope="module")
def spaced() -> Backend:
    """A tokenizer of the SentencePiece kind: ▁ for spaces, bytes for what has no piece."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{i:02X}>" for i in range(256)),
        "▁",
        "a",
        "b",
        "▁a",
        "ab",
    ]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = [("▁", "a"), ("a", "b")]
    model = models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    backend = Backend(model)
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return backend


def test_a_vocabulary_of_the_sentencepiece_kind_is_read_too(spaced: Backend) -> None:
    compiler = Compiler(Vocabulary(spaced.to_str(), frozenset({0, 1, 2}), (2,), 264))
    matcher = regex(compiler, "b a[a-zé]{2,3}")
    tokens = spaced.encode("b aéb", add_special_tokens=False).ids
    assert spaced.decode(tokens) == "b aéb"
    assert len(tokens) == 5  # b, ▁a, two bytes of é, b
    for token in tokens:
        assert token in allowed(matcher.mask())
        matcher.accept(token)
    assert 2 in allowed(matcher.mask())


@pytest.mark.parametrize("keyword", [{"uniqueItems": True}, {"not": {}}, {"if": {}}])
def test_what_can_not_be_enforced_is_refused_or_passed_over(
    compiler: Compiler, keyword: dict[str, Any]
) -> None:
    schema = {"type": ["array", "string"], **keyword}
    with pytest.raises(BadInput, match="this JSON schema can't be followed"):
        compiler.compile(of_schema(schema, field="x", lenient=False))
    matcher = compiler.compile(of_schema(schema, field="x", lenient=True)).matcher()
    assert allowed(matcher.mask()) >= set(b'["')


def test_equal_constraints_are_compiled_once(compiler: Compiler) -> None:
    first = compiler.compile(Constraint(Kind.REGEX, "once", "guided_regex"))
    again = Constraint(Kind.REGEX, "once", "structured_outputs.regex")
    assert compiler.compile(again) is first
    assert compiler.cached(again) is first


def test_only_the_latest_grammars_are_kept(compiler: Compiler) -> None:
    first = Constraint(Kind.REGEX, "first", "x")
    compiler.compile(first)
    for i in range(128):
        compiler.compile(Constraint(Kind.REGEX, f"other{i}", "x"))
    assert compiler.cached(first) is None


@pytest.mark.parametrize("blanks", [" ", "\n" + 32 * " ", "\r\n" + 32 * "\t"])
def test_blanks_between_the_parts_of_json_come_to_an_end(compiler: Compiler, blanks: str) -> None:
    matcher = compiler.compile(of_schema(SCHEMA, field="x", lenient=False)).matcher()
    for byte in b"{" + blanks.encode():
        assert byte in allowed(matcher.mask())
        matcher.accept(byte)
    assert allowed(matcher.mask()) == set(b'"')


def test_a_schema_may_bring_options_of_its_own(compiler: Compiler) -> None:
    tight = {**SCHEMA, "x-guidance": {"whitespace_flexible": False, "whitespace_pattern": None}}
    matcher = compiler.compile(of_schema(tight, field="x", lenient=False)).matcher()
    matcher.accept(ord("{"))
    assert allowed(matcher.mask()) == set(b'"')


def test_a_model_without_an_end_can_not_be_constrained() -> None:
    tokenizer = ByteTokenizer()
    with pytest.raises(BadInput, match="a token that ends answers"):
        Compiler(Vocabulary(tokenizer.definition(), tokenizer.special_ids, (), 259))


def test_a_tokenizer_that_can_not_be_read_is_said() -> None:
    with pytest.raises(BadInput, match="tokenizer can't be constrained"):
        Compiler(Vocabulary("{}", frozenset(), (0,), 8))


@pytest.fixture(autouse=True)
def _quiet(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    assert capfd.readouterr().err == ""  # llguidance writes nothing behind our back
