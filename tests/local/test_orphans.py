"""A child does not outlive its parent."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

CHILD = """
import os, sys, time
from sloserve.local.orphans import die_with_parent
die_with_parent()
{then}
print(os.getpid(), flush=True)
time.sleep(600)
"""
AGAIN = "if 'again' not in sys.argv: os.execv(sys.executable, [*sys.orig_argv, 'again'])"
PARENT = """
import subprocess, sys, time
from sloserve.local.orphans import environment
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE,
                         env=environment(), start_new_session=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("then", ["", AGAIN], ids=["at once", "after starting itself again"])
def test_a_killed_parent_takes_its_child_along(
    then: str, eventually: Callable[..., Any], is_alive: Callable[[int], bool]
) -> None:
    command = [sys.executable, "-c", PARENT, CHILD.format(then=then)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert is_alive(child)
        parent.kill()
        parent.wait()
        eventually(lambda: not is_alive(child), "the child to die")


def test_the_end_of_the_pipe_is_the_end_of_the_parent() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD.format(then="")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "SLOSERVE_PARENT": str(os.getpid())},
    )
    with child:
        assert child.stdout is not None
        assert child.stdin is not None
        child.stdout.readline()
        child.stdin.close()
        assert child.wait(timeout=60) == 1


def test_a_process_that_nobody_supervises_lives_on_without_input() -> None:
    quick = CHILD.format(then="").replace("time.sleep(600)", "time.sleep(0.2)")
    environment = {k: v for k, v in os.environ.items() if k != "SLOSERVE_PARENT"}
    done = subprocess.run(
        [sys.executable, "-c", quick], stdin=subprocess.DEVNULL, env=environment, timeout=60
    )
    assert done.returncode == 0


def test_a_child_of_a_child_is_left_alone() -> None:
    grandchild = (
        "import subprocess; subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)"
    )
    outer = CHILD.format(then=grandchild).replace("time.sleep(600)", "")
    inner = CHILD.format(then="").replace("time.sleep(600)", "")
    child = subprocess.Popen(
        [sys.executable, "-c", outer, inner],
        stdin=subprocess.PIPE,
        env={**os.environ, "SLOSERVE_PARENT": str(os.getpid())},
    )
    with child:
        assert child.wait(timeout=60) == 0
