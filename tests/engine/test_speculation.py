"""Several tokens of one step, through the whole loop."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from sloserve.engine.events import Broken, Chunk
from sloserve.engine.ngram import NgramDrafter
from sloserve.engine.runner import ModelFacts, Sampled, StepRow
from sloserve.engine.sim import SimRunner, sim_facts
from sloserve.engine.tokenizer import ByteTokenizer
from sloserve.grammar.compiler import Compiler, Vocabulary
from sloserve.grammar.constraint import Constraint, Kind
from sloserve.grammar.matcher import Grammar
from sloserve.perf import StepModel
from sloserve.scheduler import Proposal, RunnerDrafts, Speculating
from sloserve.slo import Stage

MODEL = StepModel(w=0.010, a0=0.0, c1=0.002, a1=0.0001, b=0.0, d=0.0, k2=0.0001)
FACTS = sim_facts(block_size=4, num_blocks=256, max_model_len=512)


class Verifying:
    """A runner whose answers are told beforehand; drafts are right where they say the same."""

    def __init__(self, *answers: Sequence[int], facts: ModelFacts = FACTS) -> None:
        self.facts = facts
        self.num_steps = 0
        self._answers = list(answers)
        self._of: dict[int, Sequence[int]] = {}

    def step(self, rows: Sequence[StepRow]) -> list[Sampled]:
        self.num_steps += 1
        return [self._outcome(row) if row.sample else Sampled() for row in rows]

    def _outcome(self, row: StepRow) -> Sampled:
        if row.request_id not in self._of:
            self._of[row.request_id] = self._answers.pop(0)
        rest = self._of[row.request_id][len(row.tokens) - row.num_prompt :]
        kept = 0
        while kept < len(row.drafts) and kept + 1 < len(rest) and row.drafts[kept] == rest[kept]:
            kept += 1
        return Sampled(
            rest[kept],
            accepted=tuple(Sampled(token) for token in rest[:kept]),
            num_drafted=len(row.drafts),
        )

    def forget(self, request_id: int) -> None:
        self._of.pop(request_id, None)

    def close(self) -> None:
        pass


class Oracle:
    """Knows the answer and proposes it, with a wrong token after every `wrong_after`."""

    serial = False

    def __init__(self, answer: Sequence[int], num_prompt: int, *, wrong_after: int = 99) -> None:
        self.answer = answer
        self.num_prompt = num_prompt
        self.wrong_after = wrong_after

    def propose(self, request_id: int, tokens: Sequence[int], *, most: int) -> Proposal:
        at = len(tokens) - self.num_prompt
        found = list(self.answer[at : at + most])
        found[self.wrong_after : self.wrong_after + 1] = [0] * bool(found[self.wrong_after :])
        return Proposal(len(found), found, 3)

    def forget(self, request_id: int) -> None:
        pass


Build = Callable[..., Any]


@pytest.fixture
def drafted(a_bench: Build) -> Build:
    def build(runner: Any, speculating: Speculating, **options: Any) -> Any:
        bench = a_bench(runner, **options)
        bench.engine.scheduler.speculating = speculating
        return bench

    return build


def chunks(bench: Any, ask: Any) -> list[Chunk]:
    return [event for event in bench.of(ask) if isinstance(event, Chunk)]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("wrong_after", [0, 1, 3, 99])
def test_the_answer_is_the_same_in_fewer_steps(
    drafted: Build, an_ask: Build, wrong_after: int, overlap: bool
) -> None:
    answer = list(b"The quick brown fox jumps over the lazy dog, twice.")
    runner = Verifying(answer)
    oracle = Oracle(answer, num_prompt=2, wrong_after=wrong_after)
    bench = drafted(runner, Speculating(oracle, fixed=4), overlap=overlap)
    bench.engine.add(ask := an_ask("Hi", max_tokens=len(answer)))
    bench.run()
    assert bench.text(ask).encode() == bytes(answer)
    told = chunks(bench, ask)
    assert [token for chunk in told for token in chunk.token_ids] == answer
    assert told[-1].num_output == len(answer)
    assert told[-1].finish_reason == "length"
    if wrong_after:
        assert runner.num_steps < 0.7 * len(answer)


def test_a_stop_string_in_the_middle_of_drafts_ends_the_answer_there(
    drafted: Build, an_ask: Build
) -> None:
    answer = list(b"one STOP two three four five")
    bench = drafted(Verifying(answer), Speculating(Oracle(answer, 2), fixed=8))
    bench.engine.add(ask := an_ask("Hi", max_tokens=28, stop=("STOP",)))
    bench.run()
    assert bench.text(ask) == "one "
    last = bench.last(ask)
    assert (last.finish_reason, last.stop_reason, last.num_output) == ("stop", "STOP", 8)
    assert bench.engine.scheduler.counters.output_tokens == 8


def test_an_end_token_in_the_middle_of_drafts_ends_the_answer_there(
    drafted: Build, an_ask: Build
) -> None:
    answer = [*b"done", 256, *b"never said"]
    bench = drafted(Verifying(answer), Speculating(Oracle(answer, 2), fixed=8))
    bench.engine.add(ask := an_ask("Hi", max_tokens=28))
    bench.run()
    assert bench.text(ask) == "done"
    assert bench.last(ask).num_output == 5
    bench.engine.add(again := an_ask("Hi", max_tokens=12, ignore_eos=True))
    bench.engine.runner._answers.append(answer)
    bench.run()
    assert bench.last(again).num_output == 12


def test_max_tokens_cuts_drafts_to_the_token(drafted: Build, an_ask: Build) -> None:
    answer = list(range(65, 91))
    for most in range(1, 14):
        bench = drafted(Verifying(answer), Speculating(Oracle(answer, 2), fixed=8))
        bench.engine.add(ask := an_ask("Hi", max_tokens=most))
        bench.run()
        assert bench.text(ask).encode() == bytes(answer[:most])
        assert bench.last(ask).num_output == most


def test_a_stage_that_ends_in_the_middle_of_drafts_splits_the_chunk(
    drafted: Build, an_ask: Build
) -> None:
    answer = [*b"hm", 258, *b"yes it is"]
    bench = drafted(Verifying(answer), Speculating(Oracle(answer, 2), fixed=8))
    stages = (Stage("thinking", 0.2, until="</think>"), Stage("answer", 0.1))
    bench.engine.add(ask := an_ask("Hi", max_tokens=12, stages=stages))
    bench.run()
    told = chunks(bench, ask)
    thinking = [token for chunk in told if chunk.stage == 0 for token in chunk.token_ids]
    assert thinking == [*b"hm", 258]
    assert all(chunk.num_output > 0 and chunk.token_ids for chunk in told)
    assert sum(len(chunk.token_ids) for chunk in told) == 12


@pytest.fixture(scope="module")
def regex() -> Callable[[str], Grammar]:
    tokenizer = ByteTokenizer()
    vocabulary = Vocabulary(
        tokenizer.definition(), tokenizer.special_ids, FACTS.eos_ids, FACTS.vocab_size
    )
    compiler = Compiler(vocabulary)
    return lambda text: compiler.compile(Constraint(Kind.REGEX, text, "guided_regex"))


@pytest.mark.parametrize("overlap", [False, True])
def test_what_was_drawn_beyond_the_marker_is_drawn_again_under_the_grammar(
    drafted: Build, an_ask: Build, regex: Callable[[str], Grammar], overlap: bool
) -> None:
    answer = [*b"hm", 258, *b"yes"]
    runner = Verifying(answer)
    bound: list[tuple[int, bool]] = []
    step = runner.step

    def watched(rows: Sequence[StepRow]) -> list[Sampled]:
        bound.extend((len(row.tokens) - row.num_prompt, row.matcher is not None) for row in rows)
        return step(rows)

    runner.step = watched  # type: ignore[method-assign]
    bench = drafted(runner, Speculating(Oracle(answer, 2), fixed=8), overlap=overlap)
    grammar = regex("yes|no")
    ask = an_ask("Hi", grammar=grammar, grammar_after="</think>", max_tokens=20)
    bench.engine.add(ask)
    bench.run()
    assert [token for chunk in chunks(bench, ask) for token in chunk.token_ids] == answer
    assert bench.last(ask).finish_reason == "stop"
    assert (3, True) in bound  # a step began right after the marker
    assert all(under == (num_output >= 3) for num_output, under in bound)


def test_a_grammar_that_fails_in_the_middle_of_drafts_breaks_its_answer_alone(
    drafted: Build, an_ask: Build, regex: Callable[[str], Grammar]
) -> None:
    class Forced(Oracle):
        """Its drafts are not looked at before they are tried."""

        def propose(self, request_id: int, tokens: Sequence[int], *, most: int) -> Proposal:
            found = super().propose(request_id, tokens, most=most)
            bench.engine.scheduler.requests[request_id].num_fitting = None
            return found

    wrong, right = list(b"aaxaaa"), list(b"wxyzwx")
    bench = drafted(Verifying(wrong, right), Speculating(Forced(wrong, 2), fixed=4))
    failing = an_ask("Hi", grammar=regex("a{6}"), max_tokens=6)
    other = an_ask("Hi", max_tokens=6)
    bench.engine.add(failing)
    bench.engine.add(other)
    bench.run()
    assert isinstance(bench.of(failing)[-1], Broken)
    assert bench.text(other).encode() == bytes(right)
    assert bench.engine.scheduler.blocks.num_free == FACTS.num_blocks


@pytest.mark.parametrize("overlap", [False, True])
def test_a_simulated_model_keeps_to_the_grammar_with_drafts(
    a_bench: Build, an_ask: Build, regex: Callable[[str], Grammar], overlap: bool
) -> None:
    bench = a_bench(overlap=overlap)
    bench.engine.runner = SimRunner(MODEL, FACTS, bench.clock, acceptance=0.7, seed=1)
    bench.engine.scheduler.speculating = Speculating(RunnerDrafts(), fixed=4)
    asks = [
        an_ask(grammar=regex("[0-9]{2}-x"), max_tokens=50),
        an_ask(grammar=regex("(ab){9}c*"), max_tokens=50),
        an_ask(max_tokens=30),
    ]
    for ask in asks:
        bench.engine.add(ask)
    bench.run()
    assert [bench.text(ask) for ask in asks[:2]] == ["00-x", "ab" * 9]
    assert bench.last(asks[2]).num_output == 30
    assert bench.engine.scheduler.counters.accepted_drafts > 0


def test_the_timeline_tells_drafts(drafted: Build, an_ask: Build) -> None:
    answer = list(range(65, 91))
    bench = drafted(Verifying(answer), Speculating(Oracle(answer, 2, wrong_after=2), fixed=4))
    bench.engine.add(an_ask("Hi", max_tokens=20))
    bench.run()
    records = bench.engine.timeline.since(0)
    counters = bench.engine.scheduler.counters
    assert sum(r.num_accepted_drafts for r in records) == counters.accepted_drafts > 0
    drafts = counters.accepted_drafts + counters.rejected_drafts
    assert sum(r.num_draft_tokens for r in records) == drafts
    assert all(r.num_prefill_tokens == 0 for r in records if r.num_decodes)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_simulated_model_takes_the_time_it_is_predicted_to(
    drafted: Build, an_ask: Build, a_bench: Build, overlap: bool
) -> None:
    bench = a_bench(overlap=overlap)
    bench.engine.runner = SimRunner(MODEL, FACTS, bench.clock, acceptance=0.7, seed=1)
    bench.engine.scheduler.model = MODEL
    bench.engine.scheduler.speculating = Speculating(RunnerDrafts(), max_draft_tokens=4)
    asks = [an_ask(max_tokens=40 + i) for i in range(3)]
    for ask in asks:
        bench.engine.add(ask)
    bench.run()
    assert [bench.last(ask).num_output for ask in asks] == [40, 41, 42]
    records = bench.engine.timeline.since(0)
    assert len(records) < 35
    for record in records:
        assert record.actual_s == pytest.approx(record.predicted_s, rel=0.02)


def test_many_answers_with_drafts_leave_no_block_behind(drafted: Build, an_ask: Build) -> None:
    clock_bench = drafted(None, Speculating(NgramDrafter(), max_draft_tokens=6))
    asks = [an_ask("tell me " * (1 + i % 5), max_tokens=30 + 7 * i % 40) for i in range(20)]
    for ask in asks:
        clock_bench.engine.add(ask)
    clock_bench.run()
    assert clock_bench.engine.scheduler.blocks.num_free == FACTS.num_blocks
    assert not clock_bench.engine.scheduler.speculating._drafter._indices
