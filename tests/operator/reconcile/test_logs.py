"""What a reconcile writes, it tells; at rest it is silent."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from sloserve_operator.api import Obj

Make = Callable[..., Obj]
World = Any


def told(caplog: pytest.LogCaptureFixture, message: str) -> set[str]:
    """Kind and name of what lines with this message are about."""
    return {
        f"{vars(record)['kind']}/{vars(record)['object']}"
        for record in caplog.records
        if record.getMessage() == message
    }


def test_what_is_created_changed_and_scaled_is_told_once(
    world: World, manifest: Make, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        world.cluster.put(manifest())
        await world.settle()
        created = told(caplog, "created")
        assert {"Deployment/chat-replica", "Deployment/chat-gateway"} <= created
        assert {"ConfigMap/chat-config", "NetworkPolicy/chat-gateway"} <= created

        caplog.clear()
        for _ in range(3):
            await world.look()
        assert caplog.records == []

        world.cluster.put(manifest(replicas=3))
        await world.settle()
        assert "Deployment/chat-replica" in told(caplog, "changed")
        (scaled,) = [r for r in caplog.records if r.getMessage() == "scaled"]
        assert vars(scaled)["replicas"] == 3
        assert vars(scaled)["by"] == 1
        assert told(caplog, "created") == set()

    caplog.set_level(logging.INFO, logger="sloserve_operator")
    asyncio.run(story())
