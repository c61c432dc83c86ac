"""The gateway's applications: one for users, one for the cluster's own eyes."""

import time

from fastapi import FastAPI, Request, Response
from starlette.types import Receive, Scope, Send

from sloserve.gateway.core import Core
from sloserve.gateway.keys import KeyRefused
from sloserve.gateway.models import model_routes
from sloserve.gateway.proxy import PATHS, Proxy, closing
from sloserve.gateway.slo_view import slo_view
from sloserve.http import errors
from sloserve.http.answers import encode
from sloserve.http.errors import JSON
from sloserve.http.exporter import CONTENT_TYPE

INFLIGHT = (
    "sloserve_gateway_inflight",
    "sloserve_gateway_replicas",
    "sloserve_gateway_report_age_seconds",
)


class GatewayApp(FastAPI):
    """FastAPI, with the streaming routes in front of it."""

    def __init__(self, core: Core) -> None:
        super().__init__(title="sloserve gateway", openapi_url=None, docs_url=None, redoc_url=None)
        self.core = core
        self._proxy = Proxy(core)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The two routes that carry the load go straight to the proxy."""
        if scope["type"] == "http" and self.core.draining:
            send = closing(send)
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in PATHS:
            await self._proxy(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def create_app(core: Core) -> FastAPI:
    """What users reach: OpenAI's routes, tokens, `/v1/slo`, health."""
    app = GatewayApp(core)
    errors.install(app)

    @app.exception_handler(KeyRefused)
    async def key_refused(request: Request, error: KeyRefused) -> Response:
        return error.refusal.response()

    model_routes(app, core, created_s=int(time.time()))

    @app.get("/v1/slo")
    async def slo(request: Request) -> Response:
        core.keyring.authenticate(request.headers.get("authorization"))
        return Response(encode(slo_view(core)), media_type=JSON)

    _health(app, core)
    return app


def create_internal_app(core: Core) -> FastAPI:
    """What Prometheus and the operator reach, on a port of its own: no keys asked for."""
    app = FastAPI(title="sloserve gateway", openapi_url=None, docs_url=None, redoc_url=None)
    errors.install(app)
    exporter = core.ledger.exporter
    exporter.refresh_before(
        INFLIGHT,
        lambda: core.ledger.inflight(
            core.replicas.num_inflight,
            core.replicas.states(),
            report_age_s=core.replicas.report_age_s,
        ),
    )

    @app.api_route("/metrics", methods=["GET", "HEAD"])
    async def metrics(request: Request) -> Response:
        text = exporter.render(request.query_params.getlist("name[]"))
        return Response(text, media_type=CONTENT_TYPE)

    @app.get("/report")
    @app.get("/v1/slo")
    async def report() -> Response:
        return Response(encode(slo_view(core)), media_type=JSON)

    _health(app, core)
    return app


def _health(app: FastAPI, core: Core) -> None:
    """About the gateway itself, not its replicas: it is useful without any."""

    @app.get("/health")
    async def health() -> Response:
        return Response(encode({"status": "ok"}), media_type=JSON)

    @app.get("/ready")
    async def ready() -> Response:
        status = "draining" if core.draining else "ready"
        code = 503 if core.draining else 200
        return Response(encode({"status": status}), code, media_type=JSON)
