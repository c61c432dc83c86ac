"""Answers that follow a grammar, through the loop: where it binds, ends and fails."""

from collections.abc import Callable
from typing import Any

import pytest

from sloserve.engine.events import Broken
from sloserve.engine.sim import EOS_ID, sim_facts
from sloserve.engine.tokenizer import ByteTokenizer
from sloserve.grammar.compiler import Compiler, Vocabulary
from sloserve.grammar.constraint import Constraint, Kind
from sloserve.grammar.matcher import Grammar


@pytest.fixture(scope="module")
def regex() -> Callable[[str], Grammar]:
    tokenizer = ByteTokenizer()
    facts = sim_facts()
    compiler = Compiler(
        Vocabulary(tokenizer.definition(), tokenizer.special_ids, facts.eos_ids, facts.vocab_size)
    )
    return lambda text: compiler.compile(Constraint(Kind.REGEX, text, "guided_regex"))


@pytest.mark.parametrize("overlap", [False, True])
def test_an_answer_ends_with_the_token_that_completes_it(
    a_bench: Any, an_ask: Any, regex: Callable[[str], Grammar], overlap: bool
) -> None:
    bench = a_bench(overlap=overlap)
    asks = [
        an_ask(grammar=regex("[0-9]{2}-x"), max_tokens=50, ignore_eos=True, min_tokens=20),
        an_ask(grammar=regex("(ab){3}"), max_tokens=50),
        an_ask(max_tokens=9),
    ]
    for ask in asks:
        bench.engine.add(ask)
    bench.run()
    assert [bench.text(ask) for ask in asks[:2]] == ["00-x", "ababab"]
    assert [bench.last(ask).finish_reason for ask in asks] == ["stop", "stop", "length"]
    assert [bench.last(ask).num_output for ask in asks] == [4, 6, 9]


def test_an_end_that_the_grammar_allows_ends_it_even_if_ends_are_ignored(
    a_bench: Any, an_ask: Any, script: Any, regex: Callable[[str], Grammar]
) -> None:
    bench = a_bench(script([*b"aa", EOS_ID]))
    ask = an_ask(grammar=regex("a*"), max_tokens=50, ignore_eos=True)
    bench.engine.add(ask)
    bench.run()
    assert bench.text(ask) == "aa"
    assert bench.last(ask).finish_reason == "stop"


def test_a_grammar_binds_only_after_its_marker(
    a_bench: Any, an_ask: Any, script: Any, regex: Callable[[str], Grammar]
) -> None:
    said = ByteTokenizer().encode("hm, x</think>yes")
    bench = a_bench(script(said))
    ask = an_ask(grammar=regex("yes|no"), grammar_after="</think>", max_tokens=50)
    bench.engine.add(ask)
    bench.run()
    assert bench.text(ask) == "hm, xyes"
    assert bench.last(ask).finish_reason == "stop"


def test_an_answer_may_end_before_its_grammar_binds(
    a_bench: Any, an_ask: Any, script: Any, regex: Callable[[str], Grammar]
) -> None:
    bench = a_bench(script([*b"hm", EOS_ID]))
    ask = an_ask(grammar=regex("yes|no"), grammar_after="</think>", max_tokens=50)
    bench.engine.add(ask)
    bench.run()
    assert bench.text(ask) == "hm"
    assert bench.last(ask).finish_reason == "stop"


@pytest.mark.parametrize("overlap", [False, True])
def test_a_grammar_that_fails_breaks_its_answer_alone(
    a_bench: Any, an_ask: Any, script: Any, regex: Callable[[str], Grammar], overlap: bool
) -> None:
    bench = a_bench(script(b"ax", b"wxyz"), overlap=overlap)
    failing, other = an_ask(grammar=regex("a{5}"), max_tokens=5), an_ask(max_tokens=4)
    bench.engine.add(failing)
    bench.engine.add(other)
    bench.run()
    last = bench.of(failing)[-1]
    assert isinstance(last, Broken)
    assert "the answer's grammar can't be followed any further" in last.message
    assert bench.text(other) == "wxyz"
    assert bench.engine.scheduler.num_running == 0
    assert bench.engine.scheduler.blocks.num_free == bench.engine.facts.num_blocks


def test_steps_tell_what_their_masks_cost(
    a_bench: Any, an_ask: Any, script: Any, regex: Callable[[str], Grammar]
) -> None:
    runner = script(b"aaa", b"bbb")
    step = runner.step

    def timed(rows: Any) -> Any:
        sampled = step(rows)
        for row, one in zip(rows, sampled, strict=True):
            one.mask_s = 0.25 if row.matcher is not None else 0.0
        return sampled

    runner.step = timed
    bench = a_bench(runner)
    bench.engine.add(an_ask(grammar=regex("a{3}"), max_tokens=9))
    bench.engine.add(an_ask(max_tokens=3))
    bench.run()
    assert {record.mask_s for record in bench.engine.timeline.since(0)} == {0.25}
