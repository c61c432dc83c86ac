"""What gateways report, asked of each every few seconds on its internal port."""

import asyncio
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import inf
from operator import itemgetter

import aiohttp

from sloserve.errors import BadInput
from sloserve_operator import names
from sloserve_operator.api import Key, Obj, key_of, label_of, uid_of
from sloserve_operator.pods import leaving, ready
from sloserve_operator.reports import GatewayReport, parse_report

log = logging.getLogger(__name__)

TICK_S = 0.5
ASLEEP_S = 5.0
"""A service without replicas is asked more often: somebody may wait for one."""
LEAVING_S = 2.0
"""A gateway that goes away is asked as often as that: its last counts go with it."""
FRESH_S = 45.0
"""An older report says nothing any more."""
TIMEOUT = aiohttp.ClientTimeout(total=3.0, connect=2.0)
MAX_BYTES = 4 * 1024 * 1024
NUM_AT_ONCE = 32
_AGE = re.compile(rb'"ageMs":\s*[0-9.]+,?')


@dataclass(slots=True)
class _Told:
    """The last report of one gateway."""

    key: Key
    at_s: float
    due_s: float
    text: bytes = b""
    report: GatewayReport | None = None


def service_of(pod: Obj) -> Key:
    """The service of a gateway."""
    return Key(key_of(pod).namespace, label_of(pod, names.INSTANCE) or "")


class Poller:
    """
    Asks gateways for their reports. `changed` is called with a service's key when one says
    something new; a gateway that says the same again costs a request and no more.
    """

    def __init__(
        self,
        *,
        gateways: Callable[[], Iterable[Obj]],
        asleep: Callable[[Key], bool],
        changed: Callable[[Key], None],
        clock: Callable[[], float],
        poll_s: float,
        port: int = names.INTERNAL_PORT,
    ) -> None:
        self._gateways = gateways
        self._asleep = asleep
        self._changed = changed
        self._clock = clock
        self._poll_s = poll_s
        self._port = port
        self._told: dict[str, _Told] = {}
        self._busy: set[str] = set()

    def fresh(self, pods: Iterable[Obj]) -> Mapping[str, GatewayReport]:
        """Reports of these pods, by uid, that are not too old."""
        least_s = self._clock() - FRESH_S
        found = {uid_of(pod): self._told.get(uid_of(pod)) for pod in pods}
        return {
            uid: told.report
            for uid, told in found.items()
            if told is not None and told.report is not None and told.at_s >= least_s
        }

    async def run(self) -> None:
        """Ask until cancelled."""
        # Gateways keep connections for 75 s: the next question finds the last one's.
        connector = aiohttp.TCPConnector(limit=NUM_AT_ONCE, keepalive_timeout=2 * self._poll_s)
        async with (
            aiohttp.ClientSession(
                connector=connector, timeout=TIMEOUT, cookie_jar=aiohttp.DummyCookieJar()
            ) as session,
            asyncio.TaskGroup() as group,
        ):
            while True:
                for pod in self._due():
                    self._busy.add(uid_of(pod))
                    group.create_task(self._ask(session, pod))
                await asyncio.sleep(TICK_S)

    def _due(self) -> list[Obj]:
        """
        Gateways to ask now: those first that have waited longest, when there are too many.

        Those of one service come together, so that one look at it does for all of them.
        """
        now_s, alive = self._clock(), set()
        soon: list[tuple[float, Key, Obj]] = []
        for pod in self._gateways():
            uid = uid_of(pod)
            alive.add(uid)
            told = self._told.get(uid)
            due_s = -inf if told is None else told.due_s
            if told is not None and due_s > now_s and self._sooner(pod, told, now_s):
                due_s = now_s
            if due_s - now_s > self._poll_s / 2 or uid in self._busy:
                continue
            address = (pod.get("status") or {}).get("podIP")
            if address and (ready(pod) or (leaving(pod) and told is not None)):
                soon.append((due_s, service_of(pod), pod))
        for uid in self._told.keys() - alive:
            del self._told[uid]
        soon.sort(key=itemgetter(0))
        services = {key for due_s, key, _ in soon if due_s <= now_s}
        asked = [pod for _, key, pod in soon if key in services]
        return asked[: max(0, NUM_AT_ONCE - len(self._busy))]

    def _sooner(self, pod: Obj, told: _Told, now_s: float) -> bool:
        if leaving(pod):
            return now_s - told.at_s >= LEAVING_S
        return self._asleep(told.key) and now_s - told.at_s >= ASLEEP_S

    async def _ask(self, session: aiohttp.ClientSession, pod: Obj) -> None:
        uid, key = uid_of(pod), service_of(pod)
        told = self._told.setdefault(uid, _Told(key, -inf, 0.0))
        host = str(pod["status"]["podIP"])
        shown = f"[{host}]" if ":" in host else host
        try:
            async with session.get(f"http://{shown}:{self._port}/report") as answer:
                if answer.status != 200:
                    raise BadInput(f"answered {answer.status}")
                text = await answer.content.read(MAX_BYTES)
            same = _AGE.sub(b"", text)
            told.at_s = self._clock()
            if same != told.text:
                told.report = parse_report(json.loads(text))
                told.text = same
                self._changed(key)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, BadInput) as error:
            level = logging.DEBUG if leaving(pod) else logging.WARNING
            problem = str(error) or type(error).__name__
            log.log(
                level,
                "a gateway tells nothing",
                extra={
                    "service": f"{key.namespace}/{key.name}",
                    "pod": key_of(pod).name,
                    "error": problem,
                },
            )
            if told.report is not None and self._clock() - told.at_s >= FRESH_S:
                told.report, told.text = None, b""
                self._changed(key)
        finally:
            told.due_s = self._clock() + self._poll_s
            self._busy.discard(uid)
