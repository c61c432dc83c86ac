"""Supervision of one child."""

import asyncio
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sloserve.http.serve import port_of, reserve
from sloserve.local.children import (
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    Arguments,
    Child,
    Launch,
    Phase,
    pause_s,
)

SLEEPS = "import time; print('up', flush=True); time.sleep(600)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEPS


@pytest.fixture
def launch(tmp_path: Path) -> Callable[[str], Launch]:
    """How a piece of Python is started."""
    return lambda code: Launch(
        lambda: Arguments(["-c", code]), tmp_path / "logs" / "child.log", program=(sys.executable,)
    )


async def came_up(child: Child) -> None:
    while child.last_words() != "up" or child.pid is None:  # it may be quicker than we know of it
        await asyncio.sleep(0.01)


def phase(child: Child) -> Phase:
    return child.phase  # asked anew each time: it changes behind the type checker's back


def test_pauses_double_up_to_a_bound() -> None:
    pauses = [pause_s(n) for n in range(1, 9)]
    assert pauses[:4] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S, 8 * FIRST_PAUSE_S]
    assert max(pauses) == LONGEST_PAUSE_S
    assert pause_s(10_000) == LONGEST_PAUSE_S


def test_a_child_that_is_told_to_stop_ends_and_stays_ended(launch: Callable[[str], Launch]) -> None:
    async def story() -> None:
        codes: list[int] = []
        child = Child("a", launch(SLEEPS), ended=codes.append)
        await came_up(child)
        assert phase(child) is Phase.RUNNING
        assert child.pid is not None
        child.ask_to_stop()
        assert await child.wait(timeout_s=60)
        assert phase(child) is Phase.ENDED
        assert codes == []

    asyncio.run(story())


def test_a_child_that_ends_by_itself_tells_its_code_and_last_words(
    launch: Callable[[str], Launch],
) -> None:
    async def story() -> None:
        ended = asyncio.Event()
        codes: list[int] = []
        code = "import sys; print('no memory\\n', file=sys.stderr); sys.exit(7)"

        def note(exit_code: int) -> None:
            codes.append(exit_code)
            ended.set()

        child = Child("a", launch(code), ended=note)
        await ended.wait()
        assert codes == [7]
        assert phase(child) is Phase.PAUSED
        assert child.last_words() == "no memory"
        child.ask_to_stop()  # in the pause: no other start
        assert await child.wait(timeout_s=60)
        assert phase(child) is Phase.ENDED
        assert child.num_restarts == 0

    asyncio.run(story())


def test_a_child_that_does_not_listen_is_killed(launch: Callable[[str], Launch]) -> None:
    async def story() -> None:
        child = Child("a", launch(STUBBORN), ended=lambda code: None)
        await came_up(child)
        child.ask_to_stop()
        assert not await child.wait(timeout_s=0.2)
        child.kill()
        assert await child.wait(timeout_s=60)

    asyncio.run(story())


def test_a_child_is_started_again(launch: Callable[[str], Launch], tmp_path: Path) -> None:
    once = tmp_path / "once"
    code = (
        f"import pathlib, sys; once = pathlib.Path({str(once)!r})\n"
        f"if not once.exists(): once.touch(); sys.exit(1)\n{SLEEPS}"
    )

    async def story() -> None:
        child = Child("a", launch(code), ended=lambda c: None)
        await came_up(child)
        assert child.num_restarts == 1
        child.kill()
        assert await child.wait(timeout_s=60)

    asyncio.run(story())


def test_every_start_hands_over_a_port_that_nobody_else_can_take(tmp_path: Path) -> None:
    ports: list[int] = []
    code = "import socket, sys; print(socket.socket(fileno=int(sys.argv[1])).getsockname()[1])"

    def arguments() -> Arguments:
        sock = reserve("127.0.0.1", 0)
        ports.append(port_of(sock))
        return Arguments(["-c", code, str(sock.fileno())], (sock,))

    async def story() -> None:
        log_path, ended = tmp_path / "child.log", asyncio.Event()
        launch = Launch(arguments, log_path, program=(sys.executable,))
        child = Child("a", launch, ended=lambda _: ended.set())
        await ended.wait()
        assert child.last_words() == str(ports[0])
        child.ask_to_stop()
        assert await child.wait(timeout_s=60)

    asyncio.run(story())
    with contextlib.closing(reserve("127.0.0.1", ports[0])):
        pass  # and nothing holds it here any more
