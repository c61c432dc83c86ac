"""Lines as people and machines read them."""

import argparse
import asyncio
import contextlib
import io
import json
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sloserve import logs
from sloserve.errors import BadInput, Reason

Log = Callable[..., str]


@pytest.fixture
def lines() -> Iterator[Callable[[str], tuple[logging.Logger, io.StringIO]]]:
    """`logger, text = lines("json")`: what a logger of ours writes."""
    made: list[tuple[logging.Logger, logging.Handler]] = []

    def make(form: str, name: str = "sloserve.tests") -> tuple[logging.Logger, io.StringIO]:
        text = io.StringIO()
        handler = logging.StreamHandler(text)
        handler.setFormatter(logs.JsonLines() if form == "json" else logs.HumanLines())
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        made.append((logger, handler))
        return logger, text

    yield make
    for logger, handler in made:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
        logger.propagate = True


def test_a_json_line_has_its_fields_beside_time_level_and_message(lines: Any) -> None:
    log, text = lines("json")
    fields = {"slo_class": "chat", "reason": Reason.TTFT, "hops": 2, "slack_s": 0.1 + 0.2}
    log.warning("declined", extra={**fields, "replica": "", "waited_s": None})
    line = json.loads(text.getvalue())
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "warning",
        "logger": "sloserve.tests",
        "message": "declined",
        "slo_class": "chat",
        "reason": "TTFT",
        "hops": 2,
        "slack_s": 0.3,
    }


def test_a_line_for_people_quotes_what_could_be_taken_for_something_else(lines: Any) -> None:
    log, text = lines("human")
    extra = {"a": "x y", "b": 'q"', "c": "k=v", "d": "line\nbreak", "e": ["one", "two"], "f": 1.5}
    log.info("said", extra=extra)
    line = text.getvalue()
    assert line.count("\n") == 1
    assert line.endswith(
        'INFO    sloserve.tests: said a="x y" b="q\\"" c="k=v" d="line\\nbreak" e=one,two f=1.5\n'
    )


@pytest.mark.parametrize("form", ["json", "human"])
def test_what_is_bound_is_on_every_line_of_the_task_and_of_no_other(lines: Any, form: str) -> None:
    log, text = lines(form)

    async def request(number: int) -> None:
        logs.bind(request_id=f"req-{number}")
        await asyncio.sleep(0)

        async def part() -> None:
            log.info("part", extra={"number": number})

        await asyncio.create_task(part())

    async def story() -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(5):
                group.create_task(request(number))
        log.info("nobody")

    asyncio.run(story())
    *parts, last = text.getvalue().splitlines()
    assert "req-" not in last
    assert len(parts) == 5
    for line in parts:
        if form == "json":
            told = json.loads(line)
            assert told["request_id"] == f"req-{told['number']}"
        else:
            assert line.partition("number=")[2] == line.partition("request_id=req-")[2][0]


def test_a_field_given_wins_over_the_one_that_is_bound_and_never_over_the_lines_own(
    lines: Any,
) -> None:
    log, text = lines("json")

    async def story() -> None:
        logs.bind(service="bound", time="never", level="never")
        log.info("said", extra={"service": "given"})

    asyncio.run(story())
    line = json.loads(text.getvalue())
    assert line["service"] == "given"
    assert line["level"] == "info"
    assert line["time"].endswith("Z")


@pytest.mark.parametrize("form", ["json", "human"])
def test_an_error_brings_its_traceback(lines: Any, form: str) -> None:
    log, text = lines(form)
    try:
        raise RuntimeError("the device is on fire")
    except RuntimeError:
        log.exception("a step broke")
    told = text.getvalue()
    if form == "json":
        assert told.count("\n") == 1
        told = json.loads(told)["exception"]
    assert "RuntimeError: the device is on fire" in told
    assert "Traceback" in told


def test_of_other_packages_only_the_message_is_told(lines: Any) -> None:
    log, text = lines("json", "aiohttp.client")
    log.info("got %s", "it", extra={"body": "what somebody said"})
    line = json.loads(text.getvalue())
    assert set(line) == {"time", "level", "logger", "message"}
    assert line["message"] == "got it"


VALUES = st.one_of(
    st.text(), st.floats(), st.integers(), st.booleans(), st.none(), st.lists(st.text()),
    st.builds(object),
)  # fmt: skip


@given(st.dictionaries(st.text("abcdef", min_size=3), VALUES), st.text())
def test_every_line_is_one_json_object_whatever_is_told(
    fields: dict[str, object], message: str
) -> None:
    record = logging.makeLogRecord({"name": "sloserve.x", "msg": message, **fields})
    line = logs.JsonLines().format(record)
    assert "\n" not in line

    def no_constant(text: str) -> float:
        raise AssertionError(f"not JSON: {text}")

    told = json.loads(line, parse_constant=no_constant)
    assert told["message"] == message
    given_ones = {k: v for k, v in fields.items() if v is not None and v != ""}
    assert told.keys() - {"time", "level", "logger", "message"} == given_ones.keys()


@given(st.dictionaries(st.text("abcdef", min_size=3), VALUES))
def test_a_line_for_people_is_one_line_whatever_is_told(fields: dict[str, object]) -> None:
    record = logging.makeLogRecord({"name": "sloserve.x", "msg": "said", **fields})
    assert len(logs.HumanLines().format(record).splitlines()) == 1


def test_numbers_that_json_does_not_know_are_words(lines: Any) -> None:
    log, text = lines("json")
    log.info("said", extra={"retry_after_s": math.inf})
    assert json.loads(text.getvalue())["retry_after_s"] == "inf"


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    logs.add_log_flags(parser, default_level="warning")
    return parser.parse_args(words)


@contextlib.contextmanager
def bare() -> Iterator[logging.Logger]:
    """As in a process that has not set up logging; the root logger."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    own = {name: logging.getLogger(name).level for name in logs.OWN}
    root.handlers.clear()
    try:
        yield root
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        for name, before in own.items():
            logging.getLogger(name).setLevel(before)


@pytest.mark.parametrize(
    ("words", "env", "level", "formatter"),
    [
        ((), {}, "WARNING", logs.HumanLines),
        ((), {"SLOSERVE_LOG_LEVEL": "info", "SLOSERVE_LOG_FORMAT": "json"}, "INFO", logs.JsonLines),
        (("--log-level", "error"), {"SLOSERVE_LOG_LEVEL": "info"}, "ERROR", logs.HumanLines),
        (("--log-format", "human"), {"SLOSERVE_LOG_FORMAT": "json"}, "WARNING", logs.HumanLines),
        ((), {"SLOSERVE_LOG_LEVEL": "", "SLOSERVE_LOG_FORMAT": ""}, "WARNING", logs.HumanLines),
    ],
)
def test_flags_win_over_the_environment(
    words: tuple[str, ...], env: dict[str, str], level: str, formatter: type
) -> None:
    with bare() as root:
        logs.set_up_from(parsed(*words), env)
        (handler,) = root.handlers
        assert isinstance(handler.formatter, formatter)
        assert logging.getLevelName(logging.getLogger("sloserve").level) == level


def test_debugging_is_about_ourselves_only() -> None:
    with bare():
        logs.set_up(level="debug", form="human")
        assert logging.getLogger("sloserve.gateway").isEnabledFor(logging.DEBUG)
        assert logging.getLogger("sloserve_operator.lease").isEnabledFor(logging.DEBUG)
        assert not logging.getLogger("kubernetes.client.rest").isEnabledFor(logging.DEBUG)


def test_logging_that_is_set_up_already_is_left_alone() -> None:
    with bare() as root:
        own = logging.NullHandler()
        root.addHandler(own)
        logs.set_up(level="debug", form="json")
        assert root.handlers == [own]


@pytest.mark.parametrize("variable", [logs.LEVEL_VARIABLE, logs.FORMAT_VARIABLE])
def test_a_variable_that_can_not_be_is_bad_input(variable: str) -> None:
    with pytest.raises(BadInput, match=rf"{variable}: is 'loud'; allowed: "):
        logs.set_up_from(parsed(), {variable: "loud"})


def test_children_get_the_flags_that_were_given() -> None:
    assert logs.environment_of(parsed()) == {}
    assert logs.environment_of(parsed("--log-level", "debug", "--log-format", "json")) == {
        "SLOSERVE_LOG_LEVEL": "debug",
        "SLOSERVE_LOG_FORMAT": "json",
    }
