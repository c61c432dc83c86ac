"""
`kubectl sloserve explain NAME`: why a service does not meet its SLO, in plain words.

A kubectl plugin is a program called `kubectl-sloserve`; it asks kubectl itself for the object, so
it uses the same context, namespace and rights as every other kubectl command.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence

from sloserve.errors import BadInput, Failed, SloserveError
from sloserve_operator.api import GROUP, SERVICE, Obj
from sloserve_operator.conditions import FALSE, TRUE, Type, Why, find

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130

ADVICE = {
    "TTFT": "first tokens come too late: more replicas (autoscaling.maxReplicas or replicas), "
    "shorter prompts, or a larger ttft",
    "TPOT": "tokens can't be made fast enough beside each other: more replicas, a larger tpot, "
    "faster hardware or a smaller model",
    "KV": "the KV cache is full: more replicas, more memory per replica (engine.kvCache), or a "
    "smaller model.maxModelLen",
    "Replicas": "replicas are missing: look at Progressing below, or raise the count",
}

Get = Callable[[Sequence[str]], str]
"""Runs kubectl with arguments; its output. Raises Failed with what kubectl said."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    try:
        args = _parser().parse_args(argv)
        print(run(args, kubectl))
    except SloserveError as error:
        print(f"kubectl-sloserve: {error.message}", file=sys.stderr)
        return EXIT_BAD_INPUT if isinstance(error, BadInput) else EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kubectl sloserve", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    explain = commands.add_parser("explain", help="why a service does not meet its SLO")
    explain.add_argument("name", help="the SLOService")
    explain.add_argument("-n", "--namespace", help="its namespace (default: kubectl's)")
    explain.add_argument("--context", help="kubeconfig context (default: kubectl's)")
    return parser


def run(args: argparse.Namespace, get: Get) -> str:
    """The explanation of the service that `args` names."""
    words = ["get", f"{SERVICE.plural}.{GROUP}", args.name, "--output", "json"]
    for flag in ("namespace", "context"):
        if getattr(args, flag):
            words += [f"--{flag}", getattr(args, flag)]
    service: Obj = json.loads(get(words))
    return explanation(service)


def kubectl(words: Sequence[str]) -> str:
    """Run kubectl."""
    try:
        done = subprocess.run(["kubectl", *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise Failed("kubectl is not installed, or not in PATH") from None
    if done.returncode != 0:
        raise Failed(done.stderr.strip() or f"kubectl ended with {done.returncode}")
    return done.stdout


def explanation(service: Obj) -> str:
    """What a person should know about a service, worst first, with what would help."""
    name, status = service["metadata"]["name"], service.get("status") or {}
    if not status.get("conditions"):
        return (
            f"{name}: no operator has looked at it yet. Is one running, and does it watch this "
            "namespace? kubectl get pods -A -l app.kubernetes.io/component=operator"
        )
    lines = [f"{name}: {_headline(status)}"]
    accepted, progressing = find(status, Type.ACCEPTED), find(status, Type.PROGRESSING)
    generation = int(service["metadata"].get("generation", 0))
    if accepted.get("status") == FALSE:
        lines.append(f"- the spec is not carried out: {accepted['message']}")
    elif int(accepted.get("observedGeneration", 0)) < generation:
        lines.append("- the operator has not seen the latest change yet; is it running?")
    if progressing.get("reason") != Why.COMPLETE:
        word = "under way" if progressing.get("status") == TRUE else "stuck"
        lines.append(f"- {word}: {progressing.get('message', '')}")
    ready = find(status, Type.READY)
    if ready.get("status") != TRUE and ready.get("reason") != Why.NOT_ACCEPTED:
        lines.append(f"- not ready: {ready.get('message', '')}")
    for condition in (Type.SLO_FEASIBLE, Type.SLO_MET):
        told = find(status, condition)
        if told.get("status") == FALSE:
            lines.append(f"- {told['message']}")
    limited = find(status, Type.CAPACITY_LIMITED)
    if limited.get("status") == TRUE:
        lines.append(f"- capacity: {limited['message']}")
    advice = ADVICE.get(str(status.get("bindingConstraint")))
    if advice is not None:
        lines.append(f"- what would help: {advice}")
    return "\n".join([*lines, *_classes(status)])


def _headline(status: Obj) -> str:
    met = find(status, Type.SLO_MET)
    available = find(status, Type.AVAILABLE).get("status")
    if available == FALSE:
        return f"does not answer ({find(status, Type.AVAILABLE)['message']})"
    told = {TRUE: "keeps its promises", FALSE: "does not keep its promises"}
    fares = told.get(str(met.get("status")), "has had too little traffic to judge")
    return f"{status.get('ready', '0/0')} replicas ready, {fares}"


def _classes(status: Obj) -> list[str]:
    rows = []
    for slo_class in status.get("classes") or ():
        attainment = slo_class.get("attainment5m")
        now = f"{attainment} % in the last 5 minutes" if attainment else "no requests lately"
        budget = slo_class.get("budgetRemaining")
        rows.append(f"  {slo_class['name']}: {now}, {budget} % of the error budget left")
    return rows


if __name__ == "__main__":
    sys.exit(main())
