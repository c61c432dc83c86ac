"""Two operators: one works, the other takes over at once when told, soon when the first is lost."""

import time
from typing import Any

import pytest
from e2e.harness.killing import Killer
from e2e.harness.service import Service
from e2e.harness.waiting import until

Release = Any
TOLD_S, LOST_S = 5.0, 20.0
"""What is promised, and for the first as much again as the kubelet may take to say it."""


@pytest.fixture
def two(changing: Release) -> Release:
    """The release with a standby."""
    changing.install("--set", "operator.replicas=2")
    until(changing.leader, "one of them leads")
    return changing


def seconds_until_another_leads(release: Release, before: str) -> float:
    """From now until somebody else holds the Lease."""
    start_s = time.monotonic()
    until(lambda: release.holder() not in ("", before), "another one leads", pause_s=0.02)
    return time.monotonic() - start_s


def test_a_standby_takes_over_and_goes_on(two: Release, service: Service, kill: Killer) -> None:
    service.ready()
    first, holder = two.leader(), two.holder()
    assert len(two.operator_pods()) == 2
    two.kubectl("delete", "pod", first["metadata"]["name"], "--wait=false")
    told_s = seconds_until_another_leads(two, holder)
    print(f"handed over {told_s:.1f} s after the leader's pod was deleted")
    assert told_s < TOLD_S
    service.change(replicas=2)
    service.wait_ready()

    second, holder = until(two.leader, "the second leads"), two.holder()
    assert second["metadata"]["uid"] != first["metadata"]["uid"]
    kill.ready_on(second["spec"]["nodeName"])
    kill(second)
    lost_s = seconds_until_another_leads(two, holder)
    print(f"taken over {lost_s:.1f} s after the leader was killed")
    assert lost_s < LOST_S
    service.change(replicas=1)
    service.wait_ready()
    assert len(service.pods("replica")) == 1
