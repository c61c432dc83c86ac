"""kill -9 for a container, from outside: as a crash or the kernel out of memory does it."""

from e2e.harness.kubectl import Kubectl, Obj

SCRIPT = """
import os, pathlib, signal, sys
killed = 0
for group in pathlib.Path("/proc").glob("[0-9]*/cgroup"):
    try:
        if sys.argv[1] in group.read_text():
            os.kill(int(group.parent.name), signal.SIGKILL)
            killed += 1
    except (FileNotFoundError, ProcessLookupError):
        pass
print(killed)
"""


class Killer:
    """
    `kill(pod)` ends every process of a pod's containers with SIGKILL; nothing in it is told before.

    `kubectl delete --force` is no such thing: the kubelet still sends SIGTERM first. A privileged
    pod on the same node sees the processes; `image` is one with Python that is on every node.
    """

    def __init__(self, kubectl: Kubectl, image: str) -> None:
        self._kubectl, self._image = kubectl, image
        self._there: set[str] = set()

    def __call__(self, pod: Obj) -> None:
        node = pod["spec"]["nodeName"]
        self.ready_on(node)
        for status in pod["status"]["containerStatuses"]:
            container = status["containerID"].partition("://")[2]
            words = ("exec", f"killer-{node}", "--", "python", "-c", SCRIPT, container)
            killed = self._kubectl(*words)
            assert int(killed) > 0, f"no process of {pod['metadata']['name']} on {node}"

    def ready_on(self, node: str) -> None:
        """Be there before it matters: killing is immediate then."""
        if node in self._there:
            return
        container = {
            "name": "killer",
            "image": self._image,
            "imagePullPolicy": "IfNotPresent",
            "command": ["sleep", "infinity"],
            "securityContext": {"privileged": True, "runAsUser": 0},
        }
        spec = {
            "nodeName": node,
            "hostPID": True,
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "containers": [container],
        }
        metadata = {"name": f"killer-{node}"}
        self._kubectl.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
        self._kubectl("wait", f"pod/killer-{node}", "--for=condition=Ready", "--timeout=60s")
        self._there.add(node)
