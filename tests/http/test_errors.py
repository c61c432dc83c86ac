"""Errors on the wire."""

import json
import math

import pytest

from sloserve.errors import BadInput, Declined, Failed, NotFound, Reason, Unavailable
from sloserve.http.errors import TooLarge, refusal, retry_after


@pytest.mark.parametrize(
    ("error", "status", "type_", "code", "param"),
    [
        (BadInput("no", field="n"), 400, "invalid_request_error", None, "n"),
        (NotFound("no"), 404, "invalid_request_error", "model_not_found", "model"),
        (TooLarge("no"), 413, "invalid_request_error", "request_too_large", None),
        (Declined(Reason.TTFT, "no", retry_after_s=2.2), 429, "slo_declined", "TTFT", None),
        (Unavailable(Reason.LOADING, "no"), 503, "unavailable", "Loading", None),
        (Failed("no"), 500, "server_error", None, None),
        (RuntimeError("secret"), 500, "server_error", None, None),
    ],
)
def test_every_error_has_openai_s_shape(
    error: Exception, status: int, type_: str, code: str | None, param: str | None
) -> None:
    refused = refusal(error)
    body = json.loads(refused.body)["error"]
    assert refused.status == status
    assert (body["type"], body["code"], body["param"]) == (type_, code, param)
    assert "secret" not in body["message"]


def test_a_decline_says_why_and_when_to_come_back() -> None:
    refused = refusal(Declined(Reason.KV, "no blocks", retry_after_s=2.2))
    assert refused.headers == {
        "x-slo-decision": "declined",
        "x-slo-reason": "KV",
        "retry-after": "3",
        "retry-after-ms": "2200",
    }


@pytest.mark.parametrize(
    ("wait_s", "told"), [(0.0, "1"), (-1.0, "1"), (1.01, "2"), (math.inf, "86400")]
)
def test_retry_after_is_a_whole_number_of_seconds(wait_s: float, told: str) -> None:
    assert retry_after(wait_s)["retry-after"] == told
