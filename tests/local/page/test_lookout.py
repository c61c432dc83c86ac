"""Asking a service how it is: what is asked, how often, and what comes of silence."""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

from sloserve.http.serve import Listener, bind, serving
from sloserve.local.lookout import Lookout
from sloserve.local.scene import Scene

COUNTS = 'sloserve_slo_requests_total{service="s",model="m",slo_class="chat"} 7.0\n'


class Service:
    """Gateway and replica in one, and what they were asked."""

    def __init__(self, steps: dict[str, Any]) -> None:
        self.asked: Counter[str] = Counter()
        self.queries: list[str] = []
        self.address = ""
        self.down = False
        self._steps = steps

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        self.asked[path] += 1
        if path == "/debug/steps":
            self.queries.append(scope["query_string"].decode())
        texts = {
            "/report": json.dumps(self._report()),
            "/metrics": COUNTS,
            "/debug/steps": json.dumps(self._steps),
        }
        status = 503 if self.down else 200
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": texts[path].encode()})

    def _report(self) -> dict[str, Any]:
        replica = {"address": self.address, "replica": "r0", "state": "ready", "problem": "",
                   "inflight": 0}  # fmt: skip
        return {
            "service": "s", "model": "m", "generation": 1, "inflight": 0, "pending": 0,
            "defaultClass": "chat", "classes": [], "replicas": [replica],
        }  # fmt: skip


def looking(
    steps: dict[str, Any], story: Callable[[Lookout, Scene, Service], Awaitable[None]]
) -> None:
    """Run a story against a service on a real socket; time is what the story says."""

    async def main() -> None:
        service, scene, sock = Service(steps), Scene("s"), bind("127.0.0.1", 0)
        service.address = f"127.0.0.1:{sock.getsockname()[1]}"
        async with serving([Listener(service, sock)], grace_s=1), aiohttp.ClientSession() as s:
            url = f"http://{service.address}"
            await story(Lookout(s, scene, internal_url=url), scene, service)

    asyncio.run(main())


def test_little_is_asked_while_nobody_looks_and_more_while_somebody_does(told_steps: Any) -> None:
    async def story(lookout: Lookout, scene: Scene, service: Service) -> None:
        for half_second in range(40):
            await lookout.look(half_second / 2)
        assert service.asked == {"/report": 40, "/metrics": 4, "/debug/steps": 4}
        assert set(service.queries) == {"last=0&after=0", "last=0&after=2"}
        service.asked.clear()
        for half_second in range(40, 60):
            lookout.seen(half_second / 2)
            await lookout.look(half_second / 2)
        assert service.asked == {"/report": 20, "/metrics": 10, "/debug/steps": 10}
        assert service.queries[-1] == "last=240&after=2"

    looking(told_steps(1, 2), story)


def test_a_gateway_that_falls_silent_is_in_trouble_and_what_it_told_stays(told_steps: Any) -> None:
    async def story(lookout: Lookout, scene: Scene, service: Service) -> None:
        assert (await lookout.look(0.0)) is scene.overview is scene.latest
        assert scene.was_ready
        assert scene.troubles == {}
        service.down = True
        assert await lookout.look(7.0) is None
        assert scene.latest is not None
        assert [(t.title, t.since_s) for t in scene.troubles.values()] == [
            ("The gateway does not answer", 7.0)
        ]
        service.down = False
        await lookout.look(8.0)
        assert scene.troubles == {}

    looking(told_steps(), story)


def test_steps_of_a_replica_that_left_are_forgotten(told_steps: Any) -> None:
    async def story(lookout: Lookout, scene: Scene, service: Service) -> None:
        await lookout.look(0.0)
        assert set(scene.steps) == {service.address}
        service.address = "127.0.0.1:1"  # nobody listens there
        await lookout.look(10.0)
        assert set(scene.steps) == {"127.0.0.1:1"}
        assert not scene.steps["127.0.0.1:1"].steps

    looking(told_steps(1), story)
