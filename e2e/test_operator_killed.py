"""The operator is killed in the middle of its work: the next one finishes it, serving goes on."""

import random
import time
from collections.abc import Callable
from typing import Any

from e2e.harness.killing import Killer
from e2e.harness.kubectl import Kubectl, Obj
from e2e.harness.service import OURS, Service
from e2e.harness.traffic import Traffic
from e2e.harness.waiting import until

Release = Any
NO_PODS: Obj = {"replicas": 0, "gateway": {"replicas": 0}}


def shape(service: Service) -> set[tuple[str, str]]:
    """Kinds and names of its children, without the pods and without its own name."""
    children = [c for c in service.children() if c["kind"] != "Pod"]
    found = {(c["kind"], c["metadata"]["name"].removeprefix(service.name)) for c in children}
    assert len(found) == len(children)
    return found


def test_whatever_a_killed_operator_left_is_finished_by_the_next(
    service: Service,
    make_service: Callable[..., Service],
    kubectl: Kubectl,
    release: Release,
    kill: Killer,
) -> None:
    service.ready()
    served, gateways = service.processes("replica"), service.processes("gateway")
    changed, fleeting = make_service("changed"), make_service("fleeting")
    dice = random.Random(6)
    until(release.leader, "an operator leads")
    kill.ready_on(release.leader()["spec"]["nodeName"])
    with Traffic(service, rate=3.0) as traffic:
        for number in range(3):
            leader = until(release.leader, "an operator leads")
            service.change(gateway={"maxHops": number + 1})
            changed.apply(**NO_PODS, drain={"timeout": f"{number + 1}m"})
            if number == 1:
                kubectl("delete", fleeting.ref)
            else:
                fleeting.apply(**NO_PODS)
            time.sleep(dice.uniform(0.0, 0.6))  # wherever that finds it
            kill(leader)
            # A new pod at once, instead of the kubelet's back-off and of the Lease's end: how long
            # those take is another story.
            name = leader["metadata"]["name"]
            release.kubectl("delete", "pod", name, "--grace-period=0", "--force")
            release.kubectl("delete", "lease", "--all")
        for one in (service, changed, fleeting):
            one.wait_ready()
        told = traffic.num_ended
        until(lambda: traffic.num_ended > told + 5, "requests go on")
    assert traffic.seen.lost == []
    assert service.processes("replica") == served
    assert service.processes("gateway") == gateways
    assert shape(service) == shape(changed) == shape(fleeting)
    alive = {one.object()["metadata"]["uid"] for one in (service, changed, fleeting)}
    for child in kubectl.list("deployments,services,configmaps,serviceaccounts", OURS):
        (owner,) = child["metadata"]["ownerReferences"]
        assert owner["uid"] in alive, f"{child['metadata']['name']} is an orphan"
