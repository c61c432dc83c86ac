"""Answers that follow a grammar, with drafts: the law and the text they have without."""

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.model.byte_grammars import END, SIZE, regex, sizes_schema, small_config
from torch import Tensor

from sloserve.engine.ngram import NgramDrafter
from sloserve.engine.runner import Sampled, StepRow
from sloserve.engine.sampling import SamplingParams
from sloserve.model.drafting import DraftModel
from sloserve.model.draw import weigh
from sloserve.model.gathered import Gathered
from sloserve.model.kv import KvCache
from sloserve.model.sampler import Sampler
from sloserve.model.structure import attention_layers
from sloserve.scheduler import RunnerDrafts, Speculating

WORDS = b"abcd"
PAIRS = ("aa", "ac", "ba", "bb", "bd", "d")
"""What the grammar of the laws allows: the second letter hangs on the first, one ends early."""


# --- laws -------------------------------------------------------------------------------------


def next_logits(last: int, *, worse: bool = False) -> Tensor:
    """A language of four letters, of which the last decides about the next; or a worse model."""
    dice = random.Random(last)
    logits = torch.full((SIZE,), -20.0)
    logits[END] = 0.3
    for letter in WORDS:
        logits[letter] = dice.uniform(-1.0, 1.0)
    return 0.4 * logits + 0.5 * torch.cos(torch.arange(SIZE)) if worse else logits


def law_of(weights: Callable[[int], Tensor], allowed: Callable[[bytes], set[int]]) -> Any:
    """Of the first two tokens, by the definition: weights of what is allowed, made to sum to 1."""
    law: dict[bytes, float] = {}

    def step(said: bytes, chance: float) -> None:
        if len(said) == 2 or not allowed(said):
            law[said] = law.get(said, 0.0) + chance
            return
        row = weights(said[-1] if said else 7).double()
        total = float(sum(row[token] for token in allowed(said)))
        for token in allowed(said):
            step(said + bytes([token]), chance * float(row[token]) / total)

    step(b"", 1.0)
    return law


def after(said: bytes) -> set[int]:
    text = said.decode()
    return {ord(p[len(text)]) for p in PAIRS if p.startswith(text) and len(p) > len(text)}


@pytest.mark.parametrize("kind", ["none", "certain", "drawn"])
@pytest.mark.parametrize("temperature", [0.8, 1.4])
def test_tokens_follow_the_law_under_the_mask_with_and_without_drafts(
    kind: str, temperature: float
) -> None:
    grammar = regex("|".join(PAIRS))
    sampling = SamplingParams(temperature=temperature, grammar=grammar)
    sampler = Sampler(eos_ids=(END,), entropy=3)
    dice = np.random.default_rng(11)
    num, num_accepted, num_forbidden = 2000, 0, 0
    talks: list[list[int]] = [[7] for _ in range(num)]
    matchers = [grammar.matcher() for _ in range(num)]
    while todo := [key for key in range(num) if not matchers[key].ended]:
        rows: list[StepRow] = []
        logits: list[Tensor] = []
        weights: dict[int, Tensor] = {}
        for at, key in enumerate(todo):
            tokens, drafts, laws = talks[key], list[int](), list[Tensor]()
            for _ in range(0 if kind == "none" else 2):
                worse = next_logits([*tokens, *drafts][-1], worse=True)
                law = weigh(worse[None], [sampling])[0]
                laws.append(law / law.sum())
                if kind == "drawn":
                    p = laws[-1].double().numpy()
                    drafts.append(int(dice.choice(SIZE, p=p / p.sum())))
                else:
                    drafts.append(int(dice.choice(list(WORDS))))
            num_forbidden += matchers[key].num_fitting(drafts) < len(drafts)
            if kind == "drawn":
                weights[at] = torch.stack(laws)
            rows.append(
                StepRow(key, tokens, 1, len(tokens) - 1, 1, [0], True, sampling, matchers[key],
                        len(drafts), drafts)
            )  # fmt: skip
            logits += [next_logits([*tokens, *drafts][len(tokens) - 1 + j])
                       for j in range(1 + len(drafts))]  # fmt: skip
        for key, one in zip(todo, sampler.verify(torch.stack(logits), rows, weights), strict=True):
            num_accepted += len(one.accepted)
            for token in (*one.accepted, one):
                assert token.token_id is not None
                if not matchers[key].ended:
                    matchers[key].accept(token.token_id)
                    talks[key].append(token.token_id)
            assert not matchers[key].failure
    found = Counter(bytes(talk[1:]) for talk in talks)
    law = law_of(lambda last: weigh(next_logits(last)[None], [sampling])[0], after)
    assert set(found) <= set(law) == {pair.encode() for pair in PAIRS}
    off = sum((found[pair] - num * p) ** 2 / (num * p) for pair, p in law.items())
    freedom = len(law) - 1
    assert off < freedom + 3.3 * math.sqrt(2 * freedom) + 6  # once in 2,000 times, about
    assert (num_accepted > 100) == (num_forbidden > 100) == (kind != "none")


def test_what_masks_took_is_told_with_drafts_too() -> None:
    grammar = regex("[ab]{5}")
    sampling = SamplingParams(temperature=0.0, grammar=grammar)
    row = StepRow(1, [7], 1, 0, 1, [0], True, sampling, grammar.matcher(), 2, list(b"ab"))
    logits = torch.zeros(3, SIZE)
    logits[:, 5] = 9.0
    (one,) = Sampler(eos_ids=(END,), entropy=1).verify(logits, [row])
    assert [s.token_id for s in (*one.accepted, one)] == [*b"aa"]
    assert (one.num_drafted, len(one.accepted)) == (2, 1)
    assert one.mask_s > 0


# --- text -------------------------------------------------------------------------------------

TURNS = r"(la|lo)( (la|lo)){4,20}\."


@pytest.fixture(scope="module")
def world(the_world: Any) -> Any:
    return the_world("shaped", small_config(eos_token_id=END))


@pytest.fixture
def a_drafter(world: Any) -> DraftModel:
    """The model itself; it knows nothing of grammars."""
    cache = KvCache(
        [layer.shape for layer in attention_layers(world.plain, max_model_len=256)],
        num_blocks=world.runner.cache.num_blocks,
        block_size=world.runner.cache.block_size,
        dtype=torch.float32,
        device=torch.device("cpu"),
        path=Gathered(),
    )
    return DraftModel(world.runner.model, cache=cache, vocab_size=SIZE, max_len=256, entropy=1)


def talks_of(a_talk: Any, sampling: SamplingParams) -> list[Any]:
    """Seven: three of a schema, three of an expression that goes in turns, one as it likes."""
    schema = sizes_schema(least=3, most=8)
    turns = regex(TURNS)
    prompts = [list(b"sizes: 11, 11, 11"), list(b"la la lo la la lo"), list(b"and so on and so on")]
    return [
        a_talk(
            prompts[i % 3] + [60 + i],
            90,
            replace(sampling, seed=i if sampling.seed is not None else None,
                    grammar=None if i == 6 else (schema, turns)[i % 2]),
            joins=2 * i,
        )
        for i in range(7)
    ]  # fmt: skip


def answers(
    a_service: Any, world: Any, talks: Sequence[Any], speculating: Speculating | None,
    *, num_blocks: int = 60, drafter: DraftModel | None = None,
) -> tuple[list[bytes], Any]:  # fmt: skip
    service = a_service(world.runner, num_blocks=num_blocks, max_batch_tokens=48)
    service.scheduler.speculating = speculating
    service.runner.drafter = drafter
    found = [tokens for tokens, _ in service.run(*talks)]
    assert service.scheduler.blocks.num_free == num_blocks
    return [bytes(t for t in tokens if t < END) for tokens in found], service.scheduler.counters


def fits(text: bytes, talk: Any, *, cut: bool = False) -> bool:
    """Whether an answer is in shape, and whole unless it was `cut`."""
    if talk.sampling.grammar is None:
        return True
    matcher = talk.sampling.grammar.matcher()
    for token in text:
        if matcher.ended:
            return False
        matcher.accept(token)
    whole = matcher.ended or bool(matcher.mask()[END // 8] >> END % 8 & 1)
    return not matcher.failure and (whole or cut or len(text) == talk.num_output)


SAMPLINGS = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.0, frequency_penalty=0.3, suppress=(ord("9"),)),
    SamplingParams(temperature=1.2, top_p=0.9, seed=0),
]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "penalised", "seeded"])
@pytest.mark.parametrize("num_blocks", [60, 12])
@pytest.mark.parametrize("written", ["out of the text", "by a model"])
def test_the_text_is_the_same_with_and_without_drafts(
    sampling: SamplingParams, num_blocks: int, written: str, world: Any, a_drafter: DraftModel,
    a_service: Any, a_talk: Any,
) -> None:  # fmt: skip
    talks = talks_of(a_talk, sampling)
    plain, _ = answers(a_service, world, talks, None)
    assert all(fits(text, talk) for text, talk in zip(plain, talks, strict=True))
    by_model = written == "by a model"
    drafted, counters = answers(
        a_service,
        world,
        talks_of(a_talk, sampling),
        Speculating(RunnerDrafts() if by_model else NgramDrafter(), fixed=4),
        num_blocks=num_blocks,
        drafter=a_drafter if by_model else None,
    )
    assert drafted == plain
    assert counters.accepted_drafts > 0
    assert (counters.num_preemptions > 0) == (num_blocks < 20)


def test_drafts_that_the_grammar_forbids_are_not_even_tried(
    world: Any, a_service: Any, a_talk: Any
) -> None:
    sampling = SamplingParams(temperature=0.0, grammar=regex("(ab|c){40}"))
    talk = a_talk([*b"abxabxab", 65], 60, sampling)
    service = a_service(world.runner, num_blocks=60, max_batch_tokens=48)
    service.scheduler.speculating = Speculating(NgramDrafter(), fixed=6)
    seen: list[tuple[int, int]] = []
    plain_step = service.runner.step

    def step(rows: Sequence[StepRow]) -> list[Sampled]:
        for row in rows:
            if row.drafts:
                assert row.matcher is not None
                seen.append((row.matcher.num_fitting(row.drafts), len(row.drafts)))
        sampled: list[Sampled] = plain_step(rows)
        return sampled

    service.runner.step = step
    service.run(talk)
    assert seen
    assert all(fitting == num for fitting, num in seen)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("written", ["out of the text", "by a model"])
def test_grammars_drafts_preemption_and_cancels_leave_the_books_in_order(
    seed: int, written: str, world: Any, a_drafter: DraftModel,
    a_service: Any, a_talk: Any,
) -> None:  # fmt: skip
    dice = random.Random(seed)
    by_model = written == "by a model"
    talks = []
    for i in range(18):
        temperature = dice.choice([0.0, 0.7, 1.3])
        sampling = SamplingParams(temperature=temperature, seed=dice.choice([None, 5]))
        talk = talks_of(a_talk, sampling)[i % 7]
        talk.prompt = [*talk.prompt, *dice.choices(range(97, 123), k=dice.randrange(30))]
        talk.joins = dice.randrange(60)
        talk.leaves = talk.joins + 1 + dice.randrange(50) if i % 3 == 0 else None
        talks.append(talk)
    service = a_service(world.runner, num_blocks=dice.choice([12, 16]), max_batch_tokens=48)
    drafter = RunnerDrafts() if by_model else NgramDrafter()
    service.scheduler.speculating = Speculating(drafter, fixed=dice.choice([2, 5]))
    service.runner.drafter = a_drafter if by_model else None
    found = service.run(*talks)  # looks at the books after every turn
    for talk, (tokens, _) in zip(talks, found, strict=True):
        assert tokens or talk.leaves is not None
        assert fits(bytes(t for t in tokens if t < END), talk, cut=talk.leaves is not None)
    counters = service.scheduler.counters
    assert counters.num_preemptions > 0
    assert counters.accepted_drafts > 0
    assert service.scheduler.blocks.num_free == service.scheduler.limits.num_blocks
    assert not a_drafter._computed
