import gzip
from pathlib import Path

import pytest

from sloserve.errors import BadInput
from sloserve.load.builtin import load_trace
from sloserve.load.reader import from_arrivals, read_trace
from sloserve.load.trace import Arrival, Trace, half_and_half, parse_shares


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "t.csv"
    path.write_text(text)
    return path


def test_a_csv_with_a_header_is_read_whatever_order_its_columns_have(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, "output,class,time,prompt\n5,chat,2.5,7\n6,,1.5,8\n"))
    assert trace.arrivals == (Arrival(0.0, 8, 6, ""), Arrival(1.0, 7, 5, "chat"))


def test_a_csv_without_a_header_is_read_by_position(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, "0,8,6,chat\n1,7,5,code\n"))
    assert trace.classes() == ("chat", "code")


def test_the_original_azure_columns_and_dates_are_read(tmp_path: Path) -> None:
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    text += "2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.0319600,3180,8\n"
    trace = read_trace(written(tmp_path, text))
    assert trace.arrivals[1].t_s == pytest.approx(0.052)
    assert trace.arrivals[1].prompt_tokens == 3180


def test_a_gzipped_file_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"time,prompt,output\n0,1,1\n1,1,1\n"))
    assert len(read_trace(path)) == 2


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("time,prompt\n0,1\n", "line 1: no column for output"),
        ("time,prompt,output\n0,1,1\n1,many,1\n", "line 3, column prompt: 'many'"),
        ("time,prompt,output\n0,1,1\n1,1,0\n", "line 3, column output: '0'"),
        ("time,prompt,output\n0,1,1\nsoon,1,1\n", "line 3, column time: 'soon'"),
        ("time,prompt,output\n0,1,1\n1,1\n", "line 3: column output is missing"),
        ("time,prompt,output\n0,nan,1\n", "line 2, column prompt: 'nan'"),
        ("time,prompt,output\n0,1,1\n", "has 1 requests"),
        ("", "has 0 requests"),
    ],
)
def test_a_faulty_trace_is_refused_with_line_and_column(
    tmp_path: Path, text: str, where: str
) -> None:
    with pytest.raises(BadInput, match=where):
        read_trace(written(tmp_path, text))


def test_a_missing_trace_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"can.t read .*none\.csv"):
        read_trace(tmp_path / "none.csv")


def test_stretching_changes_the_rate_and_keeps_the_pattern() -> None:
    trace = from_arrivals("t", [Arrival(t, 1, 1) for t in (0.0, 1.0, 3.0)], duration_s=4.0)
    fast = trace.at_rate(1.5)
    assert fast.rate == pytest.approx(1.5)
    assert [a.t_s for a in fast.arrivals] == pytest.approx([0.0, 0.5, 1.5])
    with pytest.raises(BadInput, match="not a rate"):
        trace.at_rate(0)


def test_windows_follow_one_another_and_the_trace_begins_again() -> None:
    trace = from_arrivals("t", [Arrival(t, 1, 1) for t in (0.5, 1.5, 2.5)], duration_s=3.0)
    assert [a.t_s for a in trace.window(1.0, 2.0).arrivals] == [0.5, 1.5]
    again = trace.window(2.0, 2.0)
    assert [a.t_s for a in again.arrivals] == [0.5, 1.5]
    assert "begins again" in again.notes[-1]
    assert len(trace.window(0.0, 30.0)) == 30


def test_requests_longer_than_the_model_are_dropped_or_cut_and_counted() -> None:
    trace = from_arrivals("t", [Arrival(0, 90, 20), Arrival(1, 50, 50), Arrival(2, 5, 200)])
    dropped = trace.capped(100)
    assert [a.total_tokens for a in dropped.arrivals] == [100]
    assert dropped.notes == ("2 of 3 requests dropped: longer than 100 tokens",)
    cut = trace.capped(100, cut=True)
    assert [(a.prompt_tokens, a.output_tokens) for a in cut.arrivals] == [
        (80, 20),
        (50, 50),
        (1, 99),
    ]


def test_classes_are_drawn_by_share_and_the_same_seed_draws_the_same() -> None:
    rows = [Arrival(float(i), 1, 1, "code" if i % 2 else "") for i in range(2000)]
    trace = from_arrivals("t", rows)
    shares = parse_shares(["chat=3,batch=1", "code:code=1"])
    first, second = trace.classed(shares, seed=1), trace.classed(shares, seed=1)
    assert first == second
    assert first != trace.classed(shares, seed=2)
    names = [a.slo_class for a in first.arrivals]
    assert names.count("code") == 1000
    assert 700 < names.count("chat") < 800


@pytest.mark.parametrize("text", ["chat=", "chat=x", "=1", "chat=-1", "chat=0", ""])
def test_faulty_shares_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match="--shares"):
        parse_shares([text])


def test_the_shipped_slices_are_ten_minutes_of_azure_2023() -> None:
    conversation = load_trace("builtin:conversation")
    coding = load_trace("builtin:coding")
    assert (len(conversation), len(coding)) == (3118, 1794)
    assert conversation.duration_s == coding.duration_s == 600.0
    assert conversation.arrivals[-1].t_s < 600
    assert "CC-BY-4.0" in conversation.notes[0]


def test_the_mix_is_half_and_half_after_the_long_ones_are_gone() -> None:
    mix = load_trace("builtin:mix", max_total_tokens=2048)
    labels = [a.slo_class for a in mix.arrivals]
    assert labels.count("conversation") == labels.count("coding")
    assert max(a.total_tokens for a in mix.arrivals) <= 2048
    assert [a.t_s for a in mix.arrivals] == sorted(a.t_s for a in mix.arrivals)
    halves = half_and_half(
        Trace("a", (Arrival(0, 1, 1), Arrival(5, 1, 1), Arrival(9, 1, 1)), 10.0),
        Trace("b", (Arrival(1, 2, 2),), 4.0),
        name="m",
    )
    assert [a.slo_class for a in halves.arrivals] == ["a", "b"]
    assert halves.duration_s == 4.0


def test_synthetic_load_has_the_asked_means_and_is_the_same_by_seed() -> None:
    name = "synthetic:requests=4000,rate=8,cv=2,prompt=300,prompt_cv=0.5,output=60"
    trace = load_trace(name, seed=3)
    assert trace == load_trace(name, seed=3)
    assert trace != load_trace(name, seed=4)
    assert trace.rate == pytest.approx(8, rel=0.1)
    n = len(trace)
    assert sum(a.prompt_tokens for a in trace.arrivals) / n == pytest.approx(300, rel=0.05)
    assert sum(a.output_tokens for a in trace.arrivals) / n == pytest.approx(60, rel=0.05)


@pytest.mark.parametrize("name", ["builtin:nothing", "synthetic:colour=3", "synthetic:requests=1"])
def test_an_unknown_trace_name_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match="--trace"):
        load_trace(name)
