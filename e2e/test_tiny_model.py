"""The model that ships with the project, computed by PyTorch in a pod."""

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime

import httpx
from e2e.harness.service import Service
from e2e.harness.startup import RESOLUTION_S, startup_of

EASY = {"name": "chat", "ttft": {"target": "30s"}, "tpot": "5s", "objectivePercent": 90}
"""A promise that a share of a core keeps."""
ENGINE = {
    "device": "cpu",
    "threads": 1,
    "resources": {"requests": {"cpu": "250m", "memory": "768Mi"}, "limits": {"memory": "2Gi"}},
}


def test_the_small_model_answers_and_the_way_there_is_accounted_for(
    service: Service, note: Callable[[str], None]
) -> None:
    began_s = time.monotonic()
    service.apply(model={"source": "builtin://tiny"}, engine=ENGINE, sloClasses=[EASY])
    service.wait_ready(timeout_s=600)
    answer = say(service, "Tell me a story about a small robot.")
    took_s, answered = time.monotonic() - began_s, datetime.now(UTC)

    words = re.findall(r"[A-Za-z]{2,}", answer)
    assert len(words) >= 5, f"these are no words: {answer!r}"
    way = startup_of(service, answered=answered)
    assert abs(way.total_s - took_s) <= 2 * RESOLUTION_S, "the parts are not the whole"
    note(way.table("From `kubectl apply` to the first answer of `builtin://tiny`:"))


def say(service: Service, text: str) -> str:
    """The model's answer to one message."""
    body = {
        "model": service.name,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 32,
        "temperature": 0,
    }
    answer = httpx.post(f"{service.base_url}/chat/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])
