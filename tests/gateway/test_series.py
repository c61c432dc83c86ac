"""What clients send never makes a series: labels come from the manifest and from fixed words."""

import asyncio
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from sloserve.errors import Reason

Make = Any
"""A builder from conftest."""
SAID = "user-4711"
HEADERS = ("x-slo-class", "x-session-id", "x-request-id", "user-agent", "x-slo-ttft-ms")
ALLOWED = {
    "service": {"assistant"},
    "model": {"assistant"},
    "slo_class": {"", "chat", "strict"},
    "promise": {"ttft", "tpot", "all"},
    "decision": {"admitted", "deferred", "degraded", "declined", "none"},
    "outcome": {"finished", "failed", "cancelled", "refused"},
    "reason": {"", *(r.value for r in Reason), "LateFirstToken", "LateToken"},
    "state": {"loading", "ready", "draining", "unknown"},
}


def test_no_client_can_make_a_series(gateway: Make, replica: Make) -> None:
    async def story() -> None:
        async with gateway(replica()) as world:
            for name in (
                "x-slo-class",
                "x-session-id",
                "x-request-id",
                "user-agent",
                "x-slo-ttft-ms",
            ):
                await world.ask(headers={name: SAID})
            await world.ask(model=SAID)
            await world.ask(user=SAID, metadata={SAID: SAID})
            await world.post(f"/v1/{SAID}", b"{}")
            await world.get(f"/{SAID}")
            text = (await world.internal("/metrics")).text
            assert SAID not in text
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    for label, value in sample.labels.items():
                        assert label == "le" or value in ALLOWED[label], sample

    asyncio.run(story())
