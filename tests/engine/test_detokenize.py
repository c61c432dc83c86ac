"""Text from tokens as they come."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from sloserve.engine.detokenize import Detokenizer
from sloserve.engine.tokenizer import ByteTokenizer

BYTES = ByteTokenizer()


class Words(ByteTokenizer):
    """A word per token, as SentencePiece has it: the space in front is part of the word."""

    words = ("▁Hello", "▁world", "ly", "▁", "!")
    context_free = False

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        text = "".join(self.words[i] for i in ids).replace("▁", " ")
        return text.removeprefix(" ")


def pushed(ids: Sequence[int]) -> list[str]:
    detokenizer = Detokenizer(BYTES)
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.flush()]


@given(st.text(max_size=60))
def test_the_pieces_make_the_text_and_none_holds_half_a_character(text: str) -> None:
    pieces = pushed(text.encode())  # bytes, even where they spell a special token
    assert "".join(pieces) == text
    assert all("�" not in piece or "�" in text for piece in pieces)


@given(st.lists(st.one_of(st.integers(0, 258), st.sampled_from("é🙂b".encode())), max_size=60))
def test_tokens_taken_one_by_one_and_in_a_window_make_the_same_text(ids: list[int]) -> None:
    class Windowed(ByteTokenizer):
        context_free = False

    by_token, by_window = Detokenizer(BYTES), Detokenizer(Windowed())
    for token_id in ids:
        assert by_token.push(token_id) == by_window.push(token_id)
    assert by_token.flush() == by_window.flush()


@given(st.lists(st.integers(0, 255), max_size=60))
def test_bytes_that_are_no_text_come_out_as_they_decode(ids: list[int]) -> None:
    assert "".join(pushed(ids)) == BYTES.decode(ids)


def test_a_character_appears_with_its_last_byte() -> None:
    assert pushed(list("aé🙂b".encode())) == ["a", "", "é", "", "", "", "🙂", "b", ""]


def test_an_unfinished_character_is_shown_at_the_end_as_what_it_is() -> None:
    assert pushed([0xF0, 0x9F]) == ["", "", "�"]


def test_endless_rubbish_is_not_held_forever() -> None:
    detokenizer = Detokenizer(BYTES)
    shown = "".join(detokenizer.push(0xE2) for _ in range(100))
    assert len(shown) >= 80


def test_spaces_between_words_survive_and_the_first_depends_on_the_prompt() -> None:
    words = Words()
    fresh = Detokenizer(words)
    assert [fresh.push(i) for i in (0, 1, 2, 4)] == ["Hello", " world", "ly", "!"]
    after = Detokenizer(words, before=[0])
    assert [after.push(i) for i in (1, 2)] == [" world", "ly"]


def test_half_a_character_at_the_end_of_the_prompt_stays_the_prompts() -> None:
    detokenizer = Detokenizer(BYTES, before=[0xF0, 0x9F])
    assert detokenizer.push(ord("a")) == "a"


def test_special_tokens_are_skipped_or_shown() -> None:
    ids = BYTES.encode("a</think>b")
    assert len(ids) == 3
    shown = Detokenizer(BYTES, skip_special=False)
    assert "".join(shown.push(i) for i in ids) == "a</think>b"
    assert "".join(pushed(ids)) == "ab"


def test_the_work_per_token_does_not_grow_with_the_answer() -> None:
    class Counting(ByteTokenizer):
        longest = 0

        def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
            self.longest = max(self.longest, len(ids))
            return super().decode(ids, skip_special=skip_special)

    counting = Counting()
    detokenizer = Detokenizer(counting)
    for token_id in ("ab🙂é" * 200).encode():
        detokenizer.push(token_id)
    assert counting.longest <= 8
