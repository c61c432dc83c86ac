"""
Everything that is raised on purpose.

    SloserveError
    ├── BadInput        the caller's mistake: HTTP 400, exit code 2
    ├── NotFound        an unknown model: HTTP 404, exit code 2
    ├── Declined        a promise that can't be kept: HTTP 429 with Retry-After
    ├── Unavailable     nobody can serve now: HTTP 503 with Retry-After
    └── Failed          the machinery broke: HTTP 500, exit code 1

A message holds what was seen, what is allowed and what to do.
"""

from enum import StrEnum


class Reason(StrEnum):
    """
    Why a request did not get its promise.

    One list for the HTTP body, the `x-slo-reason` header, the metric label and the condition.
    """

    NONE = ""
    TTFT = "TTFT"  # the first token can't be there in time
    TPOT = "TPOT"  # the token rate can't be kept beside those already promised
    KV = "KV"  # KV blocks would run out
    REPLICAS = "Replicas"  # no replica is ready
    DRAINING = "Draining"  # this process is going away
    LOADING = "Loading"  # the model is not there yet
    QUEUE_FULL = "QueueFull"  # too many requests are waiting
    RATE_LIMIT = "RateLimit"  # the key's own limit
    SLOW_READER = "SlowReader"  # the client does not read its stream
    REPLICA_LOST = "ReplicaLost"  # the replica died in the middle of an answer
    CLIENT_GONE = "ClientGone"  # the client hung up


class SloserveError(Exception):
    """Raised on purpose, with a message a person can act on."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class BadInput(SloserveError):
    """
    The caller's mistake.

    `field` names where, in the caller's own words (`spec.sloClasses[0].tpot`, `max_tokens`).
    """

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field


class NotFound(SloserveError):
    """The thing asked for does not exist here."""


class Declined(SloserveError):
    """A promise that can't be kept; `retry_after_s` (seconds) says when it could."""

    def __init__(self, reason: Reason, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after_s = retry_after_s


class Unavailable(SloserveError):
    """Nobody can serve now; `retry_after_s` (seconds) is a guess at when."""

    def __init__(self, reason: Reason, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after_s = retry_after_s


class Failed(SloserveError):
    """The machinery broke."""
