"""
The load client: sends on schedule whatever comes back, and notes when each token arrives.

Open loop: an arrival never waits for an answer. The client watches itself: how late it sent, how
late its own event loop ran, how much of a core it took; when it was the bottleneck it says so.
"""

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import aiohttp

from sloserve import wire
from sloserve.load.endpoint import Endpoint, Prompts
from sloserve.load.records import Ending, Record
from sloserve.load.stream import AnswerStream
from sloserve.load.trace import Arrival, Trace
from sloserve.slo import Decision, Promise, SloClass

LAG_LIMIT_S = 0.02
TICK_S = 0.05


@dataclass(frozen=True, slots=True)
class ClientHealth:
    """How well the client kept its own schedule."""

    send_lag_p99_s: float
    loop_lag_p99_s: float
    core_share: float  # CPU time of this process / wall time
    inexact: int  # answers whose tokens could only be counted by event

    @property
    def bottleneck(self) -> str:
        """Why the figures of this run may be the client's and not the server's; "" if fine."""
        if self.send_lag_p99_s > LAG_LIMIT_S:
            return f"1 % of requests were sent {self.send_lag_p99_s * 1000:.0f} ms late or more"
        if self.loop_lag_p99_s > LAG_LIMIT_S:
            return f"the client's event loop ran {self.loop_lag_p99_s * 1000:.0f} ms late (p99)"
        return ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON wants it."""
        return asdict(self) | {"bottleneck": self.bottleneck}


async def run_load(
    session: aiohttp.ClientSession,
    endpoint: Endpoint,
    trace: Trace,
    *,
    prompts: Prompts,
    classes: Mapping[str, SloClass],
    drain_s: float,
    on_end: Callable[[Record], None] = lambda _: None,
) -> tuple[list[Record], ClientHealth]:
    """
    Send every arrival of `trace` at its time; the records in order of arrival.

    A class named "" is the endpoint's default. Requests that still run `drain_s` seconds after
    the last arrival are hung up and recorded as unfinished.
    """
    sender = _Sender(session, endpoint, prompts, classes, start_s=time.perf_counter())
    loop_lags: list[float] = []
    watch = asyncio.create_task(_watch(loop_lags))
    cpu_s = time.process_time()
    tasks = []
    try:
        for number, arrival in enumerate(trace.arrivals):
            body = prompts.body(
                model=endpoint.model,
                number=number,
                prompt_tokens=arrival.prompt_tokens,
                output_tokens=arrival.output_tokens,
            )
            await asyncio.sleep(max(0.0, arrival.t_s - sender.now_s()))
            task = asyncio.create_task(sender.send(number, arrival, body))
            task.add_done_callback(lambda t: on_end(t.result()) if not t.cancelled() else None)
            tasks.append(task)
        await _drain(tasks, drain_s)
    finally:
        watch.cancel()
        for task in tasks:
            task.cancel()
    records = list(await asyncio.gather(*tasks))
    health = ClientHealth(
        send_lag_p99_s=_p99([r.send_lag_s for r in records]),
        loop_lag_p99_s=_p99(loop_lags),
        core_share=(time.process_time() - cpu_s) / max(sender.now_s(), 1e-9),
        inexact=sender.num_inexact,
    )
    return records, health


class _Sender:
    """Sends single requests and records them, on one clock."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        endpoint: Endpoint,
        prompts: Prompts,
        classes: Mapping[str, SloClass],
        *,
        start_s: float,
    ) -> None:
        self._session = session
        self._endpoint = endpoint
        self._classes = classes
        self._start_s = start_s
        self.num_inexact = 0

    def now_s(self) -> float:
        """Seconds since the start of the run."""
        return time.perf_counter() - self._start_s

    async def send(self, number: int, arrival: Arrival, body: bytes) -> Record:
        """One request to its end; never raises but for bugs: whatever happens is recorded."""
        slo_class = self._classes[arrival.slo_class]
        stream = AnswerStream(slo_class.stages)
        headers = dict(self._endpoint.headers)
        if slo_class.name:
            headers[wire.SLO_CLASS] = slo_class.name
        sent_s = self.now_s()
        told: Mapping[str, str] = {}
        ending, error = Ending.FAILED, ""
        try:
            async with self._session.post(
                f"{self._endpoint.base_url}/completions", data=body, headers=headers
            ) as response:
                told = response.headers
                if response.status == 200:
                    async for data in response.content.iter_any():
                        stream.feed(data, self.now_s())
                    ending, error = _ending(stream)
                else:
                    ending, error = _refusal(response.status, await response.text())
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as problem:
            error = f"{type(problem).__name__}: {problem}"
        except asyncio.CancelledError:
            ending = Ending.UNFINISHED
        self.num_inexact += not stream.exact
        return Record(
            number=number,
            slo_class=slo_class.name,
            prompt_tokens=arrival.prompt_tokens,
            output_tokens=arrival.output_tokens,
            sent_s=sent_s,
            ended_s=self.now_s(),
            ending=ending,
            promise=_promise(slo_class, told.get(wire.SLO_TTFT_MS)),
            decision=_decision(told.get(wire.SLO_DECISION), ending),
            reason=told.get(wire.SLO_REASON, ""),
            emissions=stream.emissions,
            error=error or stream.error,
            send_lag_s=max(0.0, sent_s - arrival.t_s),
            replica=told.get(wire.SLO_REPLICA, ""),
        )


def _ending(stream: AnswerStream) -> tuple[Ending, str]:
    if stream.error:
        return Ending.FAILED, stream.error
    if not stream.done and stream.finish_reason is None:
        return Ending.FAILED, "the stream ended without a finish reason"
    return Ending.FINISHED, ""


def _refusal(status: int, text: str) -> tuple[Ending, str]:
    error = f"HTTP {status}: {text[:200]}"
    if status in (429, 503):
        return Ending.REFUSED, error
    return (Ending.BAD_INPUT if status < 500 else Ending.FAILED), error


def _decision(told: str | None, ending: Ending) -> Decision | None:
    if told in set(Decision):
        return Decision(told)
    return Decision.DECLINED if ending is Ending.REFUSED else None


def _promise(slo_class: SloClass, ttft_ms: str | None) -> Promise | None:
    """
    What this request was promised: the class, with the TTFT the service told.

    None for a slowdown that nobody resolved (a refused request, a foreign endpoint).
    """
    try:
        ttft_s = float(ttft_ms) / 1000 if ttft_ms else slo_class.ttft.target_s
    except ValueError:
        ttft_s = slo_class.ttft.target_s
    if ttft_s is None:
        return None
    return Promise(
        slo_class=slo_class.name,
        ttft_s=ttft_s,
        stages=slo_class.stages,
        on_infeasible=slo_class.on_infeasible,
        weight=slo_class.weight,
        bank=slo_class.bank,
    )


async def _drain(tasks: Sequence[asyncio.Task[Record]], drain_s: float) -> None:
    if tasks:
        await asyncio.wait(tasks, timeout=drain_s)


async def _watch(lags: list[float]) -> None:
    """Note how much later than asked the event loop wakes this task."""
    while True:
        asleep_s = time.perf_counter()
        await asyncio.sleep(TICK_S)
        lags.append(time.perf_counter() - asleep_s - TICK_S)


def _p99(values: Sequence[float]) -> float:
    return sorted(values)[max(0, math.ceil(0.99 * len(values)) - 1)] if values else 0.0
