"""A newer operator: gateways roll, engines go on as they are unless their service says so."""

import os
from collections.abc import Callable
from typing import Any

import pytest
from e2e.harness.service import Service
from e2e.harness.traffic import Traffic
from e2e.harness.waiting import until

Release = Any


def images(service: Service, part: str) -> set[str]:
    """What the pods of a part run."""
    return {pod["spec"]["containers"][0]["image"] for pod in service.pods(part)}


def test_an_upgrade_restarts_no_engine_that_did_not_ask_for_it(
    changing: Release, make_service: Callable[..., Service]
) -> None:
    tag = os.environ.get("E2E_NEXT_TAG")
    if not tag:
        pytest.skip("needs the images under a second tag: set E2E_NEXT_TAG")
    steady, eager = make_service("steady"), make_service("eager")
    steady.apply()
    eager.apply(engine={"rollout": {"onOperatorUpgrade": True}})
    steady.wait_ready()
    eager.wait_ready()
    engines, gateways = steady.processes("replica"), steady.processes("gateway")
    old = images(steady, "replica")
    with Traffic(steady, rate=3.0) as traffic:
        changing.install(tag=tag)
        for service, part in ((steady, "gateway"), (eager, "gateway"), (eager, "replica")):
            until(
                lambda service=service, part=part: all(
                    image.endswith(f":{tag}") for image in images(service, part)
                ),
                f"the {part} of {service.name} runs the new image, and the old one leaves",
            )
        steady.wait_ready()
        told = traffic.num_ended
        until(lambda: traffic.num_ended > told + 5, "requests go on")
    assert traffic.seen.lost == []
    assert steady.processes("replica") == engines
    assert images(steady, "replica") == old
    assert not steady.processes("gateway") & gateways
