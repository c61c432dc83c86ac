"""The routes that watch a replica: health, readiness, metrics, the last steps. They only read."""

from dataclasses import asdict, fields
from operator import attrgetter

from fastapi import FastAPI, Query, Request, Response

from sloserve.engine.step_error import step_error
from sloserve.engine.timeline import StepRecord
from sloserve.frontend.replica import Replica, Served
from sloserve.http.answers import Json, encode
from sloserve.http.errors import JSON
from sloserve.http.exporter import CONTENT_TYPE, Exporter

DEFAULT_STEPS, MAX_STEPS = 256, 1024
"""What `/debug/steps` tells unasked, and at most: the engine remembers no more."""

_FIELDS = tuple(field.name for field in fields(StepRecord))
_values = attrgetter(*_FIELDS)


def watching_routes(app: FastAPI, replica: Replica, exporter: Exporter) -> None:
    """Add `/health`, `/ready`, `/metrics` and `/debug/steps`."""

    @app.get("/health")
    async def health() -> Response:
        """Alive: 503 when the loop stands still with work waiting."""
        served = replica.loaded
        if served is not None and served.engine.stalled():
            return _json(503, {"status": "stalled", "detail": "the engine loop stands still"})
        return _json(200, {"status": "ok"})

    @app.get("/ready")
    async def ready() -> Response:
        """Would answer now: loaded, self-tested, and a first answer came out."""
        told = {"status": replica.state, "replica": replica.name, **asdict(replica.progress)}
        return _json(200 if replica.state == "ready" else 503, told)

    @app.head("/metrics", include_in_schema=False)
    @app.get("/metrics")
    async def metrics(
        request: Request,
        names: list[str] = Query(default=[], alias="name[]"),  # noqa: B008
    ) -> Response:
        """Prometheus text; `?name[]=` picks families and leaves the rest unrendered."""
        body = b"" if request.method == "HEAD" else exporter.render(names)
        return Response(body, media_type=CONTENT_TYPE)

    @app.get("/debug/steps")
    async def steps(
        last: int = Query(default=DEFAULT_STEPS, ge=0, le=MAX_STEPS),
        after: int = Query(default=0, ge=0),
    ) -> Response:
        """The last steps as planned and as measured, those after number `after`; read only."""
        return _json(200, _steps(replica.loaded, last=last, after=after))


def _steps(served: Served | None, *, last: int, after: int) -> Json:
    records = served.engine.steps_since(0) if served is not None else []
    error, told = step_error(records), records[max(0, len(records) - last) :]
    new = [record for record in told if record.number > after]
    return {
        "num_steps": records[-1].number if records else 0,
        "stalled": served is not None and served.engine.stalled(),
        "error": {**asdict(error), "off": error.off},
        "steps": [dict(zip(_FIELDS, _values(r), strict=True)) for r in new],  # asdict: 15x
    }


def _json(status: int, value: object) -> Response:
    return Response(encode(value), status, media_type=JSON)
