"""
What metrics cost: CPU per second of service at 1,000 requests/s and 50,000 tokens/s.

    python -m bench.metrics [--rounds 3] [--json FILE]

One process, no network: the very objects that count in a gateway and in a replica are given a
second's worth of requests, and their CPU time is taken (not the clock's, so a shared machine does
not disturb). The replica's figure is the difference to the same requests with their tokens merely
numbered by stage, which annotations need anyway. Scrapes are added: all series every 15 s.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sloserve.engine.events import Chunk
from sloserve.errors import Reason
from sloserve.frontend.figures import start_series
from sloserve.frontend.latencies import Latencies
from sloserve.gateway.ledger import Ledger
from sloserve.gateway.promise import Judgement
from sloserve.http.exporter import Exporter
from sloserve.metrics import REPLICA_EXPORTS
from sloserve.slo import ServiceSpec, parse_service

NUM_REQUESTS, NUM_TOKENS, NUM_CLASSES = 1000, 50, 4
SCRAPE_S = 15.0
MOST_SHARE = 0.02
MANIFEST = {
    "apiVersion": "sloserve.io/v1alpha1",
    "kind": "SLOService",
    "metadata": {"name": "bench"},
    "spec": {
        "model": {"source": "builtin://sim"},
        "sloClasses": [
            {"name": f"class-{i}", "ttft": {"target": "1s"}, "tpot": "100ms"}
            for i in range(NUM_CLASSES)
        ],
    },
}
KEPT = Judgement(eligible=True, ttft_kept=True, tpot_kept=True)


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of CPU per second of service: the share of one core."""

    counting: float
    scraping: float

    @property
    def share(self) -> float:
        """Both together."""
        return self.counting + self.scraping


class Numbered:
    """What annotations need to know of a sequence, and nothing more."""

    __slots__ = ("num_tokens", "stage_tokens")

    def __init__(self) -> None:
        self.num_tokens = 0
        self.stage_tokens = [0]

    def emitted(self, chunk: Chunk) -> int:
        """The number of new tokens."""
        num_new = chunk.num_output - self.num_tokens
        if num_new <= 0:
            return 0
        while len(self.stage_tokens) <= chunk.stage:
            self.stage_tokens.append(0)
        self.stage_tokens[chunk.stage] += num_new
        self.num_tokens += num_new
        return num_new


def cpu_s(work: Callable[[], object], rounds: int) -> float:
    """CPU seconds of the fastest round."""
    took = []
    for _ in range(rounds):
        started_s = time.process_time()
        work()
        took.append(time.process_time() - started_s)
    return min(took)


def gateway_cost(spec: ServiceSpec, rounds: int) -> Cost:
    """A second's requests in the ledger of one gateway."""
    ledger = Ledger(spec, clock=time.monotonic)
    names = [c.name for c in spec.classes]

    def second() -> None:
        for i in range(NUM_REQUESTS):
            name = names[i % NUM_CLASSES]
            ledger.passed(added_s=0.0004, num_hops=1)
            ledger.latencies(name, ttft_s=0.2, mean_tpot_s=0.03)
            ledger.ended(
                name, decision="admitted", outcome="finished", reason=Reason.NONE, judgement=KEPT
            )

    return Cost(cpu_s(second, rounds), cpu_s(ledger.exporter.render, rounds) / SCRAPE_S)


def replica_cost(spec: ServiceSpec, rounds: int) -> Cost:
    """A second's requests and tokens in the histograms of one replica."""
    exporter = Exporter(REPLICA_EXPORTS)
    start_series(spec, exporter)
    promises = [c.offer().promise(lambda: 0.0) for c in spec.classes]
    chunks = [
        Chunk("word", (7,), 0, 0.2 + 0.03 * n, num_output=n + 1, num_cached=0)
        for n in range(NUM_TOKENS)
    ]

    def counted() -> None:
        for i in range(NUM_REQUESTS):
            promise = promises[i % NUM_CLASSES]
            latencies = Latencies(
                exporter, model="bench", promise=promise, arrival_s=0.0, num_sequences=1
            )
            latencies.decided(0.01)
            for chunk in chunks:
                latencies.emitted(0, chunk)
            latencies.record(num_prompt=200)

    def numbered() -> None:
        for _ in range(NUM_REQUESTS):
            track = Numbered()
            for chunk in chunks:
                track.emitted(chunk)

    counting = cpu_s(counted, rounds) - cpu_s(numbered, rounds)
    return Cost(counting, cpu_s(exporter.render, rounds) / SCRAPE_S)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    spec = parse_service(MANIFEST)
    costs = {
        "gateway": gateway_cost(spec, args.rounds),
        "replica": replica_cost(spec, args.rounds),
    }
    for name, cost in costs.items():
        verdict = "within" if cost.share <= MOST_SHARE else "OVER"
        print(
            f"{name}: {cost.share:.2%} of a core (counting {cost.counting:.2%}, "
            f"scraping {cost.scraping:.2%}), {verdict} {MOST_SHARE:.0%}"
        )
    if args.json:
        shares = {name: round(cost.share, 5) for name, cost in costs.items()}
        args.json.write_text(json.dumps(shares, indent=1) + "\n")


if __name__ == "__main__":
    main()
