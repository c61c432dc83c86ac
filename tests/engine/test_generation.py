"""From sampled tokens to visible output: ends, stages, logprobs."""

from typing import Any

from sloserve.engine.events import Chunk
from sloserve.engine.generation import Generation
from sloserve.engine.runner import Logprobs, Sampled
from sloserve.engine.sim import EOS_ID, sim_facts
from sloserve.engine.tokenizer import ByteTokenizer
from sloserve.scheduler import Request
from sloserve.slo import Stage

THINKING = (Stage("thinking", 0.2, until="</think>"), Stage("answer", 0.1))


def tokens(text: str) -> list[int]:
    return ByteTokenizer().encode(text)


def test_the_end_of_sequence_ends_it_and_is_not_shown(
    a_bench: Any, script: Any, an_ask: Any
) -> None:
    bench = a_bench(script([*tokens("hi"), EOS_ID]))
    ask = an_ask(max_tokens=10)
    bench.engine.add(ask)
    bench.run()
    last = bench.last(ask)
    assert bench.text(ask) == "hi"
    assert (last.finish_reason, last.stop_reason, last.num_output) == ("stop", None, 3)


def test_ignoring_the_end_of_sequence_goes_on_to_the_limit(
    a_bench: Any, script: Any, an_ask: Any
) -> None:
    bench = a_bench(script([*tokens("hi"), EOS_ID, *tokens("!")]))
    ask = an_ask(max_tokens=4, ignore_eos=True)
    bench.engine.add(ask)
    bench.run()
    assert bench.text(ask) == "hi!"
    assert bench.last(ask).finish_reason == "length"


def test_min_tokens_outlasts_every_kind_of_stop(a_bench: Any, script: Any, an_ask: Any) -> None:
    bench = a_bench(script(tokens("a.b.c.")))
    ask = an_ask(max_tokens=10, min_tokens=3, stop=(".",), stop_token_ids=(ord("b"),))
    bench.engine.add(ask)
    bench.run()
    assert bench.text(ask) == "a."
    assert bench.last(ask).stop_reason == ord("b")


def test_a_stop_string_across_tokens_hides_all_of_itself(
    a_bench: Any, script: Any, an_ask: Any
) -> None:
    bench = a_bench(script(tokens("one\n\ntwo")))
    ask = an_ask(max_tokens=20, stop=("\n\n",))
    bench.engine.add(ask)
    bench.run()
    last = bench.last(ask)
    assert bench.text(ask) == "one"
    assert (last.finish_reason, last.stop_reason, last.num_output) == ("stop", "\n\n", 5)


def test_a_stop_token_is_shown_when_asked_for(a_bench: Any, script: Any, an_ask: Any) -> None:
    bench = a_bench(script(tokens("ab")))
    ask = an_ask(max_tokens=9, stop_token_ids=(ord("b"),), include_stop=True)
    bench.engine.add(ask)
    bench.run()
    assert bench.text(ask) == "ab"
    assert bench.last(ask).stop_reason == ord("b")


def test_what_is_held_back_comes_with_the_last_token(
    a_bench: Any, script: Any, an_ask: Any
) -> None:
    bench = a_bench(script(tokens("x\n🙂")))
    ask = an_ask(max_tokens=4, stop=("\n\n",))
    bench.engine.add(ask)
    bench.run()
    assert bench.text(ask) == "x\n�"
    assert bench.last(ask).finish_reason == "length"


def stages(bench: Any, ask: Any) -> list[int]:
    return [event.stage for event in bench.of(ask) if isinstance(event, Chunk)]


def test_a_special_marker_ends_its_stage_though_it_is_not_shown(
    a_bench: Any, script: Any, an_ask: Any
) -> None:
    bench = a_bench(script(tokens("hm</think>ok")))
    ask = an_ask(max_tokens=5, stages=THINKING)
    bench.engine.add(ask)
    bench.run()
    assert stages(bench, ask) == [0, 0, 0, 1, 1]
    assert bench.text(ask) == "hmok"


def test_a_marker_of_several_tokens_is_found_in_the_text(
    a_bench: Any, script: Any, an_ask: Any
) -> None:
    bench = a_bench(script(tokens("a##b###c")))
    parts = (Stage("plan", 0.2, until="###"), Stage("answer", 0.1))
    ask = an_ask(max_tokens=8, stages=parts)
    bench.engine.add(ask)
    bench.run()
    assert stages(bench, ask) == [0, 0, 0, 0, 0, 0, 0, 1]


def test_stages_follow_one_another(a_bench: Any, script: Any, an_ask: Any) -> None:
    parts = (Stage("a", 0.3, until="|"), Stage("b", 0.2, until="|"), Stage("c", 0.1))
    bench = a_bench(script(tokens("1|2|3|4")))
    ask = an_ask(max_tokens=7, stages=parts)
    bench.engine.add(ask)
    bench.run()
    assert stages(bench, ask) == [0, 0, 1, 1, 2, 2, 2]


def test_the_deadlines_tighten_with_the_stage(a_bench: Any, script: Any, an_ask: Any) -> None:
    bench = a_bench(script(tokens("h</think>ok")))
    bench.engine.add(an_ask(max_tokens=4, stages=THINKING))
    bench.engine.turn()
    (request,) = bench.engine.scheduler.requests.values()
    assert request.row.tpot_s == 0.2
    bench.engine.turn()
    assert (request.row.tpot_s, request.row.tightest_tpot_s) == (0.1, 0.1)


def test_logprobs_of_the_prompt_come_with_the_first_chunk(a_bench: Any, an_ask: Any) -> None:
    bench = a_bench()
    ask = an_ask("x" * 300, max_tokens=2, logprobs=0, prompt_logprobs=0)
    bench.engine.add(ask)
    bench.run()
    first, second = (event for event in bench.of(ask) if isinstance(event, Chunk))
    assert [one.token_id for one in first.prompt_logprobs] == ask.prompt
    assert second.prompt_logprobs == ()
    assert [one.token_id for one in first.logprobs] == list(first.token_ids)


def test_a_prompt_that_is_computed_again_tells_its_logprobs_once(a_bench: Any, an_ask: Any) -> None:
    facts = sim_facts(block_size=4, num_blocks=96)  # both fit, until one of them has grown
    bench = a_bench(facts=facts, policy="fcfs")
    grows = an_ask("x" * 60, max_tokens=100)
    gives_way = an_ask("y" * 300, arrival_s=0.001, max_tokens=20, prompt_logprobs=0)
    for ask in (grows, gives_way):
        bench.engine.add(ask)
    bench.run()
    first, *later = (event for event in bench.of(gives_way) if isinstance(event, Chunk))
    assert later[-1].num_preempted > 0
    assert [one.token_id for one in first.prompt_logprobs] == gives_way.prompt
    assert not any(chunk.prompt_logprobs for chunk in later)


def test_logprobs_of_chunks_computed_twice_before_the_first_token_replace_each_other(
    an_ask: Any,
) -> None:
    ask = an_ask([10, 11, 12, 13], prompt_logprobs=0)
    request = Request(
        id=1, promise=ask.promise, arrival_s=0.0, tokens=list(ask.prompt), num_prompt=4,
        max_output=4,
    )  # fmt: skip
    generation = Generation(ask, request, facts=sim_facts(), tokenizer=ByteTokenizer(), texts={})
    for start, told in ((0, (11, 12)), (0, (11,)), (1, (12, 13))):  # gave way after two tokens
        part = Sampled(prompt=tuple(Logprobs(token, -1.0) for token in told))
        generation.hold_prompt(part, start=start)
    (chunk,), _ = generation.accept(Sampled(65), at_s=1.0)
    assert [one.token_id for one in chunk.prompt_logprobs] == [11, 12, 13]


def test_prompt_logprobs_need_every_position_so_no_prefix_is_reused(
    a_bench: Any, an_ask: Any
) -> None:
    bench = a_bench()
    for logprobs in (None, 0):
        ask = an_ask("y" * 64, max_tokens=1, prompt_logprobs=logprobs)
        bench.engine.add(ask)
        bench.run()
    assert bench.last(ask).num_cached == 0
    assert len(bench.last(ask).prompt_logprobs) == 64
