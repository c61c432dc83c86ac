"""Traffic that goes on while a story happens, from a client that never retries."""

import asyncio
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, cast

import aiohttp
from e2e.harness.service import Service, manifest
from e2e.harness.waiting import until

from sloserve.load import Ending, Judged, Record, judge
from sloserve.load.client import run_load
from sloserve.load.endpoint import Endpoint, Prompts
from sloserve.load.trace import Arrival, Trace
from sloserve.slo import SloClass
from sloserve.slo.manifest import parse_service

NUM_LATEST = 24


@dataclass(frozen=True, slots=True)
class Seen:
    """What the client saw from its first request to its last."""

    records: tuple[Record, ...]

    @property
    def judged(self) -> list[Judged]:
        """Every request with its verdict."""
        return [judge(record) for record in self.records]

    @property
    def lost(self) -> list[str]:
        """Requests that did not end as they should, in words; a zero-error window has none."""
        return [
            f"request {r.number}, sent {r.sent_s:.2f} s after the start, {r.ending.value} at "
            f"{r.ended_s:.2f} s on {r.replica or 'no replica'} after "
            f"{sum(e.num_tokens for e in r.emissions)} tokens: {r.error}"
            for r in self.records
            if r.ending is not Ending.FINISHED
        ]

    def attainment(self, slo_class: str) -> float:
        """Share of the class's requests that kept their promise."""
        told = [j for j in self.judged if j.slo_class == slo_class and j.eligible]
        assert told, f"no request of {slo_class}"
        return sum(j.attained for j in told) / len(told)

    @property
    def replicas(self) -> Counter[str]:
        """How many requests each replica answered."""
        return Counter(r.replica for r in self.records if r.replica)


class _Endless:
    """A trace at a steady rate that ends when told to."""

    def __init__(self, rate: float, prompt_tokens: int, output_tokens: int, classes: list[str]):
        self._rate, self._classes = rate, classes
        self._prompt_tokens, self._output_tokens = prompt_tokens, output_tokens
        self.ended = threading.Event()

    @property
    def arrivals(self) -> Iterator[Arrival]:
        number = 0
        while not self.ended.is_set():
            slo_class = self._classes[number % len(self._classes)]
            yield Arrival(number / self._rate, self._prompt_tokens, self._output_tokens, slo_class)
            number += 1


class Traffic:
    """
    Steady open-loop streams on a service while the `with` block runs; `seen` afterwards.

    `rate` requests/s of `output_tokens` tokens each, classes in turn. Leaving the block stops new
    requests and waits for the open ones, at most `drain_s`. `seconds(n)` lets it run.
    `base_url` (ends in /v1) goes past the Service. With `keep_alive` False each request makes a
    connection of its own: gateways get equal shares.
    """

    def __init__(
        self,
        service: Service,
        *,
        rate: float = 4.0,
        prompt_tokens: int = 32,
        output_tokens: int = 100,
        classes: list[Mapping[str, Any]] | None = None,
        drain_s: float = 60.0,
        base_url: str | None = None,
        keep_alive: bool = True,
    ) -> None:
        spec = parse_service(manifest(service.name, **({"sloClasses": classes} if classes else {})))
        self._classes: dict[str, SloClass] = {c.name: c for c in spec.classes}
        self._endpoint = Endpoint(base_url or service.base_url, service.name)
        self._trace = _Endless(rate, prompt_tokens, output_tokens, list(self._classes))
        self._drain_s = drain_s
        self._keep_alive = keep_alive
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)
        self._records: list[Record] = []
        self._error: BaseException | None = None
        self._start_s = 0.0
        self.num_ended = 0
        self.answered: Counter[str] = Counter()
        """Requests that ended well so far, by replica."""
        self.latest: deque[Record] = deque(maxlen=NUM_LATEST)
        """The last that ended, however they did."""

    def __enter__(self) -> "Traffic":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._trace.ended.set()
        self._thread.join(self._drain_s + 30)
        if error is None and self._error is not None:
            raise self._error

    def seconds(self, duration_s: float) -> None:
        """Let it run for a while."""
        time.sleep(duration_s)

    def more(self, num_ended: int, *, timeout_s: float = 60) -> None:
        """Let it run until so many more requests have ended."""
        wanted = self.num_ended + num_ended
        until(lambda: self.num_ended >= wanted, f"{num_ended} more requests", timeout_s=timeout_s)

    @property
    def now_s(self) -> float:
        """Seconds since its start, as in the records."""
        return time.perf_counter() - self._start_s

    @property
    def seen(self) -> Seen:
        """What came of it; after the block only."""
        assert not self._thread.is_alive(), "the traffic still runs"
        return Seen(tuple(self._records))

    def _run(self) -> None:
        try:
            asyncio.run(self._send())
        except BaseException as error:
            self._error = error

    async def _send(self) -> None:
        connector = aiohttp.TCPConnector(limit=0, force_close=not self._keep_alive)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            self._start_s = time.perf_counter()
            self._records, _ = await run_load(
                session,
                self._endpoint,
                cast(Trace, self._trace),
                prompts=Prompts(tuple(range(100, 200)), 0.0, exact_length=True),
                classes=self._classes,
                drain_s=self._drain_s,
                on_end=self._ended,
            )

    def _ended(self, record: Record) -> None:
        self.num_ended += 1
        self.latest.append(record)
        if record.ending is Ending.FINISHED:
            self.answered[record.replica] += 1
