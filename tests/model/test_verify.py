"""With drafts, tokens come out of the very distribution they come out of without."""

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from sloserve.engine.runner import Sampled, StepRow
from sloserve.engine.sampling import SamplingParams
from sloserve.model.draw import weigh
from sloserve.model.rejection import keep_or_redraw, num_equal
from sloserve.model.sampler import Sampler

SIZE = 6
CRITICAL = 22.1
"""Chi-square of six words exceeded by chance once in 2,000 times."""


@cache
def after(token: int) -> Tensor:
    dice = random.Random(token * 7 + 1)
    return torch.tensor([dice.uniform(-1.5, 1.5) for _ in range(SIZE)])


def next_logits(tokens: Sequence[int]) -> Tensor:
    """A language of six words in which the last one decides about the next."""
    return after(tokens[-1])


@cache
def draft_logits(token: int) -> Tensor:
    """A worse model of the same language."""
    return after(token) * 0.5 + 0.6 * torch.cos(torch.arange(SIZE) + token)


def draft_weights(token: int, sampling: SamplingParams) -> Tensor:
    weights = weigh(draft_logits(token)[None], [sampling])[0]
    return weights / weights.sum()


def a_row(
    key: int, sampling: SamplingParams, tokens: list[int], drafts: Sequence[int] = ()
) -> StepRow:
    return StepRow(
        request_id=key,
        tokens=tokens,
        num_prompt=2,
        start=len(tokens) - 1,
        count=1,
        block_table=[0],
        sample=True,
        sampling=sampling,
        num_drafts=len(drafts),
        drafts=drafts,
    )


Propose = Callable[[StepRow], tuple[list[int], Tensor | None]]


def certain(num: int) -> Propose:
    """Drafts without a distribution, right about as often as not."""

    def propose(row: StepRow) -> tuple[list[int], Tensor | None]:
        drafts: list[int] = []
        for _ in range(num):
            drafts.append(int(draft_logits([*row.tokens, *drafts][-1]).argmax()))
        return drafts, None

    return propose


def drawn(num: int, dice: np.random.Generator) -> Propose:
    """Drafts drawn from the worse model, as the request wants its tokens drawn."""

    laws: dict[tuple[int, float], tuple[Tensor, np.ndarray[tuple[int], np.dtype[np.float64]]]] = {}

    def propose(row: StepRow) -> tuple[list[int], Tensor | None]:
        drafts: list[int] = []
        rows = []
        for _ in range(num):
            last = [*row.tokens, *drafts][-1]
            key = (last, row.sampling.temperature)
            if key not in laws:
                weights = draft_weights(last, row.sampling)
                laws[key] = weights, weights.double().cumsum(0).numpy()
            weights, sums = laws[key]
            drafts.append(min(int((sums <= dice.random() * sums[-1]).sum()), SIZE - 1))
            rows.append(weights)
        return drafts, torch.stack(rows)

    return propose


def answers(
    sampling: Callable[[int], SamplingParams],
    propose: Propose | None,
    *,
    num: int,
    length: int = 3,
    entropy: int = 1,
) -> tuple[list[list[int]], int]:
    """`num` answers of `length` tokens to one prompt, and how many drafts were accepted."""
    sampler = Sampler(eos_ids=(), entropy=entropy)
    params = [sampling(key) for key in range(num)]
    talks = [[0, 3] for _ in range(num)]
    num_accepted = 0
    while todo := [key for key in range(num) if len(talks[key]) < 2 + length]:
        rows, weights, logits = [], {}, []
        for at, key in enumerate(todo):
            row = a_row(key, params[key], talks[key])
            drafts: list[int] = []
            if propose is not None:
                drafts, given = propose(row)
                row = a_row(key, params[key], talks[key], drafts)
                if given is not None:
                    weights[at] = given
            rows.append(row)
            logits += [next_logits([*row.tokens, *drafts[:j]]) for j in range(1 + len(drafts))]
        told = sampler.verify(torch.stack(logits), rows, weights)
        for key, one in zip(todo, told, strict=True):
            num_accepted += len(one.accepted)
            talks[key] += [s.token_id for s in (*one.accepted, one) if s.token_id is not None]
    return [talk[2 : 2 + length] for talk in talks], num_accepted


def exact(sampling: SamplingParams) -> dict[tuple[int, int], float]:
    """The law of the first two tokens."""
    law = {}
    first = weigh(next_logits([0, 3])[None], [sampling])[0].double()
    first = first / first.sum()
    for a in range(SIZE):
        second = weigh(next_logits([0, 3, a])[None], [sampling])[0].double()
        second = second / second.sum()
        for b in range(SIZE):
            law[a, b] = float(first[a] * second[b])
    return law


def chi_square(found: Counter[tuple[int, int]], law: dict[tuple[int, int], float]) -> float:
    num = sum(found.values())
    assert all(law[pair] > 0 for pair in found), "something came that can't come"
    return sum((found[pair] - num * p) ** 2 / (num * p) for pair, p in law.items() if p > 0)


SETTINGS = [
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.7),
    SamplingParams(temperature=1.3, top_k=4),
    SamplingParams(temperature=1.0, top_p=0.8),
]


@pytest.mark.parametrize("sampling", SETTINGS, ids=["plain", "cool", "top-k", "top-p"])
@pytest.mark.parametrize("kind", ["none", "certain", "drawn"])
def test_tokens_follow_the_models_law_with_and_without_drafts(
    sampling: SamplingParams, kind: str
) -> None:
    propose = {
        "none": None,
        "certain": certain(2),
        "drawn": drawn(2, np.random.default_rng(5)),
    }[kind]
    found, num_accepted = answers(lambda _: sampling, propose, num=2000)
    law = exact(sampling)
    freedom = sum(p > 0 for p in law.values()) - 1
    critical = freedom + 3.3 * math.sqrt(2 * freedom) + 6  # once in 2,000 times, about
    assert chi_square(Counter((a[0], a[1]) for a in found), law) < critical
    assert (num_accepted > 200) == (kind != "none")


def test_the_check_would_see_drafts_that_are_taken_too_easily() -> None:
    """Kept whenever the model could have said it: the law of the drafts shows through."""
    sampling = SamplingParams(temperature=1.0)
    dice, num = np.random.default_rng(5), 6000
    target = weigh(next_logits([0, 3])[None], [sampling])
    proposed = draft_weights(3, sampling)[None]
    p = target[0].double().numpy()
    drafts = dice.choice(SIZE, size=num, p=proposed[0].double() / proposed[0].double().sum())
    told = keep_or_redraw(
        target.repeat(2 * num, 1),
        proposed.repeat(num, 1),
        [[int(draft)] for draft in drafts],
        keep=dice.random(num),
        draw=dice.random(2 * num),
    )
    honest = Counter(
        int(draft) if kept else token for draft, (kept, token) in zip(drafts, told, strict=True)
    )

    def off(found: Counter[int]) -> float:
        return float(sum((found[i] - num * p[i]) ** 2 / (num * p[i]) for i in range(SIZE)))

    assert off(honest) < CRITICAL < off(Counter(int(draft) for draft in drafts))


def test_drafts_from_the_models_own_law_are_always_kept() -> None:
    weights = torch.full((3, SIZE), 1 / SIZE)
    numbers = np.array([0.999999, 0.999999, 0.5])
    ((kept, _),) = keep_or_redraw(weights, weights[:2], [[1, 4]], keep=numbers[:2], draw=numbers)
    assert kept == 2


def test_what_the_model_never_says_is_never_kept() -> None:
    target = torch.tensor([[0.0, 1.0], [0.5, 0.5]])
    proposed = torch.tensor([[1.0, 0.0]])
    zeros = np.zeros(2)
    assert keep_or_redraw(target, proposed, [[0]], keep=zeros[:1], draw=zeros) == [(0, 1)]


def test_seeds_give_the_same_text_with_and_without_drafts() -> None:
    def seeded(key: int) -> SamplingParams:
        return SamplingParams(temperature=1.0, seed=key)

    plain, _ = answers(seeded, None, num=200, length=8, entropy=1)
    for num in (1, 2, 5):
        with_drafts, num_accepted = answers(seeded, certain(num), num=200, length=8, entropy=2)
        assert with_drafts == plain
        assert num_accepted > 50


def test_greedy_text_is_the_same_with_and_without_drafts() -> None:
    def greedy(key: int) -> SamplingParams:
        return SamplingParams(temperature=0.0)

    plain, _ = answers(greedy, None, num=3, length=12)
    assert answers(greedy, certain(4), num=3, length=12)[0] == plain


PENALISED = [
    {"repetition_penalty": 1.8},
    {"presence_penalty": 1.1, "frequency_penalty": 0.7},
    {"logit_bias": {2: 1.5, 4: -100.0}},
    {"min_tokens": 4, "stop_token_ids": (1, 3)},
]


@pytest.mark.parametrize("changes", PENALISED, ids=lambda changes: next(iter(changes)))
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_penalties_count_the_drafts_before_a_token_and_none_that_was_refused(
    changes: dict[str, object], temperature: float
) -> None:
    def params(key: int) -> SamplingParams:
        return SamplingParams(temperature=temperature, seed=key, **changes)  # type: ignore[arg-type]

    plain, _ = answers(params, None, num=40, length=9)
    with_drafts, num_accepted = answers(params, certain(3), num=40, length=9)
    assert with_drafts == plain
    assert num_accepted > 0


def test_every_token_of_a_step_has_its_own_logprobs() -> None:
    sampling = SamplingParams(temperature=0.0, logprobs=2)
    sampler = Sampler(eos_ids=(), entropy=1)
    tokens = [0, 3]
    drafts: list[int] = []
    for _ in range(2):
        drafts.append(int(next_logits([*tokens, *drafts]).argmax()))
    wrong = [*drafts, (int(next_logits([*tokens, *drafts]).argmax()) + 1) % SIZE]
    logits = torch.stack([next_logits([*tokens, *wrong[:j]]) for j in range(4)])
    (told,) = sampler.verify(logits, [a_row(1, sampling, tokens, wrong)])
    assert [one.token_id for one in told.accepted] == drafts
    assert told.num_drafted == 3
    at: list[int] = list(tokens)
    for one in (*told.accepted, told):
        assert one.token_id is not None
        assert one.logprobs is not None
        expected = next_logits(at).log_softmax(-1)
        assert one.logprobs.token_id == one.token_id
        assert one.logprobs.logprob == pytest.approx(float(expected[one.token_id]))
        assert len(one.logprobs.top) == 2
        at.append(one.token_id)


def test_rows_with_and_without_drafts_share_a_step() -> None:
    sampling = SamplingParams(temperature=0.0)
    best = int(next_logits([0, 3]).argmax())
    then = int(next_logits([0, 3, best]).argmax())
    rows = [
        a_row(1, sampling, [0, 3]),
        a_row(2, sampling, [0, 3], [best]),
        a_row(3, sampling, [0, 3], [(best + 1) % SIZE, 0]),
    ]
    logits = [next_logits([0, 3])]
    logits += [next_logits([0, 3]), next_logits([0, 3, best])]
    logits += [next_logits([0, 3]), next_logits([0, 3, 0]), next_logits([0, 3, 0, 0])]
    told = Sampler(eos_ids=(), entropy=1).verify(torch.stack(logits), rows)
    assert told[0] == Sampled(best)
    assert (len(told[1].accepted), told[1].token_id) == (1, then)
    assert (len(told[2].accepted), told[2].token_id) == (0, best)


def test_drafts_count_as_long_as_they_agree() -> None:
    assert num_equal([1, 2, 3], [1, 2, 4]) == 2
    assert num_equal([1, 2], [1, 2, 4]) == 2
    assert num_equal([5], [1]) == 0
    assert num_equal([], []) == 0
