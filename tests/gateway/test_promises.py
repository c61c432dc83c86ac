"""The counters equal what the client itself measures."""

import asyncio
from typing import Any

import pytest

from sloserve.gateway.promise import (
    MISSED,
    NOT_COUNTED,
    Judgement,
    StreamJudge,
    cancelled_whole,
    judge_whole,
)
from sloserve.slo import Bank, Emission, Promise, Stage, score

Make = Any
"""A builder from conftest."""


def a_promise(ttft_s: float = 1.0, *tpots_s: float, bank: Bank = Bank.FIRST_TOKEN) -> Promise:
    stages = tuple(Stage(f"s{i}", t) for i, t in enumerate(tpots_s or (0.1,)))
    return Promise("chat", ttft_s, stages, bank=bank)


@pytest.mark.parametrize("bank", list(Bank))
@pytest.mark.parametrize(
    "times_s",
    [
        [0.5, 0.6, 0.7],
        [1.0, 1.1],
        [1.01, 1.05],
        [0.5, 0.6, 0.71, 0.72],
        [0.2],
        [1.2],
        [0.3, 0.3, 0.3, 0.61],
    ],
)
def test_the_judge_agrees_with_the_strict_score(times_s: list[float], bank: Bank) -> None:
    promise = a_promise(bank=bank)
    judge = StreamJudge(promise, arrival_s=10.0)
    for at_s in times_s:
        judge.emit(10.0 + at_s, num_tokens=1, stage=0)
    kept = judge.finished(99.0)
    scores = score(promise, arrival_s=10.0, emissions=[Emission(10.0 + t) for t in times_s])
    assert kept.attained == scores.strict
    assert (kept.ttft_kept, kept.tpot_kept) == (scores.ttft_kept, scores.tpot_kept)
    assert judge.mean_tpot_s == pytest.approx(scores.mean_tpot_s)


@pytest.mark.parametrize("bank", list(Bank))
def test_tokens_that_come_together_are_judged_like_one_by_one(bank: Bank) -> None:
    promise = a_promise(1.0, 0.1, 0.3, bank=bank)
    groups = [(0.4, 3, 0), (0.75, 1, 0), (0.85, 4, 1), (2.3, 2, 1), (2.35, 5, 1)]
    for last in range(1, len(groups) + 1):
        together = StreamJudge(promise, arrival_s=0.0)
        alone = StreamJudge(promise, arrival_s=0.0)
        for at_s, num_tokens, stage in groups[:last]:
            together.emit(at_s, num_tokens=num_tokens, stage=stage)
            for _ in range(num_tokens):
                alone.emit(at_s, num_tokens=1, stage=stage)
        assert together.finished(9.0) == alone.finished(9.0)
        assert together.mean_tpot_s == alone.mean_tpot_s
        for now_s in (0.8, 1.2, 2.0, 2.6, 4.0):
            assert together.cancelled(now_s) == alone.cancelled(now_s)


def test_several_choices_must_all_be_kept_each_by_its_own_clock() -> None:
    judge = StreamJudge(a_promise(), arrival_s=0.0)
    for at_s in (0.5, 0.6, 0.7):
        judge.emit(at_s, num_tokens=1, stage=0, choice=0)
    judge.emit(0.9, num_tokens=1, stage=0, choice=1)
    assert judge.finished(1.0) == Judgement(True, True, True)
    judge.emit(1.2, num_tokens=1, stage=0, choice=1)
    assert judge.finished(1.2) == Judgement(True, True, False)
    judge.emit(1.2, num_tokens=1, stage=0, choice=2)
    assert judge.finished(1.2) == Judgement(True, False, False)


def test_a_cancel_counts_only_after_a_missed_due_time() -> None:
    judge = StreamJudge(a_promise(), arrival_s=0.0)
    assert judge.cancelled(0.9) == NOT_COUNTED
    assert judge.cancelled(1.1) == MISSED
    judge.emit(0.5, num_tokens=2, stage=0)
    assert judge.cancelled(0.69) == NOT_COUNTED
    assert judge.cancelled(0.71) == MISSED


def test_a_whole_answer_is_due_as_a_whole() -> None:
    promise = a_promise(1.0, 0.1, 0.5)
    due_s = 1.0 + 2 * 0.1 + 2 * 0.5
    in_time = judge_whole(promise, arrival_s=0.0, done_s=due_s - 0.001, choices=[[3, 2]])
    assert in_time == Judgement(True, True, True)
    late = judge_whole(promise, arrival_s=0.0, done_s=due_s + 0.001, choices=[[3, 2]])
    assert late == MISSED
    assert judge_whole(promise, arrival_s=0.0, done_s=1.5, choices=[[9, 0], [2, 0]]) == MISSED
    assert cancelled_whole(promise, arrival_s=0.0, at_s=0.9) == NOT_COUNTED
    assert cancelled_whole(promise, arrival_s=0.0, at_s=1.1) == MISSED


def test_late_tokens_are_counted_as_the_client_saw_them(
    gateway: Make, replica: Make, act: Make
) -> None:
    async def story() -> None:
        async with gateway(replica(), virtual=True) as world:
            acts = world.replicas[0].acts
            strict = {"x-slo-class": "strict"}
            acts.append(act(tokens=3))
            await world.ask(stream=True, headers=strict)
            assert world.judged("strict") == (1, 1, 1, 1)
            acts.append(act(tokens=3, first_s=0.501))  # TTFT 500 ms
            await world.ask(stream=True, headers=strict)
            assert world.judged("strict") == (2, 1, 2, 1)
            acts.append(act(tokens=3, gap_s=0.201))  # TPOT 200 ms
            await world.ask(stream=True, headers=strict)
            assert world.judged("strict") == (3, 2, 2, 1)
            acts.append(act(tokens=1))  # one token: TTFT only
            await world.ask(stream=True, headers=strict)
            assert world.judged("strict") == (4, 3, 3, 2)
            view = (await world.get("/v1/slo")).json["classes"][1]
            assert view["sinceStart"] == {
                "eligible": 4,
                "attained": 2,
                "ttftKept": 3,
                "tpotKept": 3,
                "attainment": 0.5,
            }
            assert view["last5m"] == view["sinceStart"]

    asyncio.run(story())


def test_an_answer_that_is_not_streamed_is_judged_by_its_usage(
    gateway: Make, replica: Make, act: Make
) -> None:
    async def story() -> None:
        async with gateway(replica(), virtual=True) as world:
            acts = world.replicas[0].acts
            strict = {"x-slo-class": "strict"}
            acts.append(act(tokens=5, gap_s=0.259))  # 1295 ms; due at 500 + 4 * 200
            answer = await world.ask(headers=strict)
            assert answer.json["choices"][0]["message"]["content"] == "w0 w1 w2 w3 w4 "
            assert world.judged("strict") == (1, 1, 1, 1)
            acts.append(act(tokens=2, gap_s=0.4))  # 800 ms; due at 500 + 200
            await world.ask(headers=strict)
            assert world.judged("strict") == (2, 1, 1, 1)

    asyncio.run(story())


def test_stages_have_their_own_pace(gateway: Make, replica: Make, act: Make, spec: Make) -> None:
    classes = [
        {
            "name": "reason",
            "ttft": {"target": "5s"},
            "stages": [
                {"name": "thinking", "tpot": "20ms", "until": "</think>"},
                {"name": "answer", "tpot": "5s"},
            ],
        }
    ]

    async def story() -> None:
        async with gateway(replica(), virtual=True, spec=spec(classes=classes)) as world:
            acts = world.replicas[0].acts
            acts.append(act(tokens=3, gap_s=0.1, stages=(0, 1, 1)))
            await world.ask(stream=True)
            assert world.judged("reason") == (1, 1, 1, 1)
            acts.append(act(tokens=3, gap_s=0.1, stages=(0, 0, 1)))
            await world.ask(stream=True)
            assert world.judged("reason") == (2, 2, 1, 1)
            acts.append(act(tokens=3, gap_s=0.1, stages=(0, 0, 1)))
            await world.ask()  # whole: TTFT and one answer token's 5 s cover it
            assert world.judged("reason") == (3, 3, 2, 2)

    asyncio.run(story())


def test_a_slowdown_is_judged_by_what_the_replica_resolved(
    gateway: Make, replica: Make, act: Make, spec: Make
) -> None:
    classes = [{"name": "slow", "ttft": {"slowdown": 2, "floor": "1ms"}, "tpot": "5s"}]

    async def story() -> None:
        async with gateway(replica(), virtual=True, spec=spec(classes=classes)) as world:
            acts = world.replicas[0].acts
            acts.append(act(ttft_ms="5000", first_s=0.1))
            answer = await world.ask(stream=True)
            assert answer.headers["x-slo-ttft-ms"] == "5000"
            acts.append(act(ttft_ms="50", first_s=0.1))
            await world.ask(stream=True)
            assert world.judged("slow") == (2, 1, 2, 1)

    asyncio.run(story())


def test_choices_of_one_stream_are_told_apart(gateway: Make, replica: Make, act: Make) -> None:
    async def story() -> None:
        async with gateway(replica(), virtual=True) as world:
            # Two choices, a token each every 300 ms: late for both at a TPOT of 200 ms,
            # although together they make a token every 150 ms.
            world.replicas[0].default = act(tokens=3, gap_s=0.3, choices=2)
            await world.ask(stream=True, n=2, headers={"x-slo-class": "strict"})
            assert world.judged("strict") == (1, 1, 0, 0)

    asyncio.run(story())


def test_every_request_is_counted_once_and_exactly(gateway: Make, replica: Make, act: Make) -> None:
    async def story() -> None:
        async with gateway(replica("a"), replica("b")) as world:
            for one in world.replicas:
                for kind in range(12):
                    one.acts.append(
                        [
                            act(),
                            act(decision="degraded"),
                            act(tokens=4, die_after=2),
                            act(status=400, decision=""),
                        ][kind % 4]
                    )
            answers = await asyncio.gather(*(world.ask(stream=True) for _ in range(20)))
            good = sum(
                a.status == 200
                and a.events[-1] == "[DONE]"
                and a.headers["x-slo-decision"] == "admitted"
                for a in answers
            )
            bad_input = sum(a.status == 400 for a in answers)
            eligible, _, _, kept = world.judged()
            assert (eligible, kept) == (20 - bad_input, good)
            text = (await world.internal("/metrics?name[]=sloserve_requests_total")).text
            lines = [line for line in text.splitlines() if not line.startswith("#")]
            assert sum(float(line.rsplit(" ", 1)[1]) for line in lines) == 20

    asyncio.run(story())
