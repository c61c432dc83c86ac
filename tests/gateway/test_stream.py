"""Cutting, counting and stripping of events."""

from hypothesis import given
from hypothesis import strategies as st

from sloserve.gateway.stream import Stripper, error_event
from sloserve.wire import annotation, parse_annotation, split_annotations


def marked(data: str, *, num_tokens: int = 1, stage: int = 0) -> bytes:
    return f"{annotation(num_tokens=num_tokens, stage=stage)}data: {data}\n\n".encode()


TOKENS = st.lists(st.tuples(st.text(max_size=5), st.integers(0, 30), st.integers(0, 3)), max_size=8)


LINES = (b": n=1 stage=0\n", b": n=2 stage=0\n", b": n=x\n", b"data: : n=1 stage=0\n", b"\n")


@given(st.lists(st.sampled_from(LINES), max_size=9))
def test_annotations_are_told_and_taken_out_whether_alike_or_not(lines: list[bytes]) -> None:
    told = [parse_annotation(line) for line in lines]
    kept = b"".join(line for line, mark in zip(lines, told, strict=True) if mark is None)
    marks = [mark for mark in told if mark is not None]
    assert split_annotations(b"".join(lines)) == (kept, marks)


@given(TOKENS, st.lists(st.integers(1, 40), max_size=30))
def test_however_the_bytes_are_cut_events_and_tokens_are_the_same(
    tokens: list[tuple[str, int, int]], cuts: list[int]
) -> None:
    texts = ["".join(c for c in text if c.isprintable()) for text, _, _ in tokens]
    whole = b"".join(
        marked(f'{{"t":"{text}"}}', num_tokens=n, stage=s)
        for text, (_, n, s) in zip(texts, tokens, strict=True)
    )
    whole += b"data: [DONE]\n\n"
    stripper, out, marks = Stripper(), b"", []
    while whole:
        size = cuts.pop() if cuts else len(whole)
        events, found = stripper.feed(whole[:size])
        out, whole = out + events, whole[size:]
        marks += found
        assert events == b"" or events.endswith(b"\n\n")
    plain = "".join(f'data: {{"t":"{text}"}}\n\n' for text in texts) + "data: [DONE]\n\n"
    assert out == plain.encode()
    told = [stage for n, stage, _ in marks for _ in range(n)]
    assert told == [stage for _, n, stage in tokens for _ in range(n)]
    assert all(choice == 0 for _, _, choice in marks)
    assert stripper.done
    assert not stripper.failed


def test_other_comments_pass() -> None:
    stripper = Stripper()
    assert stripper.feed(b": ping\n\n: n=x stage=1\ndata: {}\n\n") == (
        b": ping\n\n: n=x stage=1\ndata: {}\n\n",
        [],
    )


def test_text_that_looks_like_an_annotation_stays() -> None:
    data = '{"t":"\\n: n=5 stage=0\\n"}'
    events, marks = Stripper().feed(marked(data))
    assert events == f"data: {data}\n\n".encode()
    assert marks == [(1, 0, 0)]


def test_choices_are_read_from_events_when_there_are_several() -> None:
    stripper = Stripper(several=True)
    data = marked('{"choices":[{"index":1}]}') + marked('{"choices":[{"index":0}]}', num_tokens=2)
    assert stripper.feed(data)[1] == [(1, 0, 1), (2, 0, 0)]


def test_an_error_of_the_replica_is_noticed() -> None:
    for text in (b'data: {"error":{}}\n\n', b'data: {"choices":[{"finish_reason":"error"}]}\n\n'):
        stripper = Stripper()
        stripper.feed(text)
        assert stripper.failed
    stripper = Stripper()
    stripper.feed(marked('{"t":"\\"finish_reason\\":\\"error\\" \\"error\\""}'))
    assert not stripper.failed


def test_the_last_event_of_a_broken_stream_stands_alone() -> None:
    event = error_event(b"", message="lost", code="ReplicaLost", num_choices=2, chat=False)
    assert event.startswith(b'data: {"choices":[{"index":0,"text":""')
    assert event.endswith(b"\n\n")
