"""The replicas: who they are, how they feel, and what this gateway sent them."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Protocol

import aiohttp
from yarl import URL

from sloserve import routing
from sloserve.errors import BadInput
from sloserve.gateway.sources import Source
from sloserve.http import report as reports
from sloserve.wire import Report

log = logging.getLogger(__name__)

POLL_S = 0.15
POLL_TIMEOUT = aiohttp.ClientTimeout(total=2.0)
HEADER_S = 0.03
LOADING_S = 1.0
"""Between two looks at how far a replica has loaded."""
LOST_S = 10.0
"""A replica silent for so long is gone (a lost node sends no reset): its requests are too."""
UNKNOWN, SILENT, GONE, FOREIGN = "unknown", "silent", "gone", "foreign"


class Attempt(Protocol):
    """A request under way at a replica."""

    def lose(self) -> None:
        """The replica is gone."""
        ...


class Upstream:
    """One replica as this gateway holds it; `address` is its name here."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.chat_url = URL(f"http://{address}/v1/chat/completions")
        self.completions_url = URL(f"http://{address}/v1/completions")
        self.report_url = URL(f"http://{address}{reports.PATH}", encoded=True)
        self.report: Report | None = None
        self.report_s = 0.0
        """When the report came (monotonic)."""
        self.unreported_tokens = 0.0
        self.attempts: set[Attempt] = set()
        self.refused_models: set[str] = set()
        """Names of models that the gateway serves and this one does not, yet or any more."""
        self.problem = "not asked yet"
        """Why there is no report, for people."""
        self.told = UNKNOWN
        """Its state as the log has it."""
        self.ready_url = URL(f"http://{address}/ready")
        self.loading: tuple[str, int, int] | None = None
        """How far it has come while it loads: phase, bytes done, bytes in total."""
        self.loading_s = float("-inf")

    @property
    def replica(self) -> str:
        """The name it gives itself, or its address."""
        return self.report.replica if self.report is not None else self.address

    def heard(self, report: Report, now_s: float) -> None:
        """A report came."""
        self.report, self.report_s = report, now_s
        self.unreported_tokens = 0.0
        self.problem = ""

    def gone(self, problem: str) -> None:
        """It can't be reached: nothing is known of it."""
        self.report = None
        self.problem = problem
        self.refused_models.clear()

    def state(self, now_s: float) -> str:
        """loading, ready, draining, or unknown."""
        if self.report is None or now_s - self.report_s > routing.FRESH_S:
            return UNKNOWN
        return self.report.state

    def begin(self, attempt: Attempt, num_prompt_tokens: int) -> None:
        """A request goes there."""
        self.attempts.add(attempt)
        self.unreported_tokens += num_prompt_tokens

    def end(self, attempt: Attempt) -> None:
        """It is over."""
        self.attempts.discard(attempt)

    def view(self, now_s: float) -> routing.Replica:
        """As the router sees it."""
        return routing.Replica(
            self.address,
            self.report,
            now_s - self.report_s,
            len(self.attempts),
            self.unreported_tokens,
        )


class Replicas:
    """All replicas of one service, kept up to date by `run`."""

    def __init__(
        self,
        source: Source,
        *,
        service: str,
        session: aiohttp.ClientSession,
        changed: Callable[[], None],
        clock: Callable[[], float],
        poll_s: float = POLL_S,
    ) -> None:
        self._source = source
        self._service = service
        self._session = session
        self._changed = changed
        self._clock = clock
        self._poll_s = poll_s
        self._polls: set[asyncio.Task[None]] = set()
        self.known: dict[str, Upstream] = {}

    def views(self, model: str | None = None) -> list[routing.Replica]:
        """What the router looks at: all but those that do not serve `model`."""
        now_s = self._clock()
        return [u.view(now_s) for u in self.known.values() if model not in u.refused_models]

    def staying(self) -> Iterator[str]:
        """Addresses of all that are not about to leave."""
        for address, upstream in self.known.items():
            if upstream.report is None or upstream.report.state != "draining":
                yield address

    def states(self) -> dict[str, int]:
        """How many replicas are in each state."""
        counts = dict.fromkeys((*reports.STATES, UNKNOWN), 0)
        for upstream in self.known.values():
            counts[upstream.state(self._clock())] += 1
        return counts

    @property
    def num_inflight(self) -> int:
        """Requests forwarded and not ended."""
        return sum(len(upstream.attempts) for upstream in self.known.values())

    @property
    def report_age_s(self) -> float:
        """Age of the oldest report; 0 when no replica has reported."""
        reported = [u.report_s for u in self.known.values() if u.report is not None]
        return self._clock() - min(reported) if reported else 0.0

    async def run(self) -> None:
        """Look at the source, poll everybody it names; until cancelled."""
        try:
            while True:
                found = await self._source.look()
                if found is not None:
                    self.follow([_address(host, port) for host, port in found])
                await asyncio.sleep(self._source.period_s)
        finally:
            for poll in list(self._polls):
                poll.cancel()

    def follow(self, addresses: list[str]) -> None:
        """Route to these replicas and no others. Answers under way elsewhere go on."""
        for address in self.known.keys() - addresses:
            log.info("replica is no longer listed", extra={"replica": address})
            del self.known[address]
        for address in addresses:
            if address not in self.known:
                log.info("replica is listed", extra={"replica": address})
                upstream = self.known[address] = Upstream(address)
                poll = asyncio.create_task(self._poll(upstream))
                self._polls.add(poll)
                poll.add_done_callback(self._polls.discard)

    async def _poll(self, upstream: Upstream) -> None:
        """While it is listed, and after that while it still answers somebody."""
        while self.known.get(upstream.address) is upstream or upstream.attempts:
            try:
                async with self._session.get(upstream.report_url, timeout=POLL_TIMEOUT) as response:
                    text = await response.text()
                    if response.status != 200:
                        raise BadInput(f"answered {response.status}")
                    self.heard(upstream, reports.parse(text))
                await self._look_at_loading(upstream)
            except aiohttp.ClientConnectorError as error:
                self.fail(upstream, f"can't connect: {error.os_error.strerror or error}")
            except (aiohttp.ClientError, OSError, ValueError, BadInput) as error:
                self._silent(upstream, f"no report: {str(error) or type(error).__name__}")
            self._look_for_loss(upstream)
            await asyncio.sleep(self._poll_s)

    async def _look_at_loading(self, upstream: Upstream) -> None:
        """A replica that loads says how far it is, which is no part of its report."""
        report, now_s = upstream.report, self._clock()
        if report is None or report.state != "loading" or now_s - upstream.loading_s < LOADING_S:
            return
        upstream.loading_s = now_s
        async with self._session.get(upstream.ready_url, timeout=POLL_TIMEOUT) as response:
            told = await response.json(content_type=None)
        with contextlib.suppress(KeyError, TypeError, ValueError):
            done, total = int(told["bytes_done"]), int(told["bytes_total"])
            upstream.loading = (str(told["phase"]), done, total)

    def heard(self, upstream: Upstream, report: Report) -> None:
        """A report came, polled or with an answer; one of another service is ignored."""
        if report.service != self._service:
            problem = f"belongs to service {report.service!r}"
            if upstream.told != FOREIGN:
                upstream.told = FOREIGN
                log.warning("not a replica of ours", extra={**_names(upstream), "error": problem})
            upstream.gone(problem)
            return
        upstream.heard(report, self._clock())
        if report.state != upstream.told:
            upstream.told = report.state
            log.info("replica is %s", report.state, extra=_names(upstream))
        self._changed()

    def heard_header(self, upstream: Upstream, text: str | None, *, declined: bool) -> None:
        """
        The report in an answer's header, if there is a good one.

        One that is hardly newer than the last is not worth parsing, except after a decline.
        """
        due = declined or self._clock() - upstream.report_s > HEADER_S
        if text and due:
            with contextlib.suppress(BadInput):
                self.heard(upstream, reports.from_header(text))

    def fail(self, upstream: Upstream, problem: str) -> None:
        """It can't be reached at all: forgotten until it reports again."""
        if upstream.told not in (UNKNOWN, GONE):
            upstream.told = GONE
            log.warning("replica is gone", extra={**_names(upstream), "error": problem})
        upstream.gone(problem)

    def _silent(self, upstream: Upstream, problem: str) -> None:
        """It did not report this time; what is known of it ages."""
        upstream.problem = problem
        if upstream.told not in (UNKNOWN, SILENT, GONE):
            upstream.told = SILENT
            log.warning("replica is silent", extra={**_names(upstream), "error": problem})

    def _look_for_loss(self, upstream: Upstream) -> None:
        silent_s = self._clock() - upstream.report_s
        if silent_s > LOST_S and (upstream.attempts or upstream.report is not None):
            self.fail(upstream, f"silent for {silent_s:.0f} s")
            for attempt in list(upstream.attempts):
                attempt.lose()


def _names(upstream: Upstream) -> dict[str, str]:
    return {"replica": upstream.replica, "address": upstream.address}


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
