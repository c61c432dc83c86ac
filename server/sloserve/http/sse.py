"""Server-sent events as OpenAI sends them, and the annotations that gateways count."""

from sloserve.wire import annotation

CONTENT_TYPE = "text/event-stream; charset=utf-8"
DONE = b"data: [DONE]\n\n"
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def event(data: bytes) -> bytes:
    """One event; `data` is JSON on one line."""
    return b"data: " + data + b"\n\n"


def annotated(data: bytes, *, num_tokens: int, stage: int) -> bytes:
    """One event preceded by the comment `: n=<tokens> stage=<i>`."""
    return annotation(num_tokens=num_tokens, stage=stage).encode() + event(data)
