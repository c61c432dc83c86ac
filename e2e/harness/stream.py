"""One long completion in the background, and how it ended."""

import json
import threading
import time
from typing import Any

import httpx
from e2e.harness.waiting import until


class Stream:
    """
    A completion of `max_tokens` tokens that is under way when the constructor returns.

    `base_url` without /v1. `wait()` for its end; then `finish_reason`, `error` (an error object
    that the server sent) and `failure` (how the connection broke) say how it went. `streamed`
    False: one answer at the end.
    """

    def __init__(
        self, base_url: str, model: str, *, max_tokens: int, streamed: bool = True
    ) -> None:
        self.num_tokens = 0
        self.replica = ""
        """Who answers, once it has begun."""
        self.finish_reason: str | None = None
        self.error: dict[str, Any] | None = None
        self.failure = ""
        self.ended_s: float | None = None
        """time.monotonic() at its end."""
        self._url = f"{base_url.rstrip('/').removesuffix('/v1')}/v1/completions"
        self._body = {
            "model": model,
            "prompt": list(range(100, 116)),
            "max_tokens": max_tokens,
            "ignore_eos": True,
            "stream": streamed,
        }
        self._streamed = streamed
        self._thread = threading.Thread(target=self._run, name="stream", daemon=True)
        self._thread.start()
        if streamed:
            until(
                lambda: self.num_tokens or self.ended_s,
                "the first token",
                timeout_s=30,
                pause_s=0.05,
            )

    def wait(self, *, timeout_s: float = 120) -> "Stream":
        """Wait until it ended."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), f"it still runs after {timeout_s:g} s: {self}"
        return self

    def __str__(self) -> str:
        """For messages of failed stories."""
        return (
            f"{self.num_tokens} tokens, finish_reason {self.finish_reason}, error {self.error}, "
            f"failure {self.failure or None}"
        )

    def _run(self) -> None:
        try:
            with httpx.stream("POST", self._url, json=self._body, timeout=180) as answer:
                self.replica = answer.headers.get("x-slo-replica", "")
                if answer.status_code == 200 and self._streamed:
                    for line in answer.iter_lines():
                        if line.startswith("data: {"):
                            self._event(json.loads(line[6:]))
                else:
                    answer.read()
                    self._event(answer.json())
                    usage = answer.json().get("usage") or {}
                    self.num_tokens = usage.get("completion_tokens", 0)
        except (httpx.HTTPError, ValueError) as error:
            self.failure = f"{type(error).__name__}: {error}"
        finally:
            self.ended_s = time.monotonic()

    def _event(self, told: dict[str, Any]) -> None:
        self.error = told.get("error") or self.error
        for choice in told.get("choices") or ():
            self.num_tokens += bool(choice.get("text"))
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
