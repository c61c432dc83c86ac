"""Classes that come from the command line or from the endpoint itself."""

from collections.abc import Mapping
from typing import Any

import aiohttp

from sloserve.errors import BadInput
from sloserve.load.endpoint import Endpoint
from sloserve.slo import SloClass, Stage, Ttft
from sloserve.slo.duration import parse_duration
from sloserve.slo.manifest import API_VERSION, KIND, parse_service


def parse_class(text: str) -> SloClass:
    """The class in `chat:ttft=1s,tpot=50ms`; raises BadInput."""
    name, colon, rest = text.partition(":")
    values = dict(part.partition("=")[::2] for part in rest.split(","))
    if not colon or not name or set(values) != {"ttft", "tpot"}:
        raise BadInput(f"{text!r} is not like chat:ttft=1s,tpot=50ms", field="--class")
    return SloClass(
        name=name,
        ttft=Ttft(target_s=parse_duration(values["ttft"], field="--class ttft")),
        stages=(Stage("decode", parse_duration(values["tpot"], field="--class tpot")),),
    )


async def classes_from_service(
    session: aiohttp.ClientSession, endpoint: Endpoint
) -> tuple[dict[str, SloClass], str]:
    """The classes and the default class that the endpoint's `/v1/slo` lists; raises BadInput."""
    url = f"{endpoint.base_url}/slo"
    hint = "give the classes: -f MANIFEST, or --class chat:ttft=1s,tpot=50ms"
    try:
        async with session.get(url, headers=endpoint.headers) as response:
            if response.status != 200:
                raise BadInput(f"{url} answers {response.status}; {hint}", field="--url")
            listed: Mapping[str, Any] = await response.json()
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise BadInput(f"can't read {url}: {error!r}; {hint}", field="--url") from error
    try:
        manifest = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": listed["service"]},
            "spec": {
                "model": {"source": "builtin://tiny"},  # not looked at
                "sloClasses": listed["sloClasses"],
                "defaultClass": listed["defaultClass"],
            },
        }
    except (KeyError, TypeError) as error:
        raise BadInput(f"{url} lists no classes that this understands; {hint}") from error
    spec = parse_service(manifest)
    return {c.name: c for c in spec.classes}, spec.default_class
