"""Stop strings: found wherever the chunks are cut, never shown by halves."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from sloserve.engine.stops import StopFinder


def shown(finder: StopFinder, pieces: list[str]) -> tuple[str, str | None]:
    text = ""
    for piece in pieces:
        new, stop = finder.push(piece)
        text += new
        if stop is not None:
            return text, stop
    return text + finder.flush(), None


def test_what_could_become_a_stop_string_is_held_back() -> None:
    finder = StopFinder(["STOP"])
    assert finder.push("abcS") == ("abc", None)
    assert finder.push("TO") == ("", None)
    assert finder.push("P!") == ("", "STOP")


def test_what_turns_out_to_be_none_is_shown_after_all() -> None:
    finder = StopFinder(["STOP"])
    assert finder.push("ST") == ("", None)
    assert finder.push("AY") == ("STAY", None)


def test_the_end_shows_what_was_held() -> None:
    assert shown(StopFinder(["\n\n"]), ["one\n"]) == ("one\n", None)


def test_the_stop_string_is_shown_when_asked_for() -> None:
    assert shown(StopFinder(["</s>"], include=True), ["a</", "s>b"]) == ("a</s>", "</s>")


def test_the_earliest_wins() -> None:
    assert shown(StopFinder(["world", "o w"]), ["hello world"]) == ("hell", "o w")


def test_before_enough_tokens_came_nothing_stops() -> None:
    finder = StopFinder(["x"])
    assert finder.push("ax", active=False) == ("ax", None)
    assert finder.push("bx") == ("b", "x")


@given(
    text=st.text("ab", max_size=20),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    cuts=st.sets(st.integers(0, 20)),
)
def test_however_the_text_is_cut_the_result_is_that_of_the_whole(
    text: str, stops: list[str], cuts: set[int]
) -> None:
    edges = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    kept, stop = shown(StopFinder(stops), pieces)
    first = min((text.find(s) for s in stops if s in text), default=None)
    if stop is None:
        assert (first, kept) == (None, text)
    else:
        assert first is not None
        assert text.startswith(kept + stop)
        assert not any(s in kept for s in stops)
