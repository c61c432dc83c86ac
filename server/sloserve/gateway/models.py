"""
The routes about the model itself: its names, and text to tokens and back.

No promise goes with tokens, so nothing is routed: the ready replica with the fewest requests is
asked, and the next one when it is gone or does not know the model's name. Keys and their limits
hold here as well.
"""

import aiohttp
from fastapi import FastAPI, Request, Response
from yarl import URL

from sloserve import __version__
from sloserve.errors import Reason, Unavailable
from sloserve.gateway.core import Core
from sloserve.gateway.keys import Key
from sloserve.gateway.peek import peek
from sloserve.gateway.replicas import Upstream
from sloserve.http.answers import Json, encode, model_card, model_list
from sloserve.http.errors import JSON
from sloserve.http.reading import read_body
from sloserve.routing import FRESH_S

TIMEOUT = aiohttp.ClientTimeout(total=30.0)
RETRY_AFTER_S = 5.0


def model_routes(app: FastAPI, core: Core, *, created_s: int) -> None:
    """Add `/v1/models`, `/tokenize`, `/detokenize`, `/tokenizer_info` and `/version`."""

    def card(name: str) -> Json:
        model = core.spec.model
        return model_card(model, name, max_model_len=model.max_model_len, created_s=created_s)

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        key = _key(core, request)
        allowed = [
            name for name in core.spec.model.names if key.models is None or name in key.models
        ]
        return _json(model_list([card(name) for name in allowed]))

    @app.get("/v1/models/{name:path}")
    async def model(request: Request, name: str) -> Response:
        _key(core, request).check_model(name)
        core.check_model(name)
        return _json(card(name))

    @app.post("/tokenize")
    @app.post("/detokenize")
    @app.get("/tokenizer_info")
    async def tokens(request: Request) -> Response:
        return await _pass_on(core, request)

    @app.get("/version")
    async def version() -> Response:
        return _json({"version": __version__})


async def _pass_on(core: Core, request: Request) -> Response:
    """What a replica answers. Raises SloserveError: bad input, a wrong name, nobody ready."""
    key = _key(core, request)
    core.keyring.begin(key, core.clock())
    try:
        body = await read_body(request, most_bytes=core.settings.max_body_bytes)
        named = peek(body).model if body else None
        name = core.spec.model.served_name if named is None else named
        key.check_model(name)
        core.check_model(name)
        return await _ask(core, request, body, model=named)
    finally:
        core.keyring.end(key)


async def _ask(core: Core, request: Request, body: bytes, *, model: str | None) -> Response:
    unknown: Response | None = None
    for upstream in _ready(core, model):
        url = URL(f"http://{upstream.address}{request.url.path}", encoded=True)
        try:
            async with core.session.request(
                request.method,
                url,
                data=body or None,
                headers={"content-type": JSON},
                timeout=TIMEOUT,
                allow_redirects=False,
            ) as response:
                told = await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError):
            continue  # its next report, or none, tells the rest
        if response.status == 503:
            continue
        answer = Response(told, response.status, media_type=JSON)
        if response.status != 404:
            return answer
        unknown = answer
    if unknown is not None:
        return unknown
    raise Unavailable(
        Reason.REPLICAS, "no replica is ready to answer this", retry_after_s=RETRY_AFTER_S
    )


def _ready(core: Core, model: str | None) -> list[Upstream]:
    """Who may be asked, the least busy first."""
    since_s = core.clock() - FRESH_S
    able = [
        upstream
        for upstream in core.replicas.known.values()
        if upstream.report is not None
        and upstream.report.state == "ready"
        and model not in upstream.refused_models
    ]
    return sorted(able, key=lambda u: (u.report_s < since_s, len(u.attempts), u.address))


def _key(core: Core, request: Request) -> Key:
    """The caller's key. Raises KeyRefused."""
    return core.keyring.authenticate(request.headers.get("authorization"))


def _json(value: object) -> Response:
    return Response(encode(value), media_type=JSON)
