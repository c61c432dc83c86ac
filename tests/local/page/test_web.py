"""The page's server: what it answers, to whom, and what it looks like in numbers."""

import asyncio
import json
import re
from importlib import resources
from typing import Any

import aiohttp
import pytest

from sloserve.errors import BadInput, Failed
from sloserve.http.serve import Listener, bind, serving, url_of
from sloserve.local.up import bind_page
from sloserve.local.web import Page

HERE = "127.0.0.1:8081"


@pytest.fixture
def page() -> Page:
    return Page(lambda: {"service": "demo"}, host="127.0.0.1")


def ask(page: Page, method: str, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """One request over a real socket."""

    async def main() -> tuple[int, dict[str, str], bytes]:
        sock = bind("127.0.0.1", 0)
        async with (
            serving([Listener(page, sock)], grace_s=1),
            aiohttp.ClientSession() as session,
            session.request(method, url_of(sock) + path, headers=headers) as response,
        ):
            found = {name.lower(): value for name, value in response.headers.items()}
            return response.status, found, await response.read()

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript"),
     ("/status.json", "application/json")],
)  # fmt: skip
def test_everything_is_served_with_a_policy_that_lets_nothing_in(
    page: Page, path: str, kind: str
) -> None:
    status, headers, body = ask(page, "GET", path)
    assert (status, headers["content-type"].partition(";")[0]) == (200, kind)
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert "server" not in headers
    assert body


def test_status_is_looked_up_at_every_request() -> None:
    looks = iter(range(9))
    page = Page(lambda: {"look": next(looks)}, host="127.0.0.1")
    assert [json.loads(page.reply("GET", "/status.json", host=HERE).body) for _ in range(2)] == [
        {"look": 0},
        {"look": 1},
    ]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", ["/", "/status.json"])
def test_it_only_reads(page: Page, method: str, path: str) -> None:
    status, headers, _ = ask(page, method, path)
    assert (status, headers["allow"]) == (405, "GET, HEAD")


def test_head_has_no_body(page: Page) -> None:
    status, headers, body = ask(page, "HEAD", "/")
    assert (status, body) == (200, b"")
    assert int(headers["content-length"]) > 1000


@pytest.mark.parametrize("path", ["/nothing", "/page.html", "/../up.py", "/%2e%2e/up.py", "//"])
def test_there_is_nothing_else(page: Page, path: str) -> None:
    assert page.reply("GET", path, host=HERE).status == 404


def test_a_foreign_name_is_refused(page: Page) -> None:
    status, headers, body = ask(page, "GET", "/status.json", host="evil.example:8081")
    assert status == 421
    assert b"demo" not in body
    assert "content-security-policy" in headers


@pytest.mark.parametrize("host", ["127.0.0.1", "LOCALHOST:9", "localhost", "[::1]:8081", "[::1]"])
def test_loopback_names_are_served_through_any_port(page: Page, host: str) -> None:
    assert page.reply("GET", "/", host=host).status == 200


@pytest.mark.parametrize("host", ["", "::1:evil", "127.0.0.1.evil.example", "10.0.0.1:8081"])
def test_other_names_are_not(page: Page, host: str) -> None:
    assert page.reply("GET", "/", host=host).status == 421


def test_whoever_listens_on_more_than_loopback_is_called_by_any_name() -> None:
    page = Page(lambda: {}, host="0.0.0.0")
    assert page.reply("GET", "/", host="build-host:8081").status == 200


def test_it_listens_on_loopback_and_takes_a_free_port_when_its_own_is_taken() -> None:
    first, second = bind_page(None), bind_page(None)
    assert first is not None
    assert second is not None
    with first, second:
        assert {s.getsockname()[0] for s in (first, second)} == {"127.0.0.1"}
        assert first.getsockname()[1] != second.getsockname()[1]


def test_a_port_that_was_asked_for_must_be_free() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        for listen in (str(port), f"127.0.0.1:{port}"):
            with pytest.raises(Failed, match=f"can't listen on 127.0.0.1:{port}"):
                bind_page(listen)


def test_a_bare_port_is_one_on_loopback() -> None:
    sock = bind_page("0")
    assert sock is not None
    with sock:
        assert sock.getsockname()[0] == "127.0.0.1"


def test_it_can_be_left_out_and_nonsense_is_bad_input() -> None:
    assert bind_page("off") is None
    for listen in ("none", "99999", "127.0.0.1:http"):
        with pytest.raises(BadInput, match=r"--status-page: .* or off"):
            bind_page(listen)


def read(name: str) -> str:
    return resources.files("sloserve.local").joinpath("page", name).read_text("utf-8")


def test_the_page_asks_nobody_else_and_brings_no_inline_code() -> None:
    html = read("page.html")
    assert not re.search(r"https?://", html + read("page.css"))
    outward = set(re.findall(r"https?://[^\s\"'`]+", read("page.js")))
    assert outward <= {"http://www.w3.org/2000/svg"}  # a name, never asked for
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=|<style", html)
    assert "innerHTML" not in read("page.js")


def colours(theme: str) -> dict[str, tuple[float, ...]]:
    css = read("page.css")
    light, dark = re.findall(r":root \{([^}]+)\}", css)
    found = dict(re.findall(r"--([\w-]+): (#\w{6});", light))
    if theme == "dark":
        found |= dict(re.findall(r"--([\w-]+): (#\w{6});", dark))
    return {k: tuple(int(v[i : i + 2], 16) / 255 for i in (1, 3, 5)) for k, v in found.items()}


def luminance(colour: tuple[float, ...]) -> float:
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(a: Any, b: Any) -> float:
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_words_can_be_read_in_both_themes(theme: str) -> None:
    """WCAG AA: 4.5 for words, 3 for what is drawn."""
    c = colours(theme)
    pairs = [("ink", "card"), ("ink", "ground"), ("quiet", "card"), ("quiet", "ground")]
    tones = ("good", "warning", "bad", "busy")
    pairs += [(tone, f"{tone}-soft") for tone in tones] + [(tone, "card") for tone in tones]
    pairs += [("ink", f"{tone}-soft") for tone in tones] + [("quiet", "sunk"), ("ink", "sunk")]
    words = {f"{a} on {b}": round(contrast(c[a], c[b]), 2) for a, b in pairs}
    assert {pair: n for pair, n in words.items() if n < 4.5} == {}
    drawn = {name: contrast(c[name], c["card"]) for name in ("prefill", "decode", "effort")}
    assert {name: n for name, n in drawn.items() if n < 3} == {}
