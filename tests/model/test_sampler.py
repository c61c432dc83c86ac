"""Tokens come out of the distribution asked for."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from sloserve.engine.runner import StepRow
from sloserve.engine.sampling import SamplingParams
from sloserve.model.chance import uniforms
from sloserve.model.draw import invert, keep_likely
from sloserve.model.sampler import Sampler

EOS = 2
LOGITS = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -8.0])


def a_row(
    sampling: SamplingParams,
    *,
    key: int = 1,
    prompt: Sequence[int] = (7,),
    output: Sequence[int] = (),
) -> StepRow:
    tokens = [*prompt, *output]
    return StepRow(
        request_id=key,
        tokens=tokens,
        num_prompt=len(prompt),
        start=len(tokens) - 1,
        count=1,
        block_table=[0],
        sample=True,
        sampling=sampling,
    )


def a_sampler(entropy: int = 1) -> Sampler:
    return Sampler(eos_ids=(EOS,), entropy=entropy)


def draws(
    sampling: SamplingParams, *, num: int = 4000, logits: torch.Tensor = LOGITS
) -> Counter[int]:
    """First tokens of `num` requests."""
    rows = [a_row(sampling, key=key) for key in range(num)]
    sampled = a_sampler().sample(logits.repeat(num, 1), rows)
    return Counter(s.token_id for s in sampled if s.token_id is not None)


def chi_square(counts: Counter[int], expected: Sequence[float]) -> float:
    num = sum(counts.values())
    return sum((counts[i] - num * p) ** 2 / (num * p) for i, p in enumerate(expected) if p > 0)


def one(
    sampling: SamplingParams,
    logits: torch.Tensor,
    *,
    prompt: Sequence[int] = (7,),
    output: Sequence[int] = (),
) -> int:
    """The one token drawn for a single row."""
    row = a_row(sampling, prompt=prompt, output=output)
    token = a_sampler().sample(logits[None].clone(), [row])[0].token_id
    assert token is not None
    return token


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax_at_every_temperature(temperature: float) -> None:
    counts = draws(SamplingParams(temperature=temperature))
    expected = (LOGITS / temperature).softmax(-1).tolist()
    assert chi_square(counts, expected) < 24.3  # 7 degrees of freedom, p = 0.001


def test_the_check_itself_would_see_a_wrong_temperature() -> None:
    counts = draws(SamplingParams(temperature=1.0))
    assert chi_square(counts, (LOGITS / 1.2).softmax(-1).tolist()) > 24.3


def test_tokens_of_one_request_follow_the_softmax_too() -> None:
    sampler, sampling = a_sampler(), SamplingParams(seed=11)
    counts: Counter[int] = Counter()
    for i in range(1000):
        row = a_row(sampling, output=[0] * i)
        counts[sampler.sample(LOGITS[None].clone(), [row])[0].token_id or 0] += 1
    assert chi_square(counts, LOGITS.softmax(-1).tolist()) < 24.3


def test_top_k_keeps_the_k_most_likely() -> None:
    counts = draws(SamplingParams(top_k=3))
    assert set(counts) == {0, 1, 2}
    expected = [*LOGITS[:3].softmax(-1).tolist(), 0, 0, 0, 0, 0]
    assert chi_square(counts, expected) < 13.8  # 2 degrees of freedom, p = 0.001


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.8, 0.95, 0.9999])
def test_top_p_keeps_the_fewest_tokens_that_reach_p(top_p: float) -> None:
    weights = LOGITS.double().softmax(-1)
    kept = int((weights.cumsum(0) - weights < top_p).sum())  # LOGITS are in descending order
    counts = draws(SamplingParams(top_p=top_p))
    expected = weights.clone()
    expected[kept:] = 0
    assert max(counts) < kept
    assert chi_square(counts, (expected / expected.sum()).tolist()) < 24.3


def test_top_p_counts_within_what_top_k_left() -> None:
    weights = LOGITS[:3].softmax(-1)
    assert float(weights[0]) > 0.5  # of the three; of all eight it is less
    assert float(LOGITS.softmax(-1)[0]) < 0.5
    assert set(draws(SamplingParams(top_k=3, top_p=0.5))) == {0}


def test_min_p_drops_what_is_unlikely_beside_the_best() -> None:
    weights = LOGITS.softmax(-1)
    expected = {i for i in range(8) if float(weights[i] / weights[0]) >= 0.2}
    assert set(draws(SamplingParams(min_p=0.2))) == expected


def kept_by_the_book(weights: np.ndarray, sampling: SamplingParams) -> set[int]:
    order = np.argsort(-weights, kind="stable")
    if sampling.top_k:
        order = order[: sampling.top_k]
    goal, total, kept = sampling.top_p * weights[order].sum(), 0.0, []
    for token in order:
        kept.append(int(token))
        total += weights[token]
        if total >= goal and sampling.top_p < 1:
            break
    return {t for t in kept if weights[t] >= sampling.min_p * weights.max()}


@pytest.mark.parametrize("spread", [0.0, 0.5, 3.0, 9.0])
def test_many_filters_in_one_batch_keep_what_each_keeps_alone(spread: float) -> None:
    """Flat distributions need a full sort, peaked ones only their head; both in one call."""
    torch.manual_seed(5)
    sampling = [
        SamplingParams(top_k=k, top_p=p, min_p=m)
        for k in (0, 1, 7, 300, 2000)
        for p in (0.05, 0.9, 0.999, 1.0)
        for m in (0.0, 0.1)
    ]
    spreads = torch.tensor([[spread], [spread / 3]]).repeat(len(sampling) // 2, 1)
    weights = (torch.randn(len(sampling), 1000) * spreads).double()
    weights += torch.linspace(0, 1e-3, 1000)  # no ties
    rows = weights.softmax(-1).float().numpy()
    for row, one, kept in zip(rows, sampling, keep_likely(rows, sampling), strict=True):
        assert set(np.flatnonzero(kept)) == kept_by_the_book(row.astype(np.float64), one)
        assert (kept[kept > 0] == row[kept > 0]).all()


def test_a_large_vocabulary_is_drawn_right_at_its_ends_and_block_borders() -> None:
    vocabulary = 1000
    for token in (0, 63, 64, 127, 640, 998, 999):
        logits = torch.full((vocabulary,), -40.0)
        logits[token] = 40.0
        assert one(SamplingParams(), logits) == token
    weights = torch.zeros(3, vocabulary)
    weights[:, [63, 64, 999]] = torch.tensor([0.25, 0.25, 0.5])
    assert invert(weights, np.array([0.0, 0.26, 1 - 2.0**-32])) == [63, 64, 999]


def test_temperature_zero_takes_the_best() -> None:
    assert one(SamplingParams(temperature=0.0), LOGITS) == 0


def test_the_same_seed_gives_the_same_tokens_whatever_else_is_in_the_batch() -> None:
    torch.manual_seed(3)
    steps = [torch.randn(64) for _ in range(20)]
    seeded = SamplingParams(seed=5, top_p=0.9, temperature=0.9)

    def told(others: Sequence[SamplingParams], *, key: int, entropy: int) -> list[int]:
        sampler, output = a_sampler(entropy), list[int]()
        for i, logits in enumerate(steps):
            rows = [a_row(o, key=100 + n, output=[3] * i) for n, o in enumerate(others)]
            rows.insert(len(rows) // 2, a_row(seeded, key=key, output=output))
            batch = torch.randn(len(rows), 64)
            batch[len(others) // 2] = logits
            token = sampler.sample(batch, rows)[len(others) // 2].token_id
            output.append(token or 0)
        return output

    alone = told([], key=1, entropy=1)
    mates = [SamplingParams(), SamplingParams(temperature=0), SamplingParams(top_k=5, seed=9)]
    assert told(mates, key=2, entropy=2) == alone
    assert told([SamplingParams(min_p=0.1, presence_penalty=1.0)], key=3, entropy=3) == alone
    assert len(set(alone)) > 5


def test_other_seeds_and_unseeded_requests_differ() -> None:
    flat = torch.zeros(1, 4096)
    tokens = [
        a_sampler(entropy).sample(flat.clone(), [a_row(SamplingParams(seed=seed), key=key)])[0]
        for entropy, seed, key in [(1, 1, 1), (1, 2, 1), (1, None, 1), (1, None, 2), (2, None, 1)]
    ]
    assert len({t.token_id for t in tokens}) == 5


def test_uniform_numbers_are_uniform_and_unrelated() -> None:
    by_row = uniforms(list(range(4096)), [0] * 4096)
    by_position = uniforms([9] * 4096, list(range(4096)))
    for numbers in (by_row, by_position):
        assert 0 <= numbers.min() < numbers.max() < 1
        assert abs(numbers.mean() - 0.5) < 0.02
        assert abs(numbers.var() - 1 / 12) < 0.006
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.06


def test_repetition_penalty_weakens_tokens_of_prompt_and_output() -> None:
    logits = torch.tensor([1.0, 0.9, -1.0, -1.1])
    sampling = SamplingParams(temperature=0, repetition_penalty=1.5)
    assert one(sampling, logits, prompt=[0]) == 1
    assert one(sampling, logits, prompt=[3], output=[0]) == 1
    assert one(sampling, logits, prompt=[3]) == 0
    negative = torch.tensor([-9.0, -9.0, -1.0, -1.1])
    assert one(sampling, negative, prompt=[2]) == 3  # a negative logit is multiplied


def test_presence_penalty_counts_a_token_of_the_output_once() -> None:
    logits = torch.tensor([1.0, 0.5, 0.0])
    sampling = SamplingParams(temperature=0, presence_penalty=0.6)
    assert one(sampling, logits, prompt=[0]) == 0  # the prompt does not count
    assert one(sampling, logits, prompt=[2], output=[0]) == 1
    assert one(sampling, logits, prompt=[2], output=[0, 0, 0, 1]) == 0


def test_frequency_penalty_grows_with_every_use() -> None:
    logits = torch.tensor([1.0, 0.5, 0.0])
    sampling = SamplingParams(temperature=0, frequency_penalty=0.3)
    assert one(sampling, logits, prompt=[2, 0, 0], output=[0]) == 0
    assert one(sampling, logits, prompt=[2], output=[0, 0]) == 1


def test_penalties_follow_a_request_that_grows_beside_others() -> None:
    sampler, output = a_sampler(), list[int]()
    penalised = SamplingParams(temperature=0, presence_penalty=100.0)
    for i in range(8):
        rows = [
            a_row(SamplingParams(temperature=0), key=1, output=[0] * i),
            a_row(penalised, key=2, prompt=[7, 0], output=output),
            a_row(SamplingParams(temperature=0, frequency_penalty=9.0), key=3, output=[1] * i),
        ]
        sampled = sampler.sample(LOGITS.repeat(3, 1), rows)
        assert sampled[0].token_id == 0
        output.append(sampled[1].token_id or 0)
    assert output == list(range(8))  # each token once, best first


def test_logit_bias_forces_and_forbids() -> None:
    assert one(SamplingParams(temperature=0, logit_bias={5: 100.0}), LOGITS) == 5
    assert one(SamplingParams(temperature=0, logit_bias={0: -100.0, 1: -100}), LOGITS) == 2
    assert set(draws(SamplingParams(logit_bias={4: 100.0}), num=50)) == {4}


def test_no_end_before_min_tokens() -> None:
    logits = torch.tensor([0.0, 1.0, 5.0, 4.0])
    sampling = SamplingParams(temperature=0, min_tokens=2, stop_token_ids=(3,))
    assert one(sampling, logits) == 1  # neither eos (2) nor the stop token (3)
    assert one(sampling, logits, output=[1]) == 1
    assert one(sampling, logits, output=[1, 1]) == EOS
    ignoring = SamplingParams(temperature=0, min_tokens=2, ignore_eos=True)
    assert one(ignoring, logits) == EOS  # eos ends nothing here, so it may come


def test_logprobs_are_the_models_own_before_temperature_and_penalties() -> None:
    sampling = SamplingParams(temperature=0, logprobs=3, logit_bias={5: 100.0})
    plain = SamplingParams(temperature=0)
    rows = [a_row(plain, key=1), a_row(sampling, key=2), a_row(SamplingParams(logprobs=0), key=3)]
    first, second, third = a_sampler().sample(LOGITS.repeat(3, 1), rows)
    expected = LOGITS.log_softmax(-1)
    assert first.logprobs is None
    assert second.logprobs is not None
    assert second.logprobs.token_id == second.token_id == 5
    assert math.isclose(second.logprobs.logprob, float(expected[5]), abs_tol=1e-6)
    assert [token for token, _ in second.logprobs.top] == [0, 1, 2]
    assert math.isclose(second.logprobs.top[1][1], float(expected[1]), abs_tol=1e-6)
    assert third.logprobs is not None
    assert third.logprobs.top == ()


def test_sixteen_bit_logits_are_sampled_too() -> None:
    rows = [a_row(SamplingParams(top_p=0.9, logprobs=1), key=key) for key in range(8)]
    sampled = a_sampler().sample(LOGITS.bfloat16().repeat(8, 1), rows)
    assert all(s.token_id is not None and s.token_id < 7 for s in sampled)


def test_a_forgotten_request_leaves_nothing_behind() -> None:
    sampler = a_sampler()
    for key in range(10):
        sampler.sample(LOGITS[None].clone(), [a_row(SamplingParams(), key=key)])
        sampler.forget(key)
    assert not sampler._known
