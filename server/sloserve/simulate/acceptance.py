"""
How many of a request's drafts are right: given as chances, or as it was in answers of a real model.

An acceptance file is JSON: `{"requests": {CLASS: [TEXT, ...]}}`, CLASS "" for every class not
named, and each TEXT either `{"alphas": [...]}` or `{"grades": "...", "rights": "..."}`. A request
takes one of its class's texts by its number, so every policy meets the same ones.
"""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sloserve.errors import BadInput

FIELD = "--acceptance"
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
"""Of `rights`: at most 35 drafts of one place are told apart."""
MAX_RIGHT = len(DIGITS) - 1
GRADES = "0123"


@dataclass(frozen=True, slots=True)
class Chances:
    """
    Draft j is right with `alphas[j]` when those before it were; the last stands for all beyond.

    expected tokens of a step with n drafts = 1 + sum_{j < n} prod_{i <= j} alphas[i]
    """

    alphas: tuple[float, ...]

    def grade(self, place: int) -> int:
        """The drafter knows nothing of how good its drafts are."""
        return 0

    def offers(self, place: int) -> bool:
        """There is always something to propose."""
        return True

    def num_right(self, place: int, num: int, dice: random.Random) -> int:
        """How many of `num` drafts are right: the first that is not ends them."""
        last = len(self.alphas) - 1
        for draft in range(num):
            if dice.random() >= self.alphas[min(draft, last)]:
                return draft
        return num


@dataclass(frozen=True, slots=True)
class Recorded:
    """
    What the n-gram drafter came to in a real answer, one digit for each place from 1 on.

    Place n is where n tokens of the answer are known. `grades`: tokens that agreed (0: nothing was
    proposed); `rights`: how many drafts in a row were right. A longer answer begins again at 1.
    """

    grades: str
    rights: str

    def grade(self, place: int) -> int:
        """How good the drafter thought its proposal was."""
        return int(self.grades[(place - 1) % len(self.grades)])

    def offers(self, place: int) -> bool:
        """Whether something was proposed."""
        return self.grade(place) > 0

    def num_right(self, place: int, num: int, dice: random.Random) -> int:
        """Of the first `num` drafts."""
        return min(num, DIGITS.index(self.rights[(place - 1) % len(self.rights)]))


Text = Chances | Recorded


@dataclass(frozen=True, slots=True)
class AcceptanceProfile:
    """Texts of requests by class; "" for every class not named."""

    name: str
    texts: Mapping[str, Sequence[Text]]

    def of(self, slo_class: str, number: int) -> Text:
        """The text of request `number`."""
        own = self.texts.get(slo_class) or self.texts.get("") or NOTHING
        return own[number % len(own)]

    @property
    def is_recorded(self) -> bool:
        """Whether some of it was seen with n-gram drafts."""
        return any(isinstance(text, Recorded) for own in self.texts.values() for text in own)


NOTHING: Sequence[Text] = (Chances((0.0,)),)
"""Of a class that nothing is said about."""


def constant(*alphas: float) -> AcceptanceProfile:
    """The same chances for everyone."""
    return AcceptanceProfile(",".join(f"{a:g}" for a in alphas), {"": (Chances(alphas),)})


def parse_acceptance(words: Iterable[str]) -> AcceptanceProfile:
    """
    `0.7`, `0.8,0.6,0.4` (by position) or a file, each also as CLASS:...; raises BadInput.

    What is said last of a class holds. A file given for a class stands for that class alone.
    """
    texts: dict[str, Sequence[Text]] = {}
    names = []
    for word in words:
        names.append(word)
        label, path = _split(word)
        if path is None:
            texts[label] = (_chances(word.rpartition(":")[2], shown=word),)
        elif label:
            own = read_acceptance(path).texts
            texts[label] = own.get(label) or own.get("") or NOTHING
        else:
            texts |= read_acceptance(path).texts
    return AcceptanceProfile(" ".join(names), texts)


def read_acceptance(path: Path) -> AcceptanceProfile:
    """The profile in a file; raises BadInput."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        classes = raw["requests"].items()
        texts = {name: tuple(_text(one) for one in listed) for name, listed in classes}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f"{path} is no acceptance file ({type(error).__name__}: {error}); expected"
            ' {"requests": {"": [{"alphas": [0.7]}]}}, as bench/acceptance.py writes it',
            field=FIELD,
        ) from error
    if not all(texts.values()):
        raise BadInput(f"{path} names a class without texts", field=FIELD)
    return AcceptanceProfile(path.stem, texts)


def _split(word: str) -> tuple[str, Path | None]:
    """(class, file); no file where chances are given."""
    if Path(word).is_file():
        return "", Path(word)
    label, _, rest = word.partition(":")
    if rest and Path(rest).is_file():
        return label, Path(rest)
    return (label if rest else ""), None


def _chances(text: str, *, shown: str) -> Chances:
    try:
        alphas = tuple(float(part) for part in text.split(","))
    except ValueError:
        alphas = (-1.0,)
    return _checked(alphas, shown=shown)


def _checked(alphas: Sequence[float], *, shown: str) -> Chances:
    if not alphas or not all(0.0 <= alpha <= 1.0 for alpha in alphas):
        raise BadInput(
            f"{shown!r} is no file, nor chances within 0 to 1, by position: 0.7 or 0.8,0.6,0.4",
            field=FIELD,
        )
    return Chances(tuple(alphas))


def _text(raw: Mapping[str, Any]) -> Text:
    if "alphas" in raw:
        return _checked([float(alpha) for alpha in raw["alphas"]], shown=str(raw["alphas"]))
    grades, rights = str(raw["grades"]), str(raw["rights"])
    if not grades or len(grades) != len(rights):
        raise ValueError(f"{len(grades)} grades and {len(rights)} rights, as many of each needed")
    if not set(grades) <= set(GRADES) or not set(rights) <= set(DIGITS):
        raise ValueError("grades are 0 to 3, rights are 0 to 9 and a to z")
    return Recorded(grades, rights)
