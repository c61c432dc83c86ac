"""
The `sloserve` command with FIXED drafts for every decode, whoever needs them.

    python -m bench.replay_speculation_fixed replica --config ...    (as ..._real.py starts it)

A setting for comparisons, so the product has none: what gives decodes their drafts is replaced
before the command runs.
"""

import sys

from sloserve import cli
from sloserve.engine.ngram import NgramDrafter
from sloserve.frontend import loading
from sloserve.scheduler import Speculating
from sloserve.slo.service import ServiceSpec

FIXED = 4


def make_speculating(spec: ServiceSpec) -> Speculating:
    """In the place of `loading.make_speculating`, whatever the service asks for."""
    return Speculating(NgramDrafter(), fixed=FIXED)


def main() -> int:
    """Run the command line; the exit code."""
    loading.make_speculating = make_speculating
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
