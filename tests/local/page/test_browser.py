"""The status page in a real browser, before a real `sloserve up`."""

import contextlib
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench.ports import free_port

pytest.importorskip("fastapi", reason="needs the gateway: pip install 'sloserve[gateway]'")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

LEVEL = "document.getElementById('verdict')?.dataset.level"
NAMES = "[...document.querySelectorAll('#{} {}')].map(e => e.innerText)"
INK = """
[...document.querySelectorAll('canvas')].filter(c => c.width && c.height).some(canvas => {
  const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  return new Set(new Uint32Array(data.buffer)).size > 3;
})
"""


def ask(world: Any, slo_class: str) -> None:
    """One streamed answer of a class; a refusal is an answer too."""
    body = b'{"model": "demo", "prompt": "hi", "max_tokens": 6, "stream": true}'
    headers = {"content-type": "application/json", "x-slo-class": slo_class}
    request = urllib.request.Request(f"{world.url}/v1/completions", body, headers)
    with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(request) as answer:
        answer.read()


def test_the_page_shows_a_service_from_its_start_to_its_end(
    manifest: dict[str, Any], up: Callable[..., Any], browser: Any, tmp_path: Path
) -> None:
    manifest["spec"]["sloClasses"].append(
        {"name": "hopeless", "ttft": {"target": "1ms"}, "tpot": "1s", "onInfeasible": "Decline"}
    )
    port = free_port()
    world = up(manifest, "--status-page", f"127.0.0.1:{port}")
    world.ready(2)
    assert f"status page: http://127.0.0.1:{port}" in world.told()

    browser.open(f"http://127.0.0.1:{port}/")
    browser.wait(f"{LEVEL} === 'idle'", "the service to be shown as ready")
    assert browser.text("#service") == "demo"
    assert browser.text("#link") == "live"
    assert browser.run(NAMES.format("classes", "h3")) == ["chat", "hopeless"]
    assert browser.run(NAMES.format("replicas", "td:first-child b")) == ["replica-0", "replica-1"]
    pills = NAMES.format("replicas", ".pill")
    browser.wait(f"({pills}).join() === 'ready,ready'", "both replicas to be shown as ready")

    for _ in range(4):
        ask(world, "chat")
    browser.wait(f"{LEVEL} === 'good'", "kept promises to be shown")
    browser.wait("document.querySelector('.kept b').innerText === '100 %'", "the attainment")
    browser.wait(INK, "steps to be drawn")
    browser.wait("!!document.querySelector('.seen b')", "the latency that was seen")
    browser.run("[...document.querySelectorAll('canvas')].find(c => !c.hidden).focus()")
    browser.press("ArrowLeft")
    assert "ms measured" in browser.wait(
        "[...document.querySelectorAll('.readout')].map(e => e.innerText).find(Boolean)",
        "a step to be told in words",
    )

    for _ in range(6):
        ask(world, "hopeless")
    browser.wait(f"{LEVEL} === 'bad'", "the missed promise")
    assert browser.text("#verdict-title") == "hopeless misses its promise"
    assert "What binds: TTFT" in browser.wait(
        "(t => t.includes('binds') && t)(document.getElementById('verdict-text').innerText)",
        "what binds",
    )
    assert browser.text("#verdict-since").startswith("since ")

    for width in (1280, 600, 360):
        browser.resize(width, 800)
        wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        assert not browser.run(wide), f"at {width} px the page is wider than its window"

    assert browser.complaints == []
    assert {url.partition("/status.json")[0].rstrip("/") for url in browser.requested} <= {
        f"http://127.0.0.1:{port}{path}" for path in ("", "/page.css", "/page.js")
    } | {"data:,"} | {url for url in browser.requested if url.startswith("data:image/svg+xml,")}

    world.signal(signal.SIGINT)
    assert world.process.wait(timeout=60) == 130
    browser.wait("document.body.dataset.link === 'lost'", "the loss to be noticed")
    assert browser.text("#link").startswith("no connection since ")
    assert browser.text("#verdict-title") in ("Stopped", "No connection")
    assert browser.run(NAMES.format("classes", "h3")) == ["chat", "hopeless"]
