"""
One cluster, one release, one namespace per story.

KUBECONFIG names the cluster; without it every story is skipped. Variables, all optional:

    HELM, KUBECTL    the programs
    E2E_TAG          tag of the images on the nodes (default: the chart's appVersion)
    E2E_NEXT_TAG     a second tag of the same images, for upgrades
    E2E_RELEASE      name of the release (default sloserve, or one for each worker of xdist); with
                     another name its operator looks after the stories' services only, so that
                     several runs can share a cluster
    E2E_KEEP         not empty: use the release that is there, and leave it
    E2E_LOSE_NODE    command that cuts a node off, given its name; with --back it returns it
    E2E_OPTIONAL_KINDS  folder with CRDs of the Prometheus operator; the story of alerts applies
                     them where the cluster has none, and they stay
    PROMETHEUS       the program, for that story
"""

import fcntl
import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from e2e.harness.killing import Killer
from e2e.harness.kubectl import Kubectl, Obj, Refused
from e2e.harness.service import Service
from e2e.harness.waiting import until

ROOT = Path(__file__).parents[1]
CHART = ROOT / "charts" / "sloserve"
CRD = "crd/sloservices.sloserve.io"
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
OUTCOMES = pytest.StashKey[dict[str, bool]]()
TIMES: dict[str, tuple[str, float]] = {}
NOTES: list[str] = []


# --- what a run leaves on paper ------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--record",
        metavar="FILE",
        help="write a table of stories and times there, each worker its own",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: pytest.TestReport = yield  # type: ignore[assignment]
    failed = item.stash.setdefault(OUTCOMES, {})
    failed[report.when or ""] = report.failed
    outcome, seconds = TIMES.get(item.nodeid, ("passed", 0.0))
    if report.outcome != "passed":
        outcome = report.outcome
    TIMES[item.nodeid] = (outcome, seconds + report.duration)
    return report  # type: ignore[return-value]


@pytest.fixture
def note() -> Callable[[str], None]:
    """`note(text)`: a measurement that a recorded run shows below its table."""

    def write(text: str) -> None:
        NOTES.append(text)
        print(text)

    return write


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("--record")
    if not path or not TIMES:
        return
    lines = ["| story | what holds | outcome | seconds |", "| --- | --- | --- | --- |"]
    for node, (outcome, seconds) in TIMES.items():
        story, _, test = node.partition("::")
        story = Path(story).stem.removeprefix("test_").replace("_", " ")
        what = test.removeprefix("test_").replace("_", " ")
        lines.append(f"| {story} | {what} | {outcome} | {seconds:.0f} |")
    total_s = sum(seconds for _, seconds in TIMES.values())
    lines.append(f"| all | {len(TIMES)} tests | | {total_s:.0f} |")
    lines += [f"\n{note}" for note in NOTES]
    file = Path(path).with_suffix(f".{WORKER}.md") if WORKER else Path(path)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


# --- the cluster ---------------------------------------------------------------------------------


def find_program(name: str) -> str:
    """Path of a program, from its variable or PATH; the story is skipped without it."""
    found = shutil.which(os.environ.get(name.upper()) or name)
    if not found:
        pytest.skip(f"needs {name}: install it, or set {name.upper()}")
    return found


@pytest.fixture(scope="session")
def cluster() -> Kubectl:
    """kubectl on a cluster with nothing to lose."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("needs a Kubernetes cluster: set KUBECONFIG, or run `make e2e`")
    return Kubectl(find_program("kubectl"))


@pytest.fixture(scope="session")
def nodes(cluster: Kubectl) -> list[Obj]:
    """Nodes that take pods, as the API server has them."""
    found = [n for n in cluster.list("nodes") if not n["spec"].get("taints")]
    assert found, "no node takes pods"
    return found


@pytest.fixture(scope="session")
def host(nodes: list[Obj]) -> str:
    """Address of the first node: NodePorts are reached there, stories leave it alone."""
    addresses = nodes[0]["status"]["addresses"]
    return next(str(a["address"]) for a in addresses if a["type"] == "InternalIP")


# --- the release ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Release:
    """The chart in the cluster. `helm(...)` runs in its namespace."""

    helm_program: str
    name: str
    kubectl: Kubectl
    tag: str

    @property
    def namespace(self) -> str:
        """Where its operator runs."""
        return self.kubectl.namespace

    @property
    def operator(self) -> str:
        """The operator's Deployment, as kubectl names it."""
        full = self.name if "sloserve" in self.name else f"{self.name}-sloserve"
        return f"deployment/{full}-operator"

    @property
    def selector(self) -> str:
        """Label selector of the services it looks after; empty: all."""
        return "" if self.name == "sloserve" else f"sloserve.io/operator={self.name}"

    def helm(self, *words: str, timeout_s: float = 240) -> str:
        """Run Helm; its output."""
        done = subprocess.run(
            [self.helm_program, "--namespace", self.namespace, *words],
            capture_output=True, text=True, check=False, timeout=timeout_s,
        )  # fmt: skip
        assert done.returncode == 0, f"helm {' '.join(words)}: {done.stderr}"
        return done.stdout

    def install(self, *words: str, chart: Path = CHART, tag: str | None = None) -> str:
        """Install or upgrade it and wait; the notes."""
        settings = [f"images.tag={tag or self.tag}", "images.pullPolicy=IfNotPresent"]
        if self.selector:
            settings.append(f"watch.selector={self.selector}")
        words = (*(word for s in settings for word in ("--set", s)), *words)
        wait = ("--wait", "--timeout", "3m")
        return self.helm("upgrade", "--install", self.name, str(chart), *wait, *words)

    def operator_pods(self) -> list[Obj]:
        """Pods of the operator that are not on their way out."""
        found = self.kubectl.list("pods", f"app.kubernetes.io/instance={self.name}")
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def holder(self) -> str:
        """Who holds the Lease: the pod's uid and a few letters; empty when nobody does."""
        lease = self.kubectl.get("lease", self.operator.partition("/")[2])
        return str(lease["spec"].get("holderIdentity") or "") if lease else ""

    def leader(self) -> Obj | None:
        """The operator's pod that holds the Lease."""
        holder = self.holder()
        pods = [p for p in self.operator_pods() if holder.startswith(p["metadata"]["uid"])]
        return pods[0] if pods else None

    @contextmanager
    def away(self) -> Iterator[None]:
        """Without any operator while the block runs."""
        count = self.kubectl("get", self.operator, "-o", "jsonpath={.spec.replicas}")
        self.kubectl("scale", self.operator, "--replicas=0")
        label = f"app.kubernetes.io/instance={self.name}"
        until(lambda: not self.kubectl.list("pods", label), "the operator is gone")
        try:
            yield
        finally:
            self.kubectl("scale", self.operator, f"--replicas={count}")
            self.kubectl("rollout", "status", self.operator, "--timeout=120s")


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """
    Of all workers of this run, only one is in the block. Helm looks what is there before it
    installs: of two that find no CRD at the same time one fails.
    """
    with (folder / "install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def release(cluster: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """The chart, installed as the README says, with every namespace restricted."""
    name = os.environ.get("E2E_RELEASE") or (f"e2e-{WORKER}" if WORKER else "sloserve")
    namespace = "sloserve-system" if name == "sloserve" else f"sloserve-{name}"
    version = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))["appVersion"]
    tag = os.environ.get("E2E_TAG") or version
    made = Release(find_program("helm"), name, cluster.within(namespace), tag)
    keep = bool(os.environ.get("E2E_KEEP"))
    until(lambda: not leaving(cluster, namespace), f"an earlier run's {namespace} is gone")
    if not cluster.get("namespace", namespace):
        make_namespace(cluster, namespace)
    if not keep or name not in made.helm("list", "--short").split():
        with one_at_a_time(tmp_path_factory.getbasetemp().parent):
            made.install()
    cluster("wait", "--for=condition=Established", CRD, "--timeout=60s")
    yield made
    if not keep:
        delete_services(made)
        made.helm("uninstall", name, "--wait")
        if name == "sloserve":
            cluster("delete", CRD)
        cluster("delete", "namespace", namespace, "--wait=false")


def leaving(cluster: Kubectl, namespace: str) -> bool:
    """Whether a namespace is on its way out: nothing can be made in it."""
    found = cluster.get("namespace", namespace)
    return found is not None and "deletionTimestamp" in found["metadata"]


@pytest.fixture
def changing(release: Release) -> Iterator[Release]:
    """The release, for a story that changes it; it is as before when the story is over."""
    yield release
    release.install()


@pytest.fixture(scope="session")
def kill(cluster: Kubectl, release: Release) -> Iterator[Killer]:
    """kill -9 for containers."""
    namespace = f"e2e-kill-{uuid.uuid4().hex[:8]}"
    make_namespace(cluster, namespace, standard="privileged")
    yield Killer(cluster.within(namespace), f"localhost/sloserve-operator:{release.tag}")
    cluster("delete", "namespace", namespace, "--wait=false")


def delete_services(release: Release) -> None:
    """Delete every service that the release looks after."""
    words = ["--selector", release.selector] if release.selector else []
    told = release.kubectl("get", "slosvc", "--all-namespaces", "-o", "json", *words)
    for found in json.loads(told)["items"]:
        metadata = found["metadata"]
        release.kubectl.within(metadata["namespace"])(
            "delete", "slosvc", metadata["name"], "--ignore-not-found"
        )


# --- a story's own -------------------------------------------------------------------------------


def make_namespace(kubectl: Kubectl, name: str, *, standard: str = "restricted") -> None:
    """A namespace that enforces a Pod Security standard."""
    labels = {"pod-security.kubernetes.io/enforce": standard}
    metadata = {"name": name, "labels": labels}
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})


@pytest.fixture
def kubectl(
    cluster: Kubectl, release: Release, request: pytest.FixtureRequest
) -> Iterator[Kubectl]:
    """kubectl in a new restricted namespace; after a failure everything in it is printed."""
    namespace = f"e2e-{uuid.uuid4().hex[:8]}"
    make_namespace(cluster, namespace)
    within = cluster.within(namespace)
    yield within
    if any(request.node.stash.get(OUTCOMES, {}).values()):
        print_everything(within, release)
    cluster("delete", "namespace", namespace, "--wait=false", "--ignore-not-found")


@pytest.fixture
def restricted(cluster: Kubectl) -> Iterator[Callable[[str], Kubectl]]:
    """`restricted("other")`: kubectl in one more restricted namespace of this story."""
    made: list[str] = []

    def make(name: str) -> Kubectl:
        made.append(f"e2e-{uuid.uuid4().hex[:8]}-{name}")
        make_namespace(cluster, made[-1])
        return cluster.within(made[-1])

    yield make
    for namespace in made:
        cluster("delete", "namespace", namespace, "--wait=false")


@pytest.fixture
def make_service(kubectl: Kubectl, release: Release, host: str) -> Callable[..., Service]:
    """`make_service("name")`: a service of this story's namespace; not applied yet."""
    labels = dict([release.selector.split("=")]) if release.selector else {}
    return lambda name="assistant": Service(kubectl, name, host=host, labels=labels)


@pytest.fixture
def service(make_service: Callable[..., Service]) -> Service:
    """The service `assistant` of this story's namespace; not applied yet."""
    return make_service()


class LostNodes:
    """`lost_nodes(name)` cuts a node off the network, `lost_nodes.back(name)` returns it."""

    def __init__(self, command: str) -> None:
        self._command = command.split()
        self.names: list[str] = []

    def __call__(self, name: str) -> None:
        self.names.append(name)
        subprocess.run([*self._command, name], check=True, timeout=60)

    def back(self, name: str) -> None:
        """Return it."""
        subprocess.run([*self._command, name, "--back"], check=True, timeout=60)
        self.names.remove(name)


@pytest.fixture
def lose_node() -> Iterator[LostNodes]:
    """Cuts a node off the network; it is back when the story is over."""
    command = os.environ.get("E2E_LOSE_NODE")
    if not command:
        pytest.skip("needs a command that cuts a node off: set E2E_LOSE_NODE")
    lost = LostNodes(command)
    yield lost
    for name in list(lost.names):
        lost.back(name)


@pytest.fixture
def whole_cluster(cluster: Kubectl, nodes: list[Obj]) -> Iterator[None]:
    """Every node takes pods again when the story is over."""
    yield
    for node in nodes:
        name = node["metadata"]["name"]
        cluster("uncordon", name)
        ready = f"--for=condition=Ready node/{name} --timeout=120s"
        cluster("wait", *ready.split())


def print_everything(kubectl: Kubectl, release: Release) -> None:
    """Objects, events and logs of a story that failed, and the operator's."""
    views = [
        ("get", "slosvc,deployments,pods,pdb", "-o", "wide"),
        ("get", "slosvc", "-o", "yaml"),
        ("get", "events", "--sort-by=.lastTimestamp"),
        ("describe", "pods"),
    ]
    for pod in kubectl.list("pods"):
        views.append(("logs", pod["metadata"]["name"], "--tail=60", "--all-containers"))
        if any(s.get("restartCount") for s in pod["status"].get("containerStatuses", ())):
            views.append(("logs", pod["metadata"]["name"], "--tail=40", "--previous"))
    for words in views:
        show(kubectl, *words)
    show(release.kubectl, "logs", release.operator, "--tail=80")


def show(kubectl: Kubectl, *words: str) -> None:
    """Print what kubectl says, errors too."""
    try:
        said = kubectl(*words, timeout_s=30)
    except (Refused, subprocess.TimeoutExpired) as error:
        said = str(error)
    print(f"\n--- kubectl {' '.join(words)}\n{said}")
