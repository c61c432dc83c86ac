"""What a gateway must know of a body that it passes on unchanged."""

import json
from dataclasses import dataclass
from typing import Any

from sloserve.errors import BadInput


@dataclass(frozen=True, slots=True)
class Peek:
    """
    A few facts of a request body; the replica validates the rest.

    `text` is the prompt as far as it is text; `num_ids` counts prompt tokens given as ids.
    """

    model: str | None
    stream: bool
    num_choices: int  # answers in all: prompts times n
    text: str
    num_ids: int


def peek(raw: bytes) -> Peek:
    """Parse a body once. Raises BadInput when it is not a JSON object, or lies about `model`."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"the body is not valid JSON: {error}") from None
    if not isinstance(body, dict):
        raise BadInput(f"the body is {_kind(body)}, allowed: a JSON object")
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise BadInput(f"got {_kind(model)}, allowed: a string", field="model")
    texts = _tools(body)
    num_prompts, num_ids = 1, 0
    if "messages" in body:
        _messages(body["messages"], texts)
    else:
        num_prompts, num_ids = _prompts(body.get("prompt"), texts)
    n = body.get("n")
    num_per_prompt = n if isinstance(n, int) and 1 <= n <= 1024 else 1
    return Peek(
        model=model,
        stream=body.get("stream") is True,
        num_choices=num_prompts * num_per_prompt,
        text="".join(texts) if len(texts) != 1 else texts[0],
        num_ids=num_ids,
    )


def _tools(body: dict[str, Any]) -> list[str]:
    """What a chat template writes before the conversation: the tools, about as they are."""
    tools = body.get("tools")
    if not isinstance(tools, list) or not tools or body.get("tool_choice") == "none":
        return []
    return [json.dumps(tools)]


def _messages(messages: Any, texts: list[str]) -> None:
    if not isinstance(messages, list):
        return
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str):
            texts.append(content)
        elif isinstance(content, list):
            for part in content:
                if isinstance(part, dict) and isinstance(part.get("text"), str):
                    texts.append(part["text"])


def _prompts(prompt: Any, texts: list[str]) -> tuple[int, int]:
    """(number of prompts, token ids in them); strings go to `texts`."""
    if isinstance(prompt, str):
        texts.append(prompt)
        return 1, 0
    if not isinstance(prompt, list) or not prompt:
        return 1, 0
    if isinstance(prompt[0], int):
        return 1, len(prompt)
    texts.extend(p for p in prompt if isinstance(p, str))
    return len(prompt), sum(len(p) for p in prompt if isinstance(p, list))


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}
    return names.get(type(value), "null" if value is None else "a number")
