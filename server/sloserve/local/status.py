"""`sloserve status`: how a running service fares, once."""

import argparse
import asyncio
import json
import os
import sys
from typing import Any

import aiohttp
from rich.console import Console

from sloserve.local.overview import fetch, parse_overview
from sloserve.local.view import print_overview


def run_status(args: argparse.Namespace) -> int:
    """Print it; 0. Raises Failed when no gateway answers."""
    key = args.api_key or os.environ.get("OPENAI_API_KEY")
    raw = asyncio.run(_fetch(f"{args.url.rstrip('/').removesuffix('/v1')}/v1/slo", key))
    if args.json:
        json.dump(raw, sys.stdout, indent=2)
        print()
    else:
        print_overview(Console(), parse_overview(raw))
    return 0


async def _fetch(url: str, key: str | None) -> Any:
    async with aiohttp.ClientSession() as session:
        return await fetch(session, url, key=key)
