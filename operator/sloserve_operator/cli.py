"""
The `sloserve-operator` command.

Exit codes: 0 done, 1 failed while running, 2 bad input, 3 the Lease was lost, 130 interrupted.
"""

import argparse
import asyncio
import importlib.metadata
import logging
import os
import random
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace

from sloserve import logs
from sloserve.errors import BadInput, SloserveError
from sloserve_operator.settings import OperatorSettings, from_environment

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130

DESCRIPTION = """\
Turns SLOServices into replicas and gateways, and tells truthfully how they fare.

In a cluster the chart runs it. Outside of one it uses the kubeconfig that kubectl uses:

  sloserve-operator --watch-namespace team-a
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code. A failure is one line on stderr, no traceback."""
    try:
        args = _parser().parse_args(argv)
        settings = with_arguments(from_environment(os.environ), args)
        logs.set_up_from(args, os.environ)
        logging.getLogger("kopf").setLevel(logging.WARNING)
        return asyncio.run(_run(settings))
    except SloserveError as error:
        print(f"sloserve-operator: {' '.join(error.message.split())}", file=sys.stderr)
        return EXIT_BAD_INPUT if isinstance(error, BadInput) else EXIT_FAILED
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("sloserve"):
            raise
        print(
            f"sloserve-operator: needs {error.name}, which is not installed; "
            "run: pip install 'sloserve[operator]'",
            file=sys.stderr,
        )
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sloserve-operator",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Each flag has an environment variable, and images have one each: docs/operator.md. "
        "Exit codes: 0 done, 1 failed while running, 2 bad input, 3 the Lease was lost, "
        "130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"sloserve-operator {_version()}")
    parser.add_argument(
        "--namespace", help="where it runs and keeps its Lease ($SLOSERVE_NAMESPACE)"
    )
    parser.add_argument(
        "--watch-namespace",
        action="append",
        metavar="NAMESPACE",
        help="run the services of this namespace only; may be repeated; default: all, which needs "
        "cluster-wide rights ($SLOSERVE_WATCH_NAMESPACES)",
    )
    parser.add_argument(
        "--watch-selector",
        metavar="LABELS",
        help="run only services with these labels ($SLOSERVE_WATCH_SELECTOR)",
    )
    parser.add_argument("--lease", help="name of the Lease ($SLOSERVE_LEASE)")
    parser.add_argument(
        "--identity", help="who holds the Lease, as the pod's uid ($SLOSERVE_IDENTITY)"
    )
    parser.add_argument(
        "--listen", metavar="HOST:PORT", help="/livez, /readyz, /metrics ($SLOSERVE_LISTEN)"
    )
    logs.add_log_flags(parser)
    return parser


def with_arguments(settings: OperatorSettings, args: argparse.Namespace) -> OperatorSettings:
    """The settings with the given flags put over them."""
    given = {
        "namespace": args.namespace,
        "selector": args.watch_selector,
        "lease": args.lease,
        "identity": args.identity,
        "listen": args.listen,
        "watched": tuple(args.watch_namespace) if args.watch_namespace else None,
    }
    return replace(settings, **{name: value for name, value in given.items() if value is not None})


async def _run(settings: OperatorSettings) -> int:
    from sloserve_operator.kube import Kube
    from sloserve_operator.lease import Lease
    from sloserve_operator.operator import Operator, watch
    from sloserve_operator.web import serving

    stop = asyncio.Event()
    code = 0

    def stopped(signum: signal.Signals) -> None:
        nonlocal code
        code = EXIT_INTERRUPTED if signum is signal.SIGINT else 0
        stop.set()

    def listen_to_signals() -> None:
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, stopped, signum)

    listen_to_signals()
    kube = await Kube.connect(num_connections=settings.num_workers + 4)
    held = Kube(kube.api)
    try:
        identity = f"{settings.identity}-{random.randrange(16**6):06x}"
        lease = Lease(held, namespace=settings.namespace, name=settings.lease, identity=identity)
        kube.may_write = lease.valid
        operator = Operator(kube, lease=lease, settings=settings)
        async with serving(
            settings.listen,
            figures=operator.figures,
            alive=operator.problem,
            leading=lease.valid,
        ):
            await watch(operator, stop=stop, starting=listen_to_signals)
    finally:
        await kube.close()
    return code


def _version() -> str:
    try:
        return importlib.metadata.version("sloserve")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
