"""Pods of a story's own, as the restricted Pod Security standard wants them."""

from collections.abc import Sequence

from e2e.harness.kubectl import Kubectl, Obj


def pod_spec(image: str, command: Sequence[str], **more: object) -> Obj:
    """A pod with one container `main`; `more` goes into the container."""
    container = {
        "name": "main",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": list(command),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **more,
    }
    return {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 1,
        "containers": [container],
    }


def run_job(kubectl: Kubectl, name: str, pod: Obj, *, timeout_s: float = 120) -> None:
    """Run a pod to its end. Raises Refused when it fails or takes longer."""
    template = {"spec": {**pod, "restartPolicy": "Never"}}
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"backoffLimit": 0, "template": template},
    }
    kubectl.apply(job)
    kubectl("wait", "--for=condition=complete", f"job/{name}", f"--timeout={timeout_s:g}s")
