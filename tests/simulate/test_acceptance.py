"""How many drafts are right: chances by position, and what was recorded of real answers."""

import json
import random
from itertools import accumulate
from math import prod
from operator import mul
from pathlib import Path

import pytest

from sloserve.errors import BadInput
from sloserve.simulate.acceptance import (
    AcceptanceProfile,
    Chances,
    Recorded,
    constant,
    parse_acceptance,
    read_acceptance,
)


@pytest.mark.parametrize("alphas", [(0.7,), (0.9, 0.5, 0.2), (1.0,), (0.0,)])
@pytest.mark.parametrize("num", [1, 4, 8])
def test_the_mean_of_right_drafts_is_the_sum_of_products_of_chances(
    alphas: tuple[float, ...], num: int
) -> None:
    by_position = [alphas[min(j, len(alphas) - 1)] for j in range(num)]
    expected = sum(accumulate(by_position, mul))
    assert expected == pytest.approx(sum(prod(by_position[: n + 1]) for n in range(num)))
    dice, text = random.Random(1), Chances(alphas)
    seen = [text.num_right(1, num, dice) for _ in range(20_000)]
    assert sum(seen) / len(seen) == pytest.approx(expected, abs=0.04)


def test_a_record_is_played_back_place_by_place_and_begins_again() -> None:
    text = Recorded(grades="0131", rights="05a1")
    assert [text.offers(place) for place in range(1, 6)] == [False, True, True, True, False]
    assert [text.grade(place) for place in range(1, 5)] == [0, 1, 3, 1]
    right = [text.num_right(place, 8, random.Random(0)) for place in range(1, 8)]
    assert right == [0, 5, 8, 1, 0, 5, 8]
    assert text.num_right(3, 32, random.Random(0)) == 10


def test_every_request_keeps_the_text_of_its_number() -> None:
    one, other = Chances((0.1,)), Chances((0.9,))
    profile = AcceptanceProfile("two", {"": (one, other), "code": (other,)})
    assert [profile.of("chat", n) for n in range(3)] == [one, other, one]
    assert profile.of("code", 0) == other
    assert AcceptanceProfile("code only", {"code": (other,)}).of("chat", 0).alphas == (0.0,)  # type: ignore[union-attr]


def test_chances_and_files_are_given_for_all_or_for_a_class(tmp_path: Path) -> None:
    path = tmp_path / "said.json"
    path.write_text(
        json.dumps(
            {"requests": {"": [{"alphas": [0.3]}], "code": [{"grades": "3", "rights": "8"}]}}
        )
    )
    profile = parse_acceptance(["0.8,0.5", f"code:{path}"])
    assert profile.texts == {"": (Chances((0.8, 0.5)),), "code": (Recorded("3", "8"),)}
    assert profile.is_recorded
    assert parse_acceptance([str(path), "chat:0.1"]).texts == {
        "": (Chances((0.3,)),),
        "code": (Recorded("3", "8"),),
        "chat": (Chances((0.1,)),),
    }
    assert not constant(0.7).is_recorded


@pytest.mark.parametrize("word", ["1.5", "often", "0.5,,0.2", "", "chat:", "chat:-1", "nan"])
def test_what_is_neither_a_file_nor_chances_is_refused(word: str) -> None:
    with pytest.raises(BadInput, match="is no file, nor chances within 0 to 1"):
        parse_acceptance([word])


@pytest.mark.parametrize(
    "content",
    [
        "not json",
        "[]",
        '{"requests": {"": [{"grades": "12", "rights": "1"}]}}',
        '{"requests": {"": [{"grades": "9", "rights": "1"}]}}',
        '{"requests": {"": [{"grades": "", "rights": ""}]}}',
        '{"requests": {"": [{}]}}',
    ],
)
def test_a_broken_file_is_refused_with_its_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(BadInput, match=r"broken\.json is no acceptance file"):
        read_acceptance(path)


def test_a_class_without_texts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.json"
    path.write_text('{"requests": {"chat": []}}')
    with pytest.raises(BadInput, match="names a class without texts"):
        read_acceptance(path)
