"""What a gateway tells about its service (`GET /v1/slo`), as values."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import aiohttp

from sloserve.errors import Failed

TIMEOUT = aiohttp.ClientTimeout(total=5.0)


@dataclass(frozen=True, slots=True)
class ClassRow:
    """A class and how it fares. Shares are 0..1; None: there was nothing to judge."""

    name: str
    ttft: str
    """In words: `1s`, or `5x >=200ms`: five times the zero-load time, at least 200 ms."""
    tpot: str
    objective: float
    attainment: float | None
    """Over the last five minutes."""
    attainment_since_start: float | None
    num_judged: int
    """Since the gateway started."""
    frontier: tuple[int, int] | None
    """Prompt lengths (tokens) that some replica would admit now; None: not known, or none."""
    num_pending: int
    ttft_target_s: float | None
    """None: it is a factor on the prompt's zero-load time."""
    tpot_targets_s: tuple[float, ...]
    """One per stage."""
    num_recent: int
    """Judged in the last five minutes."""
    num_recent_kept: int
    num_arrived: int
    """In the last minute."""


@dataclass(frozen=True, slots=True)
class ReplicaRow:
    """A replica as the gateway sees it; sizes are 0 while it is silent."""

    address: str
    name: str
    state: str
    """`loading`, `ready`, `draining` or `unknown`."""
    problem: str
    num_inflight: int
    num_running: int
    num_waiting: int
    free_blocks: int
    total_blocks: int
    generation: int
    token_supply_per_s: float
    """What it can compute beside what it promised."""
    frontier: Mapping[str, tuple[int, int] | None]
    """Per class, as far as it told: the prompt lengths it would admit now; None: none."""


@dataclass(frozen=True, slots=True)
class Overview:
    """A service at a glance."""

    service: str
    model: str
    generation: int
    num_inflight: int
    num_pending: int
    default_class: str
    classes: tuple[ClassRow, ...]
    replicas: tuple[ReplicaRow, ...]

    @property
    def num_ready(self) -> int:
        """Replicas that would answer now."""
        return sum(replica.state == "ready" for replica in self.replicas)


async def fetch(session: aiohttp.ClientSession, url: str, *, key: str | None = None) -> Any:
    """The JSON at a gateway's URL. Raises Failed with what to check."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        async with session.get(url, headers=headers, timeout=TIMEOUT) as response:
            if response.status != 200:
                hint = "; give a key with --api-key" if response.status in (401, 403) else ""
                raise Failed(f"{url} answers {response.status}{hint}")
            return await response.json(content_type=None)
    except TimeoutError:
        raise Failed(f"{url} does not answer within {TIMEOUT.total:g} s") from None
    except aiohttp.ClientConnectorError as error:
        why = error.os_error.strerror or str(error.os_error)
        raise Failed(f"no gateway answers at {url} ({why}); does `sloserve up` run?") from None
    except (aiohttp.ClientError, ValueError) as error:
        raise Failed(f"{url} gives no answer that can be read: {error!r}") from None


def parse_overview(raw: Any) -> Overview:
    """The overview in a gateway's JSON. Raises Failed when it is something else."""
    try:
        return Overview(
            service=str(raw["service"]),
            model=str(raw["model"]),
            generation=int(raw["generation"]),
            num_inflight=int(raw["inflight"]),
            num_pending=int(raw["pending"]),
            default_class=str(raw["defaultClass"]),
            classes=tuple(_slo_class(entry) for entry in raw["classes"]),
            replicas=tuple(_replica(entry) for entry in raw["replicas"]),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Failed(f"this is not a sloserve gateway's overview: {error!r}") from None


def with_names(
    overview: Overview, names: Mapping[str, str], *, starting: Collection[str]
) -> Overview:
    """
    The overview with silent replicas under the names (by address) that they were started with.

    Those whose address is in `starting` have never been ready: their silence is loading.
    """

    def named(row: ReplicaRow) -> ReplicaRow:
        if row.state != "unknown":
            return row
        row = replace(row, name=names.get(row.address, row.name))
        return replace(row, state="loading", problem="") if row.address in starting else row

    return replace(overview, replicas=tuple(named(row) for row in overview.replicas))


def _slo_class(entry: Mapping[str, Any]) -> ClassRow:
    tpots_s = tuple(float(stage["tpotMs"]) / 1e3 for stage in entry["stages"])
    target_ms, recent = entry["ttft"].get("targetMs"), entry["last5m"]
    return ClassRow(
        name=str(entry["name"]),
        ttft=_ttft(entry["ttft"]),
        tpot=", ".join(ms(tpot_s * 1e3) for tpot_s in tpots_s),
        objective=float(entry["objective"]),
        attainment=recent["attainment"],
        attainment_since_start=entry["sinceStart"]["attainment"],
        num_judged=int(entry["sinceStart"]["eligible"]),
        frontier=_frontier(entry["frontier"]),
        num_pending=int(entry["pending"]),
        ttft_target_s=None if target_ms is None else float(target_ms) / 1e3,
        tpot_targets_s=tpots_s,
        num_recent=int(recent["eligible"]),
        num_recent_kept=int(recent["attained"]),
        num_arrived=int(entry["lastMinute"]["arrived"]),
    )


def _frontier(entry: Mapping[str, Any] | None) -> tuple[int, int] | None:
    lengths = (int(entry["minTokens"]), int(entry["maxTokens"])) if entry else (1, 0)
    return lengths if lengths[0] <= lengths[1] else None


def _replica(entry: Mapping[str, Any]) -> ReplicaRow:
    return ReplicaRow(
        address=str(entry["address"]),
        name=str(entry["replica"]),
        state=str(entry["state"]),
        problem=str(entry["problem"]),
        num_inflight=int(entry["inflight"]),
        num_running=int(entry.get("running", 0)),
        num_waiting=int(entry.get("waiting", 0)),
        free_blocks=int(entry.get("freeBlocks", 0)),
        total_blocks=int(entry.get("totalBlocks", 0)),
        generation=int(entry.get("generation", 0)),
        token_supply_per_s=float(entry.get("tokenSupplyPerS", 0.0)),
        frontier={str(name): _frontier(f) for name, f in entry.get("frontier", {}).items()},
    )


def _ttft(entry: Mapping[str, Any]) -> str:
    if "targetMs" in entry:
        return ms(float(entry["targetMs"]))
    floor = float(entry["floorMs"])
    return f"{float(entry['slowdown']):g}x" + (f" >={ms(floor)}" if floor else "")


def ms(milliseconds: float) -> str:
    """A time for people: `50ms`, `1.5s`, `5m`."""
    if milliseconds < 1000:
        return f"{milliseconds:g}ms"
    seconds = milliseconds / 1000
    return f"{seconds:g}s" if seconds < 120 else f"{seconds / 60:g}m"
