"""What is decided about one service, and what its status says."""

import copy
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sloserve_operator import names
from sloserve_operator.api import Obj, Ref, ref_of
from sloserve_operator.conditions import Type, Why, find
from sloserve_operator.decide import Decision, decide
from sloserve_operator.observed import Claim, Memory, Now, Observed
from sloserve_operator.reports import parse_report
from sloserve_operator.settings import OperatorSettings

Make = Callable[..., Obj]
REPLICA, GATEWAY = names.deployment("chat", "replica"), names.deployment("chat", "gateway")


class Scene:
    """A service whose children exist and are ready, unless a test says otherwise."""

    def __init__(self, manifest: Make, moment: Callable[[float], Now], report: Make) -> None:
        self._manifest, self._moment, self._report = manifest, moment, report
        self.service = manifest()
        self.pods: list[Obj] = []
        self.reports: list[Obj] = []
        self.memory = Memory()
        self.changes: dict[str, Any] = {}
        self.deployments: dict[Ref, Obj] = {}

    def spec(self, **spec: Any) -> "Scene":
        self.service = {**self._manifest(**spec), "status": self.service.get("status", {})}
        return self

    def running(self, *, replicas: int = 2, ready: int | None = None) -> "Scene":
        """Both Deployments as they are after a rollout."""
        for child in self.decided().children:
            live = copy.deepcopy(child)
            if child["kind"] == "Deployment":
                count = replicas if ref_of(child) == REPLICA else child["spec"]["replicas"]
                live["spec"]["replicas"] = count
                up = count if ready is None or ref_of(child) == GATEWAY else ready
                live["status"] = {"observedGeneration": 1, "replicas": count,
                                  "updatedReplicas": count, "readyReplicas": up}  # fmt: skip
                live["metadata"]["generation"] = 1
            live["metadata"]["uid"] = f"uid-{ref_of(child)}"
            self.deployments[ref_of(child)] = live
        for number in range(2):
            labels = names.labels("chat", names.GATEWAY)
            meta = {"name": f"g{number}", "namespace": "team", "uid": f"g{number}",
                    "labels": labels, "annotations": {names.CONFIG_GENERATION: "1"}}  # fmt: skip
            self.pods.append({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "status": {}})
        return self

    def told(self, **report: Any) -> "Scene":
        """The gateways report this."""
        self.reports.append(self._report(**report))
        return self

    def decided(self, *, at_s: float = 0.0, kept: bool = False) -> Decision:
        observed = Observed(
            service=self.service,
            children=self.deployments,
            pods=tuple(self.pods),
            reports={f"g{n}": parse_report(r) for n, r in enumerate(self.reports)},
        )
        observed = replace(observed, **self.changes)
        decision = decide(
            observed, settings=OperatorSettings(), memory=self.memory, now=self._moment(at_s)
        )
        if kept:
            self.memory = decision.memory
            self.service["status"] = decision.status
        return decision

    def condition(self, kind: Type) -> tuple[str, str]:
        told = self.message(kind)
        return told["status"], told["reason"]

    def message(self, kind: Type) -> Obj:
        return find(self.decided().status or {}, kind)


@pytest.fixture
def scene(manifest: Make, moment: Callable[[float], Now], report: Make) -> Scene:
    return Scene(manifest, moment, report)


def test_a_new_service_is_accepted_and_on_its_way(scene: Scene) -> None:
    decision = scene.decided()
    status = decision.status or {}
    assert status["ready"] == "0/2"
    assert "observedGeneration" not in status
    assert status["endpoint"] == "http://chat-gateway.team.svc/v1"
    assert scene.condition(Type.ACCEPTED) == ("True", "Accepted")
    assert scene.condition(Type.AVAILABLE) == ("False", "NoGateway")
    assert scene.condition(Type.PROGRESSING) == ("True", "RollingOut")
    assert scene.condition(Type.SLO_MET) == ("Unknown", "NoTraffic")
    assert scene.condition(Type.SLO_FEASIBLE) == ("Unknown", "NoReport")
    assert scene.condition(Type.CAPACITY_LIMITED) == ("False", "Sufficient")
    assert {c["type"] for c in status["conditions"]} == set(Type)


def test_what_clusters_add_to_the_metadata_is_no_business_of_the_parser(scene: Scene) -> None:
    scene.service["metadata"]["somethingNew"] = {"of": "a later Kubernetes"}
    assert scene.condition(Type.ACCEPTED) == ("True", "Accepted")


def test_every_condition_speaks_of_the_generation_it_was_made_from(scene: Scene) -> None:
    scene.service["metadata"]["generation"] = 7
    status = scene.decided().status or {}
    assert {c["observedGeneration"] for c in status["conditions"]} == {7}


def test_a_service_that_runs_and_is_read_everywhere_is_ready(scene: Scene, replica: Make) -> None:
    scene.running().told(replicas=[replica()]).told(replicas=[replica()])
    assert scene.condition(Type.READY) == ("True", "Ready")
    assert scene.condition(Type.AVAILABLE) == ("True", "Answering")
    assert scene.condition(Type.PROGRESSING) == ("False", "Complete")
    assert scene.condition(Type.SLO_FEASIBLE) == ("True", "Feasible")
    assert (scene.decided().status or {})["observedGeneration"] == 1


def test_gateways_that_do_not_answer_the_operator_leave_ready_unknown(scene: Scene) -> None:
    assert scene.running().condition(Type.READY) == ("Unknown", "GatewaysUnreachable")


def test_replicas_that_are_not_up_are_told(scene: Scene, replica: Make) -> None:
    progress = {"phase": "fetching the model", "bytesDone": 2**30, "bytesTotal": 3 * 2**30}
    loading = replica(state="loading", loading=progress)
    scene.running(ready=0).told(replicas=[loading]).told()
    assert scene.condition(Type.READY) == ("False", "ReplicasNotReady")
    assert scene.condition(Type.AVAILABLE) == ("True", "Holding")
    assert scene.condition(Type.PROGRESSING) == ("True", "Loading")
    told = scene.message(Type.PROGRESSING)["message"]
    assert told == "1 replicas load: fetching the model, 1.0 of 3.0 GiB"


def test_requests_are_held_until_a_gateway_has_found_a_replica(scene: Scene, replica: Make) -> None:
    scene.running().told(replicas=[]).told(replicas=[replica(state="loading")])
    assert scene.condition(Type.AVAILABLE) == ("True", "Holding")
    assert "no gateway has found one" in scene.message(Type.AVAILABLE)["message"]
    for state in ("ready", "unknown"):  # silent for a second: known all the same
        scene.reports.clear()
        scene.told(replicas=[]).told(replicas=[replica(state=state)])
        assert scene.condition(Type.AVAILABLE) == ("True", "Answering")
    scene.reports.clear()  # gateways that the operator does not hear prove nothing
    assert scene.condition(Type.AVAILABLE) == ("True", "Answering")


def test_the_bytes_of_a_small_model_are_told_in_a_unit_that_shows_them(
    scene: Scene, replica: Make
) -> None:
    progress = {"phase": "fetching the model", "bytesDone": 3 * 2**20, "bytesTotal": 9_755_877}
    scene.running(ready=0).told(replicas=[replica(state="loading", loading=progress)])
    told = scene.message(Type.PROGRESSING)["message"]
    assert told == "1 replicas load: fetching the model, 3.0 of 9.3 MiB"


def test_zero_replicas_are_idle_and_only_autoscaling_holds_requests(scene: Scene) -> None:
    scene.spec(replicas=0).running(replicas=0).told().told()
    assert scene.condition(Type.READY) == ("True", "Idle")
    assert scene.condition(Type.AVAILABLE) == ("False", "Idle")
    scene.spec(autoscaling={"minReplicas": 0, "maxReplicas": 2})
    assert scene.condition(Type.AVAILABLE) == ("True", "Idle")
    assert scene.condition(Type.ACCEPTED) == ("True", "ReplicasIgnored")


def pod_in(
    state: Obj, *, last: Obj | None = None, name: str = "chat-replica-1", part: str = "replica"
) -> Obj:
    meta = {"name": name, "namespace": "team", "uid": name,
            "labels": names.labels("chat", part)}  # fmt: skip
    probe = {"periodSeconds": 2, "failureThreshold": 30}
    container = {"name": part, "image": "r/i:1", "state": state, "lastState": last or {},
                 "ready": False, "started": False, "restartCount": 1}  # fmt: skip
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta,
            "spec": {"containers": [{"name": part, "startupProbe": probe}]},
            "status": {"containerStatuses": [container]}}  # fmt: skip


def ended_well(*, after_s: int) -> Obj:
    """A container that ended with exit code 0."""
    start = datetime(2026, 11, 21, 23, 59, 30, tzinfo=UTC)
    end = start + timedelta(seconds=after_s)
    return {"terminated": {"exitCode": 0, "reason": "Completed", "message": "good bye\n",
            "startedAt": f"{start:%FT%TZ}", "finishedAt": f"{end:%FT%TZ}"}}  # fmt: skip


def waiting(reason: str, message: str = "") -> Obj:
    return {"waiting": {"reason": reason, "message": message}}


TROUBLES = [
    (pod_in(waiting("ImagePullBackOff", "no such image")), "ImagePullFailed", "r/i:1"),
    (pod_in(waiting("CreateContainerConfigError", 'secret "hub" not found')), "SecretMissing",
     "'hub'"),
    (pod_in(waiting("CreateContainerConfigError", "couldn't find key t in Secret team/hub")),
     "SecretMissing", "no key t"),
    (pod_in(waiting("CreateContainerError", "no such device")), "ContainerRefused", "device"),
    (pod_in(waiting("CrashLoopBackOff"), last={"terminated": {
        "exitCode": 2, "reason": "Error", "message": "x\nsloserve: no such model\n"}}),
     "Crashing", "sloserve: no such model"),
    (pod_in(waiting("CrashLoopBackOff"), last={"terminated": {"exitCode": 0}}), "LoadTimeout",
     "loadTimeout"),
    (pod_in({"running": {}}, last=ended_well(after_s=69)), "LoadTimeout", "loadTimeout"),
    (pod_in(waiting("CrashLoopBackOff"), last=ended_well(after_s=40)), "Crashing",
     "ended with exit code 0 after 40 s: by itself, or its liveness probe told it to (last line: "
     "good bye)"),
    (pod_in({"running": {}}, last=ended_well(after_s=69), name="g", part="gateway"), "LoadTimeout",
     "pod g was ended by its probes and starts again: it was not up in time"),
]  # fmt: skip


@pytest.mark.parametrize(("pod", "reason", "words"), TROUBLES)
def test_what_keeps_pods_from_starting_is_told_in_words(
    scene: Scene, pod: Obj, reason: str, words: str
) -> None:
    scene.running(ready=1)
    scene.pods.append(pod)
    assert scene.condition(Type.PROGRESSING) == ("False", reason)
    assert words in scene.message(Type.PROGRESSING)["message"]


def test_full_nodes_limit_capacity(scene: Scene) -> None:
    pod = pod_in({})
    full = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    pod["status"] = {"conditions": [full | {"message": "0/2 nodes"}]}
    scene.running(ready=1)
    scene.pods.append(pod)
    assert scene.condition(Type.PROGRESSING) == ("False", "Unschedulable")
    assert scene.condition(Type.CAPACITY_LIMITED) == ("True", "Unschedulable")


def test_a_missing_claim_and_a_missing_mount_are_told(scene: Scene) -> None:
    pod = pod_in({})
    pod["status"] = {"conditions": [{
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
        "message": 'persistentvolumeclaim "models" not found'}]}  # fmt: skip
    scene.running(ready=1)
    scene.pods.append(pod)
    assert scene.condition(Type.PROGRESSING) == ("False", "ClaimMissing")
    scene.pods[-1] = pod_in(waiting("ContainerCreating"))
    note = {"involvedObject": {"uid": "chat-replica-1"}, "reason": "FailedMount",
            "message": 'MountVolume.SetUp failed: secret "keys" not found'}  # fmt: skip
    scene.changes["notes"] = (note,)
    assert scene.condition(Type.PROGRESSING) == ("False", "SecretMissing")


def test_pods_that_may_not_even_be_made_are_told(scene: Scene) -> None:
    scene.running(ready=1)
    scene.deployments[REPLICA]["status"]["conditions"] = [
        {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: gpus"}
    ]
    assert scene.condition(Type.PROGRESSING) == ("False", "PodsRefused")


def test_a_rollout_past_its_deadline_is_told(scene: Scene) -> None:
    scene.running(ready=1)
    scene.deployments[REPLICA]["status"]["conditions"] = [
        {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
    ]
    assert scene.condition(Type.PROGRESSING) == ("False", "LoadTimeout")


def test_objectives_are_judged_for_classes_with_enough_requests(scene: Scene) -> None:
    scene.running().told(classes={"fast": (12, 12), "slow": (0, 0)})
    assert scene.condition(Type.SLO_MET) == ("Unknown", "NoTraffic")
    scene.told(classes={"fast": (12, 10), "slow": (19, 0)})  # 22 of 24: 91.7 %
    assert scene.condition(Type.SLO_MET) == ("True", "Met")
    scene.reports.pop()
    scene.told(classes={"fast": (12, 9), "slow": (19, 0)})  # 21 of 24: 87.5 %
    assert scene.condition(Type.SLO_MET) == ("False", "Missed")
    assert "fast 87.5% of 24 requests" in scene.message(Type.SLO_MET)["message"]
    status = scene.decided().status or {}
    assert status["worstAttainment"] == "0.0"
    fast = status["classes"][0]
    assert (fast["attainment5m"], fast["budgetRemaining"]) == ("87.5", "-25.0")
    assert fast["days"] == [{"date": "2026-11-21", "total": 24, "attained": 21}]


def test_an_idle_replica_that_can_not_serve_a_class_disproves_it(
    scene: Scene, replica: Make
) -> None:
    nothing = {"fast": {"minTokens": 1, "maxTokens": 0}, "slow": {"minTokens": 1, "maxTokens": 9}}
    scene.running().told(replicas=[replica(running=1, frontier=nothing)])
    assert scene.condition(Type.SLO_FEASIBLE) == ("Unknown", "NoReport")  # it is busy
    scene.reports.clear()
    scene.told(replicas=[replica(frontier=nothing)])
    assert scene.condition(Type.SLO_FEASIBLE) == ("False", "Infeasible")
    assert "fast" in scene.message(Type.SLO_FEASIBLE)["message"]
    scene.decided(kept=True)
    scene.reports.clear()  # nobody reports: what is known stays known, also in a new process
    assert scene.condition(Type.SLO_FEASIBLE) == ("False", "Infeasible")
    scene.memory = Memory()
    told = {c["name"]: c.get("feasible") for c in (scene.decided().status or {})["classes"]}
    assert told == {"fast": False, "slow": True}
    slower = [{"name": "fast", "ttft": {"target": "5s"}, "tpot": "1s"}]
    scene.spec(sloClasses=slower)  # another promise: it has to be asked anew
    scene.service["metadata"]["generation"] = 2
    assert scene.condition(Type.SLO_FEASIBLE) == ("Unknown", "NoReport")


def test_a_fixed_count_that_is_too_small_is_told_with_the_constraint(
    scene: Scene, replica: Make
) -> None:
    demand = {"fast": {"arrived": 100, "declined": 50, "reasons": {"TPOT": 50}}}
    busy = [replica(address=f"10.0.0.{n}:8000", running=9) for n in range(2)]
    scene.running().told(replicas=busy, demand=demand)
    assert scene.condition(Type.CAPACITY_LIMITED) == ("True", "MaxReplicas")
    told = scene.message(Type.CAPACITY_LIMITED)["message"]
    assert "4 replicas are wanted" in told
    assert "requests fail on TPOT" in told
    decision = scene.decided()
    assert (decision.status or {})["bindingConstraint"] == "TPOT"
    (live,) = [c for c in decision.children if ref_of(c) == REPLICA]
    assert live["spec"]["replicas"] == 2


def test_autoscaling_writes_the_child_and_lives_in_it(scene: Scene, replica: Make) -> None:
    demand = {"fast": {"arrived": 100, "declined": 50, "reasons": {"TPOT": 50}}}
    busy = [replica(address=f"10.0.0.{n}:8000", running=9) for n in range(2)]
    scene.spec(autoscaling={"maxReplicas": 8}, replicas=7).running(replicas=2)
    scene.told(replicas=busy, demand=demand)
    decision = scene.decided()
    (child,) = [c for c in decision.children if ref_of(c) == REPLICA]
    assert child["spec"]["replicas"] == 4
    (scaled,) = [n for n in decision.notices if n.reason == "Scaled"]
    assert scaled.message.startswith("replicas 2 -> 4: ")
    scene.reports.clear()  # a new operator that has heard nothing leaves the count alone
    scene.memory = Memory()
    scene.deployments[REPLICA]["spec"]["replicas"] = 4
    (child,) = [c for c in scene.decided().children if ref_of(c) == REPLICA]
    assert child["spec"]["replicas"] == 4


def test_a_delay_that_nothing_ends_is_looked_at_again(scene: Scene, replica: Make) -> None:
    spec = {"autoscaling": {"minReplicas": 1, "maxReplicas": 4, "scaleDownDelay": "2m"}}
    idle = [replica(address=f"10.0.0.{n}:8000") for n in range(2)]
    scene.spec(**spec).running(replicas=2).told(replicas=idle)
    assert scene.decided(kept=True).again_s == 120.0
    assert scene.decided(at_s=50.0, kept=True).again_s == 70.0
    later = scene.decided(at_s=120.0)
    (child,) = [c for c in later.children if ref_of(c) == REPLICA]
    assert child["spec"]["replicas"] == 1


def test_a_cache_that_can_not_be_shared_is_a_clear_condition(scene: Scene) -> None:
    model = {"source": "hf://org/model", "cache": {"claimName": "models"}}
    scene.changes["claims"] = {"models": Claim(True, ("ReadWriteOnce",))}
    scene.spec(model=model)
    assert scene.condition(Type.ACCEPTED) == ("False", "CacheNotShared")
    assert scene.decided().children == ()
    assert scene.spec(model=model, replicas=1).condition(Type.ACCEPTED)[0] == "True"
    scene.changes["claims"] = {"models": Claim(True, ("ReadWriteMany",))}
    assert scene.spec(model=model).condition(Type.ACCEPTED)[0] == "True"
    scene.changes["claims"] = {"models": Claim(False)}  # the pods will say so
    assert scene.condition(Type.ACCEPTED)[0] == "True"


def test_a_foreign_object_and_a_refusal_are_told_and_nothing_is_applied(scene: Scene) -> None:
    scene.running().changes["foreign"] = frozenset({Ref("Service", "chat-gateway")})
    assert scene.condition(Type.ACCEPTED) == ("False", "NameConflict")
    assert scene.decided().children == ()
    scene.changes = {"refused": {REPLICA: "unknown field"}}
    assert scene.condition(Type.ACCEPTED) == ("False", "InvalidPodTemplate")
    scene.changes = {"refused": {Ref("Service", "chat-gateway"): "no LoadBalancer"}}
    assert scene.condition(Type.ACCEPTED) == ("False", "RefusedByCluster")
    assert scene.decided().prune == ()


def test_a_service_that_is_being_deleted_is_left_alone(scene: Scene) -> None:
    scene.service["metadata"]["deletionTimestamp"] = "2026-11-21T12:00:00Z"
    assert scene.decided() == Decision()


def test_missing_optional_kinds_are_a_condition_that_names_them(scene: Scene) -> None:
    assert scene.condition(Type.MONITORING_READY) == ("True", "KindMissing")
    assert "PodMonitor" in scene.message(Type.MONITORING_READY)["message"]
    always = scene.spec(observability={"monitors": "Always"})
    assert always.condition(Type.MONITORING_READY) == ("False", "KindMissing")
    never = scene.spec(observability={"monitors": "Never", "rules": "Never"})
    assert never.condition(Type.MONITORING_READY) == ("True", "Disabled")
    scene.changes["kinds"] = frozenset({"PodMonitor"})
    half = scene.spec(observability={"rules": "Always"})
    assert half.condition(Type.MONITORING_READY) == ("False", "KindMissing")
    assert "PodMonitor (" not in half.message(Type.MONITORING_READY)["message"]
    scene.changes["kinds"] = frozenset({"PodMonitor", "PrometheusRule"})
    assert scene.spec().condition(Type.MONITORING_READY) == ("False", "MonitorExists")
    assert scene.spec().running().condition(Type.MONITORING_READY) == ("True", "MonitorExists")


def test_the_time_of_a_transition_is_that_of_the_status(scene: Scene) -> None:
    scene.decided(kept=True)
    first = find(scene.service["status"], Type.PROGRESSING)["lastTransitionTime"]
    scene.running(ready=1)  # another reason, the same status
    scene.told()
    later = find(scene.decided(at_s=60, kept=True).status or {}, Type.PROGRESSING)
    assert later["lastTransitionTime"] == first
    scene.deployments[REPLICA]["status"]["readyReplicas"] = 2
    done = find(scene.decided(at_s=120).status or {}, Type.PROGRESSING)
    assert (done["status"], done["lastTransitionTime"]) == ("False", "2026-11-21T12:02:00Z")


def test_events_tell_changes_once(scene: Scene) -> None:
    first = scene.decided(kept=True)
    assert {n.reason for n in first.notices} >= {"RollingOut"}
    assert scene.decided(kept=True).notices == ()
    scene.running().told(replicas=[])
    told = scene.decided(kept=True).notices
    assert "Ready" in {n.reason for n in told}
    assert scene.decided().notices == ()


def test_each_phase_of_loading_is_an_event_and_its_numbers_are_not(
    scene: Scene, replica: Make
) -> None:
    def events(phase: str, done: int) -> list[str]:
        progress = {"phase": phase, "bytesDone": done * 2**30, "bytesTotal": 9 * 2**30}
        scene.reports.clear()
        scene.told(replicas=[replica(state="loading", loading=progress)])
        told = scene.decided(kept=True).notices
        return [notice.message for notice in told if notice.reason == "Loading"]

    scene.running(ready=0)
    assert events("fetching the model", 1) == [
        "1 replicas load: fetching the model, 1.0 of 9.0 GiB"
    ]
    assert events("fetching the model", 2) == []
    assert events("measuring step times: batch 1 of 20", 0) != []
    assert events("measuring step times: batch 2 of 20", 0) == []


def test_every_reason_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "operator.md").read_text()
    missing = [why.value for why in Why if f"`{why.value}`" not in text]
    assert missing == []
    assert [t.value for t in Type if f"`{t.value}`" not in text] == []
