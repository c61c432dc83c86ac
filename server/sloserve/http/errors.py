"""
Refusals on the wire: OpenAI's error shape, a status, and headers that say why and when.

| raised | status | `type` | `code` |
| --- | --- | --- | --- |
| BadInput | 400 | invalid_request_error | |
| NotFound | 404 | invalid_request_error | model_not_found |
| Declined | 429 | slo_declined | the reason |
| Unavailable | 503 | unavailable | the reason |
| anything else | 500 | server_error | |
"""

import json
import logging
import math
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from sloserve.errors import BadInput, Declined, NotFound, SloserveError, Unavailable
from sloserve.slo import Decision
from sloserve.wire import SLO_DECISION, SLO_REASON

log = logging.getLogger(__name__)

JSON = "application/json"
STATUS_WORDS = {
    401: "unauthorized",
    404: "not_found",
    405: "method_not_allowed",
    413: "request_too_large",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error as it goes out: HTTP status, the `error` object, headers."""

    status: int
    error: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        """The JSON body."""
        return json.dumps({"error": self.error}).encode()

    def response(self) -> Response:
        """As a response."""
        return Response(self.body, self.status, self.headers, media_type=JSON)


class TooLarge(SloserveError):
    """The body is longer than this server reads: HTTP 413."""


def refusal(error: Exception) -> Refusal:
    """The HTTP side of an error. What is not ours is logged and told as a plain 500."""
    match error:
        case BadInput():
            return Refusal(400, _error(error.message, "invalid_request_error", param=error.field))
        case NotFound():
            body = _error(
                error.message, "invalid_request_error", param="model", code="model_not_found"
            )
            return Refusal(404, body)
        case TooLarge():
            body = _error(error.message, "invalid_request_error", code=STATUS_WORDS[413])
            return Refusal(413, body, {"connection": "close"})
        case Declined():
            headers = {
                SLO_DECISION: Decision.DECLINED.value,
                SLO_REASON: error.reason.value,
                **retry_after(error.retry_after_s),
            }
            body = _error(error.message, "slo_declined", code=error.reason.value)
            return Refusal(429, body, headers)
        case Unavailable():
            headers = {SLO_REASON: error.reason.value, **retry_after(error.retry_after_s)}
            return Refusal(
                503, _error(error.message, "unavailable", code=error.reason.value), headers
            )
        case SloserveError():
            return Refusal(500, _error(error.message, "server_error"))
        case _:
            log.error("internal error", exc_info=error)
            return Refusal(
                500, _error("internal error; the server's log says more", "server_error")
            )


def retry_after(retry_after_s: float) -> dict[str, str]:
    """`Retry-After` in whole seconds (at least 1), and exactly in milliseconds for OpenAI's SDK."""
    wait_s = min(max(retry_after_s, 0.0), 86_400.0) if math.isfinite(retry_after_s) else 86_400.0
    return {
        "retry-after": str(max(1, math.ceil(wait_s))),
        "retry-after-ms": str(max(1, math.ceil(wait_s * 1e3))),
    }


def _error(
    message: str, type_: str, *, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    return {"message": message, "type": type_, "param": param, "code": code or None}


def install(app: FastAPI) -> None:
    """Make every error of `app` an OpenAI-shaped one: ours, wrong paths, wrong methods, bugs."""

    async def raised(request: Request, error: Exception) -> Response:
        return refusal(error).response()

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        text = f"{request.method} {request.url.path}: {error.detail}"
        body = _error(text, "invalid_request_error", code=STATUS_WORDS.get(error.status_code))
        return Refusal(error.status_code, body, dict(error.headers or {})).response()

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return refusal(BadInput(first["msg"], field=where or None)).response()

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=400)  # it hung up in the middle of its body: nobody reads this

    app.add_exception_handler(SloserveError, raised)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, raised)
