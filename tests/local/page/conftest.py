"""A service's picture made by hand, and a real browser."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sloserve.local.overview import ClassRow, Overview, ReplicaRow
from sloserve.local.scene import Scene
from sloserve.local.steps import StepLog

PATIENCE_S = 60.0
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
EXEC = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Chromium is spoken to over the file descriptors 3 (to it) and 4 (from it)."""


def a_class_row(name: str, *, judged: int = 0, kept: int = 0, **more: Any) -> ClassRow:
    """A class with 95 % promised, and how it fared in the last five minutes."""
    row = ClassRow(
        name=name,
        ttft="1s",
        tpot="100ms",
        objective=0.95,
        attainment=kept / judged if judged else None,
        attainment_since_start=kept / judged if judged else None,
        num_judged=judged,
        frontier=(1, 850),
        num_pending=0,
        ttft_target_s=1.0,
        tpot_targets_s=(0.1,),
        num_recent=judged,
        num_recent_kept=kept,
        num_arrived=judged,
    )
    return replace(row, **more)


def a_replica_row(name: str, **more: Any) -> ReplicaRow:
    """A replica that is ready and idle, at `NAME:1`."""
    row = ReplicaRow(
        address=f"{name}:1",
        name=name,
        state="ready",
        problem="",
        num_inflight=0,
        num_running=0,
        num_waiting=0,
        free_blocks=75,
        total_blocks=100,
        generation=3,
        token_supply_per_s=512.25,
        frontier={"chat": (1, 850), "code": None},
    )
    return replace(row, **more)


def an_overview(*classes: ClassRow, replicas: tuple[ReplicaRow, ...]) -> Overview:
    return Overview(
        service="assistant",
        model="tiny",
        generation=3,
        num_inflight=4,
        num_pending=1,
        default_class=classes[0].name,
        classes=classes,
        replicas=replicas,
    )


def steps(*numbers: int, **more: Any) -> dict[str, Any]:
    """What `/debug/steps` tells: steps predicted at 10 ms that took 12 ms."""
    entries = [
        {"number": n, "predicted_s": 0.010, "period_s": 0.012, "num_decodes": 3,
         "num_prefill_tokens": 20, "num_best_effort_tokens": 5}
        for n in numbers
    ]  # fmt: skip
    error = {"num_steps": len(entries), "mean_ratio": 1.2, "off": False}
    last = max(numbers, default=0)
    return {"num_steps": last, "stalled": False, "error": error, "steps": entries} | more


@pytest.fixture
def class_row() -> Callable[..., ClassRow]:
    return a_class_row


@pytest.fixture
def replica_row() -> Callable[..., ReplicaRow]:
    return a_replica_row


@pytest.fixture
def told_steps() -> Callable[..., dict[str, Any]]:
    return steps


@pytest.fixture
def scene() -> Callable[..., Scene]:
    """`scene(*classes, replicas=...)`: a service that serves; one replica unless said."""

    def build(*classes: ClassRow, replicas: tuple[ReplicaRow, ...] | None = None) -> Scene:
        rows = (a_replica_row("r0"),) if replicas is None else replicas
        overview = an_overview(*(classes or (a_class_row("chat"),)), replicas=rows)
        made = Scene("assistant", service="assistant", url="http://x:1", overview=overview)
        made.was_ready = True
        made.steps = {row.address: StepLog() for row in rows}
        return made

    return build


class Browser:
    """Headless Chromium with one page, over its debugging protocol."""

    def __init__(self, path: str, profile: Path) -> None:
        to_child, ours_out = os.pipe()
        ours_in, from_child = os.pipe()
        root = ["--no-sandbox"] if os.geteuid() == 0 else []
        self.process = subprocess.Popen(
            [
                sys.executable, "-c", EXEC, str(to_child), str(from_child), path, *root,
                "--headless", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu",
                "--disable-dev-shm-usage", "--disable-background-networking",
                "--disable-component-update", "--disable-sync", f"--user-data-dir={profile}",
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            ],
            pass_fds=(to_child, from_child),
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        os.close(to_child)
        os.close(from_child)
        self._out = os.fdopen(ours_out, "wb", buffering=0)
        self._in = os.fdopen(ours_in, "rb")
        self._ids = itertools.count(1)
        self._answers: dict[int, dict[str, Any]] = {}
        self._heard = threading.Condition()
        self.events: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = str(
            self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        )
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command and its result."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        with self._heard:
            assert self._heard.wait_for(lambda: number in self._answers, PATIENCE_S), method
            answer = self._answers.pop(number)
        assert "error" not in answer, (method, answer)
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, url: str) -> None:
        """Go to a page."""
        self.call("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        told = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def text(self, selector: str) -> str:
        """What an element says; empty while it is not there."""
        return str(self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def wait(self, script: str, what: str) -> Any:
        """The first true value of an expression."""
        end_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < end_s:
            value = self.run(script)
            if value:
                return value
            time.sleep(0.1)
        raise AssertionError(f"waited in vain: {what}; it shows: {self.text('body')}")

    def press(self, key: str) -> None:
        """A key of the keyboard, down and up."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def resize(self, width: int, height: int) -> None:
        """The size of the window, in CSS pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=width < 600)  # fmt: skip

    def screenshot(self, path: Path) -> None:
        """What a person sees now, as PNG."""
        path.write_bytes(b64decode(self.call("Page.captureScreenshot")["data"]))

    @property
    def requested(self) -> list[str]:
        """Every address that was asked for."""
        return [
            str(event["params"]["request"]["url"])
            for event in list(self.events)
            if event["method"] == "Network.requestWillBeSent"
        ]

    @property
    def complaints(self) -> list[dict[str, Any]]:
        """Errors and warnings on the console, and exceptions."""
        kinds = {"Runtime.exceptionThrown", "Log.entryAdded"}
        return [
            event
            for event in list(self.events)
            if event["method"] in kinds
            or (
                event["method"] == "Runtime.consoleAPICalled"
                and event["params"]["type"] in ("error", "warning", "assert")
            )
        ]

    def close(self) -> None:
        """End it, and wait for it."""
        self.process.kill()
        self.process.wait()
        self._reader.join(10)
        self._out.close()
        self._in.close()

    def _read(self) -> None:
        rest = b""
        while chunk := os.read(self._in.fileno(), 65536):
            *whole, rest = (rest + chunk).split(b"\0")
            with self._heard:
                for raw in whole:
                    message = json.loads(raw)
                    if "id" in message:
                        self._answers[message["id"]] = message
                    else:
                        self.events.append(message)
                self._heard.notify_all()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """A browser with nothing open; `CHROMIUM` names the program if it is in no usual place."""
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("no browser: install Chromium, or put the path of one into CHROMIUM")
    made = Browser(path, tmp_path / "profile")
    yield made
    made.close()
