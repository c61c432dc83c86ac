"""
The `sloserve` command. Each branch imports only what it runs.

Exit codes: 0 done, 1 failed while running, 2 bad input, 130 interrupted.
"""

import argparse
import importlib.metadata
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sloserve import logs
from sloserve.errors import BadInput, NotFound, SloserveError
from sloserve.local.orphans import die_with_parent

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130

POLICIES = ("sloserve", "fcfs", "edf", "edf-drop")

DESCRIPTION = """\
LLM serving that keeps its latency promises.

  sloserve up -f examples/sloservice.yaml     a whole service on this machine
  sloserve status                             how it fares
  sloserve bench                              load it and judge its promises
"""


@dataclass(frozen=True, slots=True)
class Command:
    """One sub-command; `extra` is the part of the package that it needs."""

    summary: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    extra: str


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code. A failure is one line on stderr, no traceback."""
    die_with_parent()
    words = list(sys.argv[1:] if argv is None else argv)
    chosen = next((word for word in words if not word.startswith("-")), None)
    try:
        args = _parser(chosen).parse_args(words)
        logs.set_up_from(args, os.environ)
        return COMMANDS[args.command].run(args)
    except SloserveError as error:
        return _failed(error.message, _exit_code(error))
    except ModuleNotFoundError as error:
        if chosen not in COMMANDS or (error.name or "").startswith("sloserve"):
            raise
        extra = COMMANDS[chosen].extra
        return _failed(
            f"`sloserve {chosen}` needs {error.name}, which is not installed; "
            f"run: pip install 'sloserve[{extra}]'",
            EXIT_FAILED,
        )
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _failed(f"{where}{error.strerror or error}", EXIT_FAILED)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    """The parser; only the chosen command gets its arguments, the others need no import."""
    parser = argparse.ArgumentParser(
        prog="sloserve",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="exit codes: 0 done, 1 failed while running, 2 bad input, 130 interrupted",
    )
    parser.add_argument("--version", action="version", version=f"sloserve {_version()}")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, title="commands"
    )
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=command.summary,
            description=f"{command.summary[0].upper()}{command.summary[1:]}.",
        )
        if name == chosen:
            command.arguments(sub)
            serves = name in ("replica", "gateway")
            logs.add_log_flags(sub, default_level="info" if serves else "warning")
    return parser


def _up_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--file", type=Path, required=True, help="SLOService manifest")
    _policy(parser)
    parser.add_argument("--host", default="127.0.0.1", help="gateway address (%(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="gateway port (%(default)s)")
    parser.add_argument(
        "--internal-port", type=int, default=0, help="gateway's /metrics and /report (0: any free)"
    )
    parser.add_argument(
        "--status-page",
        metavar="LISTEN",
        help="where the status page is: PORT, HOST:PORT or off (default 127.0.0.1:8081, or a free "
        "port when that is taken)",
    )
    parser.add_argument("--keys", type=Path, help="file with API keys; without it nobody is asked")
    _profile(parser, "step-time profile (default: measured once and cached)")
    parser.add_argument(
        "--state", type=Path, help="folder of the running service (default .sloserve/NAME)"
    )
    parser.add_argument(
        "--plain", action="store_true", help="lines instead of a live table, also on a terminal"
    )
    _tracing(parser)


def _up(args: argparse.Namespace) -> int:
    from sloserve.http import tracing
    from sloserve.local.up import run_up

    tracing.check(args.tracing, os.environ)
    os.environ.update(logs.environment_of(args) | tracing.environment_of(args.tracing, os.environ))
    return run_up(args)


def _status_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="gateway (%(default)s)")
    parser.add_argument("--api-key", help="key, when the gateway asks for one ($OPENAI_API_KEY)")


def _status(args: argparse.Namespace) -> int:
    from sloserve.local.status import run_status

    return run_status(args)


def _replica_arguments(parser: argparse.ArgumentParser) -> None:
    from sloserve.slo.flags import add_service_flags

    parser.add_argument("--config", type=Path, help="resolved SLOService manifest; watched")
    _listen(parser, "127.0.0.1:8000")
    _policy(parser)
    _tracing(parser)
    _profile(parser, "step-time profile (default: measured on start)")
    parser.add_argument("--name", help="name of this replica in reports (default: host and pid)")
    parser.add_argument(
        "--overlap",
        choices=("auto", "always", "never"),
        default="auto",
        help="plan the next step while one runs; auto: where steps leave the processor alone,"
        " as on a GPU (default %(default)s)",
    )
    add_service_flags(parser)


def _replica(args: argparse.Namespace) -> int:
    from sloserve.frontend.main import run_replica

    return run_replica(args)


def _gateway_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, required=True, help="resolved SLOService manifest; watched"
    )
    _listen(parser, "127.0.0.1:8080")
    parser.add_argument(
        "--internal",
        default="127.0.0.1:0",
        metavar="HOST:PORT",
        help="where /metrics and /report are (default %(default)s; port 0: any free)",
    )
    parser.add_argument(
        "--replicas",
        required=True,
        metavar="LIST|FILE|DNS",
        help="HOST:PORT entries with commas; a file of them, watched; or a name for all its "
        "addresses",
    )
    parser.add_argument("--keys", type=Path, help="file with API keys; watched")
    parser.add_argument("--tls-cert", type=Path, help="certificate chain (PEM)")
    parser.add_argument("--tls-key", type=Path, help="its private key (PEM)")
    _tracing(parser)


def _gateway(args: argparse.Namespace) -> int:
    from sloserve.gateway.main import run_gateway

    return run_gateway(args)


def _profile_arguments(parser: argparse.ArgumentParser) -> None:
    from sloserve.slo.flags import add_service_flags

    parser.add_argument("--config", type=Path, help="SLOService manifest that names the model")
    parser.add_argument("-o", "--output", type=Path, help="file to write (default: the cache)")
    parser.add_argument("--full", action="store_true", help="minutes instead of seconds")
    add_service_flags(parser)


def _profile_run(args: argparse.Namespace) -> int:
    from sloserve.model.allocator import restart_with_malloc_settings
    from sloserve.model.profile_command import run_profile

    restart_with_malloc_settings()
    return run_profile(args)


def _bench_arguments(parser: argparse.ArgumentParser) -> None:
    from sloserve.load.bench import add_bench_arguments

    add_bench_arguments(parser)


def _bench(args: argparse.Namespace) -> int:
    from sloserve.load.bench import run_bench

    return run_bench(args)


def _simulate_arguments(parser: argparse.ArgumentParser) -> None:
    from sloserve.simulate.command import add_simulate_arguments

    add_simulate_arguments(parser)


def _simulate(args: argparse.Namespace) -> int:
    from sloserve.simulate.command import run_simulate

    return run_simulate(args)


def _rules_arguments(parser: argparse.ArgumentParser) -> None:
    from sloserve.local.rules import add_rules_arguments

    add_rules_arguments(parser)


def _rules(args: argparse.Namespace) -> int:
    from sloserve.local.rules import run_rules

    return run_rules(args)


COMMANDS = {
    "up": Command("run a whole service on this machine", _up_arguments, _up, "engine"),
    "status": Command("show how a running service fares", _status_arguments, _status, "gateway"),
    "replica": Command(
        "run one replica: engine and OpenAI endpoint", _replica_arguments, _replica, "engine"
    ),
    "gateway": Command("run one gateway", _gateway_arguments, _gateway, "gateway"),
    "profile": Command(
        "measure how long this machine's steps take", _profile_arguments, _profile_run, "engine"
    ),
    "bench": Command(
        "load an OpenAI endpoint and judge its promises", _bench_arguments, _bench, "bench"
    ),
    "simulate": Command(
        "run a trace through a service on a virtual clock", _simulate_arguments, _simulate, "bench"
    ),
    "rules": Command("write a service's Prometheus rules", _rules_arguments, _rules, "gateway"),
}


def _listen(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--listen",
        default=default,
        metavar="HOST:PORT",
        help="where to listen (default %(default)s; port 0: any free)",
    )


def _policy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--policy",
        default="sloserve",
        type=_known_policy,
        metavar="NAME[:KEY=NUMBER,...]",
        help=f"scheduling policy: {', '.join(POLICIES)} (default %(default)s); parameters as in "
        "fcfs:max_batch_tokens=256",
    )


def _known_policy(text: str) -> str:
    """Refused here, before anything starts, when there is no such policy or parameter."""
    from sloserve.planner.policies import make_policy

    try:
        make_policy(text)
    except BadInput as error:
        raise argparse.ArgumentTypeError(error.message) from None
    return text


def _tracing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tracing",
        action=argparse.BooleanOptionalAction,
        help="export OpenTelemetry traces as the OTEL_ variables say (default: when one of them "
        "names an OTLP endpoint)",
    )


def _profile(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--profile", metavar="FILE", help=what)


def _exit_code(error: SloserveError) -> int:
    return EXIT_BAD_INPUT if isinstance(error, BadInput | NotFound) else EXIT_FAILED


def _failed(message: str, code: int) -> int:
    print(f"sloserve: {' '.join(message.split())}", file=sys.stderr)
    return code


def _version() -> str:
    try:
        return importlib.metadata.version("sloserve")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
