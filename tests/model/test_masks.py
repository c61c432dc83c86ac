"""Tokens under a grammar's mask, and tokens that are never to come: drawn, and served."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.model.byte_grammars import END, SIZE, regex, sizes_schema, small_config

from sloserve.engine.runner import StepRow
from sloserve.engine.sampling import SamplingParams
from sloserve.grammar.matcher import Grammar, Matcher
from sloserve.model.sampler import Sampler


def a_row(
    sampling: SamplingParams,
    matcher: Matcher | None = None,
    *,
    key: int = 1,
    output: Sequence[int] = (),
) -> StepRow:
    tokens = [7, *output]
    return StepRow(key, tokens, 1, len(tokens) - 1, 1, [0], True, sampling, matcher)


def drawn(rows: Sequence[StepRow], logits: torch.Tensor | None = None) -> list[int]:
    torch.manual_seed(3)
    given = torch.randn(len(rows), SIZE) if logits is None else logits.clone()
    sampled = Sampler(eos_ids=(END,), entropy=1).sample(given, rows)
    return [one.token_id if one.token_id is not None else -1 for one in sampled]


@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
def test_only_what_the_mask_allows_is_drawn(temperature: float) -> None:
    grammar = regex("[a-c]x")
    sampling = SamplingParams(temperature=temperature, grammar=grammar)
    rows = [a_row(sampling, grammar.matcher(), key=key) for key in range(300)]
    found = set(drawn(rows))
    assert found <= set(b"abc")
    assert temperature < 1 or found == set(b"abc")


def test_the_best_allowed_token_is_the_greedy_one_and_others_are_not_touched() -> None:
    logits = torch.zeros(3, SIZE)
    logits[:, 5], logits[:, ord("b")] = 9.0, 1.0
    grammar = regex("[abc]")
    greedy, plain = SamplingParams(temperature=0.0, grammar=grammar), SamplingParams(temperature=0)
    free = a_row(greedy, None, key=2)  # still thinking: its grammar does not bind yet
    rows = [a_row(plain, key=1), free, a_row(greedy, grammar.matcher(), key=3)]
    assert drawn(rows, logits) == [5, 5, ord("b")]


def test_a_bias_and_penalties_weigh_only_what_is_allowed() -> None:
    grammar = regex("[ab]{4}")
    biased = SamplingParams(temperature=0.0, logit_bias={5: 100.0, 98: 5.0}, grammar=grammar)
    assert drawn([a_row(biased, grammar.matcher())], torch.zeros(1, SIZE)) == [98]
    matcher = grammar.matcher()
    matcher.accept(97)
    repeated = SamplingParams(temperature=0.0, frequency_penalty=1.0, grammar=grammar)
    assert drawn([a_row(repeated, matcher, output=[97])], torch.zeros(1, SIZE)) == [98]


def test_the_grammar_wins_where_nothing_else_would_be_left() -> None:
    grammar = regex("(ab)*")
    early = SamplingParams(temperature=0.0, min_tokens=9, grammar=grammar)
    logits = torch.zeros(1, SIZE)
    logits[0, END] = 5.0
    assert drawn([a_row(early, grammar.matcher())], logits) == [97]  # the end is too early
    only_b = grammar.matcher()
    only_b.accept(97)
    banned = SamplingParams(temperature=0.0, suppress=(98,), grammar=grammar)
    assert drawn([a_row(banned, only_b, output=[97])], logits) == [98]


def test_logprobs_under_a_mask_are_the_models_own() -> None:
    grammar = regex("[ab]")
    sampling = SamplingParams(temperature=0.0, logprobs=1, grammar=grammar)
    logits = torch.zeros(1, SIZE)
    logits[0, 5] = 3.0
    row = a_row(sampling, grammar.matcher())
    (one,) = Sampler(eos_ids=(END,), entropy=1).sample(logits.clone(), [row])
    assert one.token_id == 97
    assert one.logprobs is not None
    expected = logits.log_softmax(-1)[0]
    assert one.logprobs.logprob == pytest.approx(float(expected[97]), abs=1e-6)
    assert one.logprobs.top[0][0] == 5
    assert one.mask_s > 0


def test_a_mask_longer_or_shorter_than_the_logits_is_cut_to_them() -> None:
    grammar = regex("[ab]")
    sampling = SamplingParams(temperature=0.0, grammar=grammar)
    for size in (200, 320):
        assert drawn([a_row(sampling, grammar.matcher())], torch.zeros(1, size)) == [97]


def test_suppressed_tokens_never_come_and_some_only_not_first() -> None:
    logits = torch.zeros(1, SIZE)
    logits[0, 4], logits[0, 5], logits[0, 6] = 3.0, 2.0, 1.0
    sampling = SamplingParams(temperature=0.0, suppress=(4,), suppress_first=(5,))
    assert drawn([a_row(sampling)], logits) == [6]
    assert drawn([a_row(sampling, output=[6])], logits) == [5]
    hot = SamplingParams(temperature=2.0, suppress=(4, 5))
    assert not {4, 5} & set(drawn([a_row(hot, key=k) for k in range(200)], logits.repeat(200, 1)))


def test_grammars_survive_preemption_and_company(
    the_world: Any, a_service: Any, a_talk: Any
) -> None:
    world = the_world("masks", small_config())
    grammar = sizes_schema(least=1, most=3)
    service = a_service(world.runner, num_blocks=8, max_batch_tokens=64)

    def talk(i: int, grammar: Grammar | None) -> Any:
        sampling = SamplingParams(temperature=1.5, seed=i, grammar=grammar)
        return a_talk([40 + i, 41, 42], 90, sampling, joins=2 * i)

    talks = [talk(i, grammar if i % 2 else None) for i in range(6)]
    answers = service.run(*talks)
    assert service.scheduler.counters.num_preemptions > 0
    for i, (tokens, _) in enumerate(answers):
        if not i % 2:
            assert len(tokens) == 90
            continue
        text = bytes(tokens).decode()
        value = json.loads(text)
        assert value["kind"] in ("short", "rather long")
        assert 1 <= len(value["sizes"]) <= 3
