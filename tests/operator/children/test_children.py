"""What a service is made of."""

import json
from collections.abc import Callable

import pytest
import yaml

from sloserve.errors import BadInput
from sloserve.slo import parse_service
from sloserve.slo.cluster import ImageSpec
from sloserve_operator import names
from sloserve_operator.api import Obj, Ref
from sloserve_operator.children.pod import grace_s, image_of
from sloserve_operator.children.workload import kept, upgraded
from sloserve_operator.settings import Images, OperatorSettings

Children = dict[Ref, Obj]
ALL_KINDS = frozenset({"PodMonitor", "PrometheusRule"})
Make = Callable[..., Obj]


def template(children: Children, part: str) -> Obj:
    found: Obj = children[names.deployment("chat", part)]["spec"]["template"]
    return found


def main(children: Children, part: str) -> Obj:
    (container,) = template(children, part)["spec"]["containers"]
    return dict(container)


def test_a_service_has_these_children(children: Callable[..., Children]) -> None:
    assert {f"{kind}/{name}" for kind, name in children()} == {
        "ConfigMap/chat-config",
        "ServiceAccount/chat-replica",
        "ServiceAccount/chat-gateway",
        "PodDisruptionBudget/chat-replica",
        "PodDisruptionBudget/chat-gateway",
        "Service/chat-replica",
        "Service/chat-gateway",
        "NetworkPolicy/chat-replica",
        "NetworkPolicy/chat-gateway",
        "PodMonitor/chat-metrics",
        "PrometheusRule/chat-slo",
        "ConfigMap/chat-board",
        "Deployment/chat-replica",
        "Deployment/chat-gateway",
    }


def test_optional_children_are_left_out_when_not_wanted(children: Callable[..., Children]) -> None:
    optional = {
        Ref("PodMonitor", "chat-metrics"): "monitors",
        Ref("PrometheusRule", "chat-slo"): "rules",
        Ref("ConfigMap", "chat-board"): "dashboard",
    }
    plain = children(kinds=frozenset())
    for ref, field in optional.items():
        assert ref not in plain
        assert ref not in children(observability={field: "Never"})
    always = children(kinds=frozenset(), observability={"dashboard": "Always"})
    assert Ref("ConfigMap", "chat-board") in always
    without = children(OperatorSettings(network_policies=False))
    assert not [ref for ref in without if ref.kind == "NetworkPolicy"]


def test_every_child_is_owned_labelled_and_in_the_services_namespace(
    children: Callable[..., Children],
) -> None:
    for ref, child in children().items():
        meta = child["metadata"]
        assert meta["namespace"] == "team", ref
        assert meta["labels"][names.MANAGED_BY] == "sloserve-operator", ref
        assert meta["labels"][names.INSTANCE] == "chat", ref
        (owner,) = meta["ownerReferences"]
        assert owner["controller"] is True
        assert owner["uid"] == "uid-of-chat"
        assert "blockOwnerDeletion" not in owner


@pytest.mark.parametrize("part", [names.REPLICA, names.GATEWAY])
def test_pods_meet_the_restricted_pod_security_standard(
    children: Callable[..., Children], part: str
) -> None:
    made = children(
        model={"source": "hf://org/model", "cache": {"claimName": "models"}},
        engine={"tensorParallelSize": 2, "device": "cuda"},
        gateway={"auth": {"secretName": "keys"}, "tls": {"secretName": "cert"}},
    )
    pod = template(made, part)["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert "runAsUser" not in pod["securityContext"]
    assert pod["automountServiceAccountToken"] is False
    allowed = {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}
    assert all(set(volume) - {"name"} <= allowed for volume in pod["volumes"])
    context = main(made, part)["securityContext"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["readOnlyRootFilesystem"] is True


@pytest.mark.parametrize("part", [names.REPLICA, names.GATEWAY])
def test_every_mount_has_its_volume(children: Callable[..., Children], part: str) -> None:
    made = children(
        model={"source": "pvc://weights/qwen/8b", "cache": {"sizeLimit": "1024Mi"}},
        gateway={"auth": {"secretName": "keys"}, "tls": {"secretName": "cert"}},
    )
    volumes = {volume["name"] for volume in template(made, part)["spec"]["volumes"]}
    mounts = {mount["name"] for mount in main(made, part)["volumeMounts"]}
    assert mounts == volumes


def test_pods_get_time_to_drain(children: Callable[..., Children]) -> None:
    made = children(drain={"timeout": "90s"})
    for part in (names.REPLICA, names.GATEWAY):
        assert template(made, part)["spec"]["terminationGracePeriodSeconds"] == 110
        assert main(made, part)["lifecycle"] == {"preStop": {"sleep": {"seconds": 10}}}
    assert grace_s(0.5) == 21


def test_a_rollout_waits_until_gateways_have_found_the_new_replica(
    children: Callable[..., Children],
) -> None:
    made = children(model={"source": "builtin://tiny", "loadTimeout": "1s"})
    spec = made[names.deployment("chat", names.REPLICA)]["spec"]
    dns_cache_s = 30
    sleep_s = main(made, names.REPLICA)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert spec["minReadySeconds"] + sleep_s >= dns_cache_s
    assert spec["progressDeadlineSeconds"] > spec["minReadySeconds"]  # else it is refused


def test_an_overlay_keeps_its_annotations_beside_the_hash(
    children: Callable[..., Children],
) -> None:
    overlay = {"metadata": {"annotations": {"team": "red"}}}
    made = children(engine={"podTemplate": overlay})
    annotations = template(made, names.REPLICA)["metadata"]["annotations"]
    assert annotations["team"] == "red"
    live = made[names.deployment("chat", names.REPLICA)]
    assert annotations[names.DECLARED] == live["metadata"]["annotations"][names.DECLARED]


@pytest.mark.parametrize("part", [names.REPLICA, names.GATEWAY])
def test_pods_spread_over_nodes_where_nodes_have_no_zone_too(
    children: Callable[..., Children], part: str
) -> None:
    spec = template(children(), part)["spec"]
    # The scheduler counts a node only if it has the labels of all constraints together.
    (spread,) = spec["topologySpreadConstraints"]
    assert spread["topologyKey"] == "kubernetes.io/hostname"
    (wish,) = spec["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert wish["podAffinityTerm"]["topologyKey"] == "topology.kubernetes.io/zone"
    for selected in (spread, wish["podAffinityTerm"]):
        assert selected["labelSelector"]["matchLabels"] == names.selector("chat", part)


def test_a_lost_node_costs_half_a_minute(children: Callable[..., Children]) -> None:
    tolerations = template(children(), names.REPLICA)["spec"]["tolerations"]
    assert {(t["key"], t["tolerationSeconds"]) for t in tolerations} == {
        ("node.kubernetes.io/not-ready", 30),
        ("node.kubernetes.io/unreachable", 30),
    }


def test_replicas_are_started_as_the_command_line_wants_it(
    children: Callable[..., Children],
) -> None:
    made = main(children(model={"source": "builtin://tiny", "loadTimeout": "10m"}), names.REPLICA)
    assert made["command"] == ["sloserve"]
    assert made["args"] == [
        "replica", "--config", "/etc/sloserve/service.yaml",
        "--listen", ":8000", "--name", "$(POD_NAME)",
    ]  # fmt: skip
    probe = made["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == 600
    assert made["image"] == Images().engine_cpu


def test_no_process_is_killed_for_a_slow_start_on_a_busy_node(
    children: Callable[..., Children],
) -> None:
    for part in (names.REPLICA, names.GATEWAY):
        made = main(children(), part)
        probe = made["startupProbe"]
        assert probe["periodSeconds"] * probe["failureThreshold"] >= 120, part
        assert "livenessProbe" in made, "which waits for the startup probe"


def test_gateways_find_replicas_keys_and_certificate(children: Callable[..., Children]) -> None:
    made = children(gateway={"auth": {"secretName": "keys"}, "tls": {"secretName": "cert"}})
    args = " ".join(main(made, names.GATEWAY)["args"])
    assert "--listen :8080 --internal :9090 --replicas chat-replica:8000" in args
    assert "--keys /etc/sloserve-keys/keys.yaml" in args
    assert "--tls-cert /etc/sloserve-tls/tls.crt --tls-key /etc/sloserve-tls/tls.key" in args
    (port,) = made[Ref("Service", "chat-gateway")]["spec"]["ports"]
    assert (port["name"], port["port"], port["targetPort"]) == ("https", 443, "http")


def test_the_real_command_line_understands_the_arguments(
    children: Callable[..., Children],
) -> None:
    from sloserve.cli import COMMANDS, _parser

    made = children(gateway={"auth": {"secretName": "k"}, "tls": {"secretName": "c"}})
    for part in (names.REPLICA, names.GATEWAY):
        args = main(made, part)["args"]
        assert args[0] in COMMANDS
        assert _parser(args[0]).parse_args(args).command == args[0]


def test_the_list_of_replicas_holds_those_that_still_load(
    children: Callable[..., Children],
) -> None:
    spec = children()[Ref("Service", "chat-replica")]["spec"]
    assert spec["clusterIP"] == "None"
    assert spec["publishNotReadyAddresses"] is True
    pods = template(children(), names.REPLICA)["metadata"]["labels"]
    assert spec["selector"].items() <= pods.items()


def test_selectors_match_their_own_pods_only(children: Callable[..., Children]) -> None:
    made = children()
    for part, other in ((names.REPLICA, names.GATEWAY), (names.GATEWAY, names.REPLICA)):
        selector = names.selector("chat", part).items()
        assert selector <= template(made, part)["metadata"]["labels"].items()
        assert not selector <= template(made, other)["metadata"]["labels"].items()
    assert names.selector_text("chat", names.REPLICA) == (
        "app.kubernetes.io/component=replica,app.kubernetes.io/instance=chat,"
        "app.kubernetes.io/managed-by=sloserve-operator"
    )


def test_the_mounted_spec_is_what_the_parser_reads(children: Callable[..., Children]) -> None:
    overlay = {"spec": {"priorityClassName": "high"}}
    made = children(model={"source": "pvc://weights/qwen 3/8b"}, engine={"podTemplate": overlay})
    text = made[Ref("ConfigMap", "chat-config")]["data"]["service.yaml"]
    spec = parse_service(yaml.safe_load(text))
    assert spec == parse_service(json.loads(text))
    assert spec.model.source == "file:///models/weights/qwen%203/8b"
    assert spec.generation == 1
    assert spec.namespace == "team"
    assert not spec.engine.pod.pod_template


def test_prometheus_and_grafana_find_what_they_select(children: Callable[..., Children]) -> None:
    made = children(
        OperatorSettings(
            monitor_labels={"release": "prometheus"}, runbook_url="https://wiki.example/book"
        )
    )
    for ref in (Ref("PodMonitor", "chat-metrics"), Ref("PrometheusRule", "chat-slo")):
        assert made[ref]["metadata"]["labels"]["release"] == "prometheus"
    monitor = made[Ref("PodMonitor", "chat-metrics")]["spec"]
    pods = template(made, names.REPLICA)["metadata"]["labels"]
    assert monitor["selector"]["matchLabels"].items() <= pods.items()
    ports = {
        port["name"] for p in (names.REPLICA, names.GATEWAY) for port in main(made, p)["ports"]
    }
    assert {endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]} <= ports
    groups = made[Ref("PrometheusRule", "chat-slo")]["spec"]["groups"]
    links = [r["annotations"]["runbook_url"] for g in groups for r in g["rules"] if "alert" in r]
    assert links
    assert all(link.startswith("https://wiki.example/book#sloserve") for link in links)
    board = made[Ref("ConfigMap", "chat-board")]
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
    (text,) = board["data"].values()
    assert json.loads(text)["panels"]


def test_gpus_are_asked_for_when_nobody_did(children: Callable[..., Children]) -> None:
    cuda = {"device": "cuda", "tensorParallelSize": 2}
    model = {"source": "hf://org/model"}

    def limits(engine: Obj) -> object:
        found = main(children(model=model, engine=engine), names.REPLICA)
        return (found.get("resources") or {}).get("limits")

    assert limits(cuda) == {"nvidia.com/gpu": "2"}
    memory = {"resources": {"limits": {"memory": "2048Mi"}}}
    assert limits(cuda | memory) == {"nvidia.com/gpu": "2", "memory": "2Gi"}
    assert limits(cuda | {"resources": {"limits": {"amd.com/gpu": 1}}}) == {"amd.com/gpu": "1"}
    mig = {"resources": {"limits": {"nvidia.com/mig-3g.40gb": 1}}}
    assert limits(cuda | mig) == {"nvidia.com/mig-3g.40gb": "1"}
    assert limits({"device": "cpu"}) is None


@pytest.mark.parametrize("part", [names.REPLICA, names.GATEWAY])
def test_no_pod_is_the_first_to_starve(children: Callable[..., Children], part: str) -> None:
    where = "engine" if part == names.REPLICA else "gateway"

    def resources(declared: Obj, settings: OperatorSettings | None = None) -> Obj:
        return dict(main(children(settings, **{where: declared}), part).get("resources", {}))

    plain = resources({})
    assert set(plain) == {"requests"}, "limits that nobody asked for"
    assert set(plain["requests"]) == {"cpu", "memory"}
    asked = resources({"resources": {"requests": {"cpu": "2000m"}}})["requests"]
    assert asked == {**plain["requests"], "cpu": "2"}
    overlay = {"spec": {"containers": [{"name": part, "resources": {"limits": {"memory": "9Mi"}}}]}}
    # beside a limit the API server refuses a larger request, and makes one of the same size
    for limited in ({"resources": {"limits": {"memory": "9Mi"}}}, {"podTemplate": overlay}):
        found = resources(limited)
        assert found == {
            "limits": {"memory": "9Mi"},
            "requests": {"cpu": plain["requests"]["cpu"]},
        }
    whole = {"podTemplate": {"spec": {"resources": {"limits": {"cpu": "50m"}}}}}
    assert resources(whole) == {}
    none = OperatorSettings(replica_requests={}, gateway_requests={})
    assert resources({}, none) == {}
    own = OperatorSettings(replica_requests={"cpu": "3"}, gateway_requests={"cpu": "3"})
    assert resources({}, own) == {"requests": {"cpu": "3"}}


def test_what_a_replica_reserves_leaves_its_gpus_alone(children: Callable[..., Children]) -> None:
    made = children(model={"source": "hf://org/model"}, engine={"device": "cuda"})
    found = main(made, names.REPLICA)["resources"]
    assert found["limits"] == {"nvidia.com/gpu": "1"}
    assert set(found["requests"]) == {"cpu", "memory"}


def test_gpus_of_a_pod_talk_through_memory(children: Callable[..., Children]) -> None:
    engine = {"device": "cuda", "tensorParallelSize": 4}
    made = children(model={"source": "hf://org/model"}, engine=engine)
    volumes = {v["name"]: v for v in template(made, names.REPLICA)["spec"]["volumes"]}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory"}


def test_a_hub_token_is_referenced_and_never_read(children: Callable[..., Children]) -> None:
    model = {"source": "hf://org/model", "tokenSecretRef": {"name": "hub", "key": "t"}}
    env = {e["name"]: e for e in main(children(model=model), names.REPLICA)["env"]}
    assert env["HF_TOKEN"]["valueFrom"] == {"secretKeyRef": {"name": "hub", "key": "t"}}
    assert env["HF_HOME"]["value"].startswith("/cache")


def test_only_a_shared_cache_needs_a_group(children: Callable[..., Children]) -> None:
    claim = {"source": "hf://org/model", "cache": {"claimName": "models"}}

    def group(settings: OperatorSettings, model: Obj) -> object:
        pod = template(children(settings, model=model), names.REPLICA)["spec"]
        return pod["securityContext"].get("fsGroup")

    assert group(OperatorSettings(), claim) == 10001
    assert group(OperatorSettings(fs_group=None), claim) is None
    assert group(OperatorSettings(), {"source": "hf://org/model"}) is None


def test_simulated_replicas_need_no_torch(children: Callable[..., Children]) -> None:
    images = Images(engine_cpu="r/cpu:1", engine_cuda="r/cuda:1", gateway="r/gateway:1")
    settings = OperatorSettings(images=images)
    assert main(children(settings), names.REPLICA)["image"] == "r/gateway:1"
    cpu = children(settings, model={"source": "builtin://tiny"})
    assert main(cpu, names.REPLICA)["image"] == "r/cpu:1"
    cuda = children(settings, model={"source": "hf://a/b"}, engine={"device": "cuda"})
    assert main(cuda, names.REPLICA)["image"] == "r/cuda:1"


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (ImageSpec(), "reg.io:5000/a/b:1"),
        (ImageSpec(tag="2"), "reg.io:5000/a/b:2"),
        (ImageSpec(repository="c/d"), "c/d"),
        (ImageSpec(repository="c/d", tag="3"), "c/d:3"),
    ],
)
def test_images_are_completed_from_the_operators(image: ImageSpec, expected: str) -> None:
    assert image_of(image, default="reg.io:5000/a/b:1", policy="Always") == (expected, "Always")


def test_a_pinned_digest_is_kept_until_a_tag_is_asked_for() -> None:
    pinned = "r/a@sha256:00"
    assert image_of(ImageSpec(), default=pinned, policy="Never")[0] == pinned
    assert image_of(ImageSpec(tag="2"), default=pinned, policy="Never")[0] == "r/a:2"


# What rolls pods, and what does not.

ROLLS: list[Obj] = [
    {"model": {"source": "builtin://sim?profile=a100"}},
    {"model": {"source": "builtin://sim?profile=h200", "maxModelLen": 512}},
    {"engine": {"maxRunning": 8}},
    {"engine": {"image": {"tag": "next"}}},
    {"engine": {"podTemplate": {"spec": {"priorityClassName": "high"}}}},
    {"drain": {"timeout": "1m"}},
]
STAYS: list[Obj] = [
    {"sloClasses": [{"name": "only", "ttft": {"target": "2s"}, "tpot": "1s"}]},
    {"defaultClass": "slow"},
    {"replicas": 5},
    {"autoscaling": {"maxReplicas": 4}},
    {"gateway": {"replicas": 3, "maxHops": 2, "holdTimeout": "1m"}},
    {"engine": {"rollout": {"maxSurge": 0, "maxUnavailable": 1}}},
    {"engine": {"dtype": "auto", "kvCache": {"prefixCaching": True}}},
    {"observability": {"period": "3d"}},
]


def declared(children: Children, part: str = names.REPLICA) -> tuple[object, object]:
    live = children[names.deployment("chat", part)]
    return live["metadata"]["annotations"][names.DECLARED], live["spec"]["template"]


@pytest.mark.parametrize("change", ROLLS, ids=str)
def test_model_engine_and_image_changes_roll_replicas(
    children: Callable[..., Children], change: Obj
) -> None:
    changed, before = declared(children(**change)), declared(children())
    assert changed[0] != before[0]
    assert changed[1] != before[1]  # or the controller would see nothing to roll


@pytest.mark.parametrize("change", STAYS, ids=str)
def test_nothing_else_restarts_a_replica(children: Callable[..., Children], change: Obj) -> None:
    assert declared(children(**change)) == declared(children())


def test_adapters_come_from_their_own_claims_and_a_new_one_rolls_replicas_alone(
    children: Callable[..., Children],
) -> None:
    lora = [{"name": "polite", "source": "pvc://tuned/polite"}]
    made, before = children(model={"source": "pvc://weights/8b", "lora": lora}), children()
    (main,) = made[names.deployment("chat", names.REPLICA)]["spec"]["template"]["spec"][
        "containers"
    ]
    mounted = [m["mountPath"] for m in main["volumeMounts"]]
    assert {"/models/weights", "/models/tuned"} <= set(mounted)
    told = next(iter(made[Ref("ConfigMap", "chat-config")]["data"].values()))
    assert "file:///models/tuned/polite" in told
    more = [*lora, {"name": "terse", "source": "pvc://tuned/terse"}]
    after = children(model={"source": "pvc://weights/8b", "lora": more})
    assert declared(after) != declared(made) != declared(before)
    assert declared(after, names.GATEWAY) == declared(made, names.GATEWAY)


def test_a_class_change_restarts_no_gateway_either(children: Callable[..., Children]) -> None:
    changed = children(**STAYS[0])
    assert declared(changed, names.GATEWAY) == declared(children(), names.GATEWAY)
    config = Ref("ConfigMap", "chat-config")
    assert changed[config]["data"] != children()[config]["data"]


def test_an_operator_upgrade_keeps_the_template_that_runs(
    children: Callable[..., Children],
) -> None:
    newer = OperatorSettings(images=Images(engine_cpu="r/engine:next", gateway="r/gateway:next"))
    ref = names.deployment("chat", names.REPLICA)
    old, new = children()[ref], children(newer)[ref]
    assert upgraded(new, old)
    assert kept(new, old)["spec"]["template"] == old["spec"]["template"]
    assert not upgraded(kept(new, old), old)
    assert not upgraded(children()[ref], old)
    edited = children(newer, engine={"maxRunning": 8})[ref]
    assert not upgraded(edited, old)  # the user's own change rolls to the new rendering


# NetworkPolicies, evaluated against the table of flows.


def test_a_wrong_pod_template_is_refused_with_its_place(children: Callable[..., Children]) -> None:
    with pytest.raises(BadInput, match=r"spec\.engine\.podTemplate\.nodeSelector"):
        children(engine={"podTemplate": {"nodeSelector": {"a": "b"}}})
    labels = {"metadata": {"labels": {names.COMPONENT: "mine"}}}
    with pytest.raises(BadInput, match=r"podTemplate\.metadata\.labels"):
        children(gateway={"podTemplate": labels})
    with pytest.raises(BadInput, match="must be a mapping"):
        children(engine={"podTemplate": {"spec": {"securityContext": 5}}})
