"""Reading a request's body, bounded."""

from starlette.requests import Request

from sloserve.http.errors import TooLarge

MAX_BODY_BYTES = 32 * 1024 * 1024


async def read_body(request: Request, *, most_bytes: int = MAX_BODY_BYTES) -> bytes:
    """The body. Raises TooLarge before more than `most_bytes` are kept."""
    told = request.headers.get("content-length", "")
    if told.isdigit() and int(told) > most_bytes:
        raise _too_large(most_bytes)
    parts, num_bytes = [], 0
    async for part in request.stream():
        num_bytes += len(part)
        if num_bytes > most_bytes:
            raise _too_large(most_bytes)
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(most_bytes: int) -> TooLarge:
    return TooLarge(f"the body is too large; allowed: at most {most_bytes} bytes")
