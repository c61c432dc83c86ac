import pytest

from sloserve.load.stream import AnswerStream
from sloserve.slo import Stage


def event(number: int, text: str = "x", finish: str = "null") -> bytes:
    return (
        b'data: {"choices":[{"text":"%s","finish_reason":%s}],"usage":{"prompt_tokens":9,'
        b'"completion_tokens":%d}}\n\n' % (text.encode(), finish.encode(), number)
    )


def test_tokens_are_counted_by_the_running_usage() -> None:
    stream = AnswerStream()
    stream.feed(event(1) + event(3), 1.0)
    stream.feed(event(3, text=""), 2.0)
    stream.feed(event(4, finish='"length"') + b"data: [DONE]\n\n", 3.0)
    assert [(e.at_s, e.num_tokens) for e in stream.emissions] == [(1.0, 1), (1.0, 2), (3.0, 1)]
    assert stream.done
    assert stream.finish_reason == "length"


@pytest.mark.parametrize("size", [1, 7, 64])
def test_events_may_be_cut_anywhere(size: int) -> None:
    data = event(1) + b": a comment\n\n" + event(2) + b"data: [DONE]\r\n\r\n"
    stream = AnswerStream()
    for start in range(0, len(data), size):
        stream.feed(data[start : start + size], float(start))
    assert stream.num_tokens == 2
    assert stream.done


def test_without_running_usage_events_are_counted_and_doubt_is_told() -> None:
    stream = AnswerStream()
    plain = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":null}],"usage":null}\n\n'
    stream.feed(plain + plain, 1.0)
    assert stream.num_tokens == 2
    assert stream.exact
    stream.feed(b'data: {"choices":[],"usage":{"completion_tokens":3}}\n\n', 2.0)
    assert stream.num_tokens == 2
    assert not stream.exact


def test_an_error_event_is_kept() -> None:
    stream = AnswerStream()
    stream.feed(b'data: {"error":{"message":"the replica died"}}\n\n', 1.0)
    assert stream.error == "the replica died"


def test_the_stage_ends_with_the_token_that_completes_the_marker() -> None:
    stream = AnswerStream((Stage("thinking", 0.05, "</think>"), Stage("answer", 0.1)))
    for number, text in enumerate(["hm", "</th", "ink>", "yes", "no"], start=1):
        stream.feed(event(number, text), float(number))
    assert [e.stage for e in stream.emissions] == [0, 0, 0, 1, 1]


def test_the_answer_begins_where_thinking_in_a_field_of_its_own_ends() -> None:
    def chunk(number: int, delta: str) -> bytes:
        usage = b'"usage":{"completion_tokens":%d}' % number
        choice = b'{"index":0,"delta":%s,"finish_reason":null}' % delta.encode()
        return b'data: {"choices":[' + choice + b"]," + usage + b"}\n\n"

    stream = AnswerStream((Stage("thinking", 0.1, until="</think>"), Stage("answer", 0.2)))
    deltas = ['{"role":"assistant","content":null,"reasoning_content":"hm"}', "{}",
              '{"content":"Yes"}', '{"content":"."}']  # fmt: skip
    for number, delta in enumerate(deltas, 1):
        stream.feed(chunk(number, delta), float(number))
    assert [e.stage for e in stream.emissions] == [0, 0, 1, 1]
