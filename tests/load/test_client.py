import asyncio
import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from sloserve.errors import BadInput
from sloserve.load.bench import add_bench_arguments, run_bench
from sloserve.load.client import ClientHealth, run_load
from sloserve.load.endpoint import Endpoint, examine
from sloserve.load.inline import parse_class
from sloserve.load.reader import from_arrivals
from sloserve.load.records import Ending, Record
from sloserve.load.trace import Arrival
from sloserve.slo import Decision


def loaded(fake: Any, *rows: tuple[float, str]) -> tuple[list[Record], ClientHealth]:
    """The records of some arrivals (time, class), each of 7 prompt and 3 output tokens."""

    async def run() -> tuple[list[Record], ClientHealth]:
        async with fake.serve() as url, aiohttp.ClientSession() as session:
            endpoint = Endpoint(url, "fake")
            prompts = await examine(session, endpoint, seed=1)
            names = {name for _, name in rows}
            return await run_load(
                session,
                endpoint,
                from_arrivals("t", [Arrival(t, 7, 3, n) for t, n in rows], duration_s=1.0),
                prompts=prompts,
                classes={n: parse_class(f"{n}:ttft=5s,tpot=1s") for n in names},
                drain_s=10.0,
            )

    return asyncio.run(run())


def test_a_real_endpoint_is_loaded_on_schedule_and_every_token_is_timed(an_endpoint: Any) -> None:
    fake = an_endpoint(first_s=0.03, gap_s=0.02)
    records, health = loaded(fake, (0.0, "chat"), (0.01, "chat"), (0.05, "code"))
    assert [r.ending for r in records] == [Ending.FINISHED] * 3
    assert [sum(e.num_tokens for e in r.emissions) for r in records] == [3, 3, 3]
    for record in records:
        times = [e.at_s for e in record.emissions]
        assert times[0] - record.sent_s >= 0.03
        assert times[-1] - times[0] >= 0.03
        assert record.decision is Decision.ADMITTED
        assert record.promise is not None
        assert record.promise.ttft_s == 1.0  # what the service told, not what we assumed
    assert [b["class"] for b in fake.seen[-3:]] == ["chat", "chat", "code"]
    assert [len(b["prompt"]) for b in fake.seen[-3:]] == [7, 7, 7]
    assert fake.seen[-1]["min_tokens"] == 3
    assert health.core_share > 0


def test_arrivals_do_not_wait_for_answers(an_endpoint: Any) -> None:
    records, _ = loaded(an_endpoint(first_s=0.5), (0.0, "chat"), (0.02, "chat"))
    assert records[1].sent_s < records[0].emissions[0].at_s


def test_declines_and_broken_answers_are_recorded_with_their_reasons(an_endpoint: Any) -> None:
    records, _ = loaded(an_endpoint(), (0.0, "busy"), (0.0, "broken"))
    busy, broken = records
    assert (busy.ending, busy.decision, busy.reason) == (Ending.REFUSED, Decision.DECLINED, "TTFT")
    assert (broken.ending, broken.error) == (Ending.FAILED, "the replica died")


def test_an_endpoint_that_takes_text_only_gets_text_of_about_that_length(an_endpoint: Any) -> None:
    fake = an_endpoint(text_only=True, running_usage=False)
    records, _ = loaded(fake, (0.0, "chat"))
    assert len(fake.seen[-1]["prompt"].split()) == 4  # two tokens a word, 7 tokens
    assert "ignore_eos" not in fake.seen[-1]
    assert sum(e.num_tokens for e in records[0].emissions) == 3


def test_the_same_seed_sends_the_same_prompts(an_endpoint: Any) -> None:
    one, two = an_endpoint(), an_endpoint()
    loaded(one, (0.0, "chat"), (0.0, "chat"))
    loaded(two, (0.0, "chat"), (0.0, "chat"))
    assert one.seen[-1]["prompt"] == two.seen[-1]["prompt"]
    assert one.seen[-1]["prompt"] != one.seen[-2]["prompt"]


def bench(fake: Any, *arguments: str) -> int:
    """`sloserve bench` against the fake."""

    def run(url: str) -> int:
        parser = ArgumentParser()
        add_bench_arguments(parser)
        args: Namespace = parser.parse_args(["--url", url, *arguments])
        return run_bench(args)

    async def serve() -> int:
        async with fake.serve() as url:
            return await asyncio.to_thread(run, url)

    return asyncio.run(serve())


def test_bench_writes_a_report_and_a_picture_and_resumes(an_endpoint: Any, tmp_path: Path) -> None:
    fake = an_endpoint()
    report, picture = tmp_path / "r.json", tmp_path / "r.png"
    arguments = ["--class", "chat:ttft=1s,tpot=500ms", "--trace"]
    arguments += ["synthetic:requests=40,rate=40,prompt=20,output=4", "--duration", "0.3"]
    arguments += ["--rate", "30,60", "--json", str(report), "--png", str(picture), "--plain"]
    assert bench(fake, *arguments) == 0
    written = json.loads(report.read_text())
    assert [w["facts"]["key"] for w in written["windows"]] == [[30.0, 0], [60.0, 0]]
    for window in written["windows"]:
        row = window["classes"]["all"]
        assert row["offered"] == row["eligible"] == round(window["rate"] * 0.3)
        assert row["endings"] == {"finished": row["offered"]}
    assert written["made"]["machine"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_bench_keeps_finished_windows_when_resumed(an_endpoint: Any, tmp_path: Path) -> None:
    fake = an_endpoint()
    report = tmp_path / "r.json"
    common = ["--class", "chat:ttft=1s,tpot=500ms", "--trace"]
    common += ["synthetic:requests=20,rate=40,prompt=20,output=4", "--rate", "40", "--plain"]
    common += ["--json", str(report)]

    async def serve() -> None:
        async with fake.serve() as url:
            parser = ArgumentParser()
            add_bench_arguments(parser)
            first = parser.parse_args(["--url", url, *common])
            again = parser.parse_args(["--url", url, *common, "--resume"])
            other = parser.parse_args(["--url", url, *common, "--resume", "--seed", "9"])
            await asyncio.to_thread(run_bench, first)
            before = len(fake.seen)
            await asyncio.to_thread(run_bench, again)
            assert len(fake.seen) - before <= 2  # only the questions about what it can do
            with pytest.raises(BadInput, match="other settings"):
                await asyncio.to_thread(run_bench, other)

    asyncio.run(serve())


def test_bench_sweeps_to_the_highest_rate_that_holds(an_endpoint: Any, tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    arguments = ["--class", "chat:ttft=10s,tpot=1s", "--sweep", "--tolerance", "1", "--plain"]
    arguments += ["--trace", "synthetic:requests=20,rate=40,cv=0,prompt=9,output=3,output_cv=0"]
    # the fake promises a first token within a second; one request after the other takes 60 ms,
    # so 20 requests at 200/s last 1.2 s, and 90 % in time needs about 40/s
    arguments += ["--rate", "200", "--json", str(report)]
    assert bench(an_endpoint(serial_s=0.06), *arguments) == 0
    capacity = json.loads(report.read_text())["capacities"][0]
    assert capacity["confirmed"]
    assert 20 < capacity["rate"] < 200
    assert len(capacity["tried"]) >= 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--class", "chat"], "--class"),
        (["--class", "chat:ttft=1s,tpot=1s", "--shares", "gold=1"], "unknown class gold"),
        (["--class", "chat:ttft=1s,tpot=1s", "--rate", "fast"], "--rate"),
        (["--class", "chat:ttft=1s,tpot=1s", "--resume"], "--resume"),
    ],
)
def test_bad_input_is_refused_before_any_load(
    an_endpoint: Any, arguments: list[str], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        bench(an_endpoint(), *arguments)


def test_an_endpoint_that_is_not_there_is_a_clear_error() -> None:
    parser = ArgumentParser()
    add_bench_arguments(parser)
    args = parser.parse_args(["--url", "http://127.0.0.1:9/v1", "--class", "c:ttft=1s,tpot=1s"])
    with pytest.raises(BadInput, match=r"can.t list models"):
        run_bench(args)
