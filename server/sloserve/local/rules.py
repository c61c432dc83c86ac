"""`sloserve rules`: the Prometheus rules of a manifest, as a plain rules file."""

import argparse
import sys
from pathlib import Path

import yaml

from sloserve.errors import BadInput, Failed
from sloserve.http.config import load_manifest
from sloserve.rules import RuleSettings, rules_file, service_groups
from sloserve.rules.rule import Json
from sloserve.rules.settings import RUNBOOK_URL

HEADER = "# Written by `sloserve rules`: change what it was made from, not this file.\n"


def add_rules_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument("-f", "--file", type=Path, required=True, help="SLOService manifest")
    parser.add_argument("-o", "--output", type=Path, help="file to write (default: stdout)")
    parser.add_argument(
        "--namespace",
        default="",
        help="read series with this label `namespace` only, as they have it in Kubernetes",
    )
    parser.add_argument(
        "--no-slow-burn",
        action="store_true",
        help="no alerts that need a day of data: for a demo, or a young cluster",
    )
    parser.add_argument(
        "--runbook-url",
        default=RUNBOOK_URL,
        metavar="URL",
        help="where your copy of the runbook is, for the links of alerts (default %(default)s, its "
        "place in the source tree)",
    )
    parser.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a label for every alert, as your Alertmanager's routes want it; may be repeated",
    )


def run_rules(args: argparse.Namespace) -> int:
    """Write the rules; the exit code. Raises BadInput, and Failed when it can't write."""
    settings = RuleSettings(
        namespace=args.namespace,
        runbook_url=args.runbook_url,
        slow_rungs=not args.no_slow_burn,
        labels=dict(_label(text) for text in args.label),
    )
    text = to_yaml(rules_file(service_groups(load_manifest(args.file), settings)))
    if args.output is None:
        sys.stdout.write(text)
        return 0
    try:
        args.output.write_text(text)
    except OSError as error:
        raise Failed(f"can't write {args.output}: {error.strerror or error}") from None
    return 0


def to_yaml(content: Json) -> str:
    """A rules file as people read it: expressions of several lines stay so."""
    return HEADER + yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=100)


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier() or not name.isascii():
        raise BadInput(f"{text!r} is not a label; write NAME=VALUE, as team=serving",
                       field="--label")  # fmt: skip
    return name, value


class _Dumper(yaml.SafeDumper):
    """YAML without anchors, with literal blocks."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
