"""
The requests that OpenAI clients send, as pydantic models.

OpenAI's fields and vLLM's extras; unknown fields are tolerated. Every bad value is a BadInput
that names the field, the value and what is allowed.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from sloserve.errors import BadInput
from sloserve.http.shapes import (
    MAX_TOOLS,
    Options,
    ResponseFormat,
    Schema,
    Shape,
    StructuredOutputs,
    Tool,
    ToolChoice,
    check_tools,
    shape_of,
)

MAX_CHOICES = 128
MAX_PROMPTS = 256
MAX_STOPS = 64
MAX_LOGPROBS = 20
MAX_BIASES = 1024


def _strings(value: object) -> object:
    """A string or a list of strings, as a list."""
    texts = [value] if isinstance(value, str) else value
    if texts is None:
        return []
    if not isinstance(texts, list) or not all(isinstance(t, str) and t for t in texts):
        raise PydanticCustomError(
            "shape", "allowed: a string or a list of strings, none of them empty"
        )
    return texts


def _prompts(value: object) -> object:
    """A string, strings, token ids, or lists of token ids; as a list of prompts."""
    if isinstance(value, str) or _token_ids(value):
        return [value]
    if isinstance(value, list) and value:
        if len(value) > MAX_PROMPTS:
            raise PydanticCustomError(
                "shape",
                "{n} prompts, allowed: 1 to {most} in one request",
                {"n": len(value), "most": MAX_PROMPTS},
            )
        if all(isinstance(p, str) for p in value) or all(_token_ids(p) for p in value):
            return value
    raise PydanticCustomError(
        "shape", "allowed: a string, a list of strings, a list of token ids, or a list of those"
    )


def _token_ids(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(t, int) and not isinstance(t, bool) and t >= 0 for t in value)
    )


def _biases(value: object) -> object:
    """Token id to bias; JSON keys are strings."""
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > MAX_BIASES:
        raise PydanticCustomError(
            "shape", "allowed: an object of at most {most} token ids", {"most": MAX_BIASES}
        )
    found: dict[int, float] = {}
    for key, bias in value.items():
        try:
            token_id, amount = int(key), float(bias)
        except (TypeError, ValueError):
            token_id, amount = -1, 0.0
        if token_id < 0 or not -100 <= amount <= 100:
            raise PydanticCustomError(
                "shape",
                "got {entry}, allowed: token ids with a bias from -100 to 100",
                {"entry": f"{key!r}: {bias!r}"[:80]},
            )
        found[token_id] = amount
    return found


Strings = Annotated[list[str], BeforeValidator(_strings), Field(max_length=MAX_STOPS)]
Prompts = Annotated[list[str | list[int]], BeforeValidator(_prompts)]
Biases = Annotated[dict[int, float], BeforeValidator(_biases)]


class Body(BaseModel):
    """What all bodies share: unknown fields tolerated, no NaN or infinity."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    def check(self) -> None:
        """What one field alone can't tell. Raises BadInput."""


class StreamOptions(Body):
    """`include_usage`: a last chunk with usage; `continuous_usage_stats`: usage in every chunk."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class SamplingBody(Body):
    """How the tokens are chosen; None leaves it to the model's own defaults."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=0)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    logit_bias: Biases = Field(default_factory=dict)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: Strings = Field(default_factory=list)
    stop_token_ids: list[Annotated[int, Field(ge=0)]] | None = Field(None, max_length=MAX_STOPS)
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = Field(None, ge=0)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema = None
    guided_regex: str | None = Field(None, min_length=1)
    guided_choice: Options = None
    guided_grammar: str | None = Field(None, min_length=1)
    user: str | None = None
    cache_salt: str | None = Field(None, min_length=1, max_length=256)
    """Prompts share KV blocks only with prompts of the same salt (vLLM's field)."""

    @property
    def num_choices(self) -> int:
        """Answers wanted per prompt."""
        return self.n or 1

    def check(self) -> None:
        if self.stream_options is not None and not self.stream:
            raise BadInput("only allowed when stream is true", field="stream_options")
        self.shape()

    def shape(self) -> Shape | None:
        """The shape that the answer must have; None: any. Raises BadInput."""
        guided = {
            "json": self.guided_json,
            "regex": self.guided_regex,
            "choice": self.guided_choice,
            "grammar": self.guided_grammar,
        }
        return shape_of(self.response_format, self.structured_outputs, guided)


class ContentPart(BaseModel):
    """One part of a message; only text is served."""

    model_config = ConfigDict(extra="allow")
    type: str
    text: str | None = None


class Message(BaseModel):
    """One turn; fields beside role and content go to the chat template as they are."""

    model_config = ConfigDict(extra="allow")
    role: str = Field(min_length=1, max_length=64)
    content: str | list[ContentPart] | None = None

    def for_template(self, where: str) -> dict[str, Any]:
        """The turn with its text parts joined. Raises BadInput for other kinds of parts."""
        turn = self.model_dump(exclude_none=True)
        if "tool_calls" in turn:
            turn["tool_calls"] = _calls(turn["tool_calls"], f"{where}.tool_calls")
        if isinstance(self.content, list):
            for part in self.content:
                if part.type != "text" or part.text is None:
                    raise BadInput(
                        f"got a part of type {part.type[:40]!r}, allowed: 'text' with a text",
                        field=f"{where}.content",
                    )
            turn["content"] = "\n".join(part.text or "" for part in self.content)
        return {"content": "", **turn}


def _calls(given: object, where: str) -> list[dict[str, Any]]:
    """
    The calls of an earlier turn as templates read them: the arguments as an object, not as its
    text. Raises BadInput.
    """
    if not isinstance(given, list):
        raise BadInput(f"got {_short(given)}, allowed: a list of calls", field=where)
    calls = []
    for i, call in enumerate(given):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadInput("allowed: a call with function.name", field=f"{where}[{i}]")
        field = f"{where}[{i}].function.arguments"
        arguments = function.get("arguments") or {}
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError):
                raise BadInput(f"got {_short(arguments)}, allowed: JSON", field=field) from None
        if not isinstance(arguments, dict):
            raise BadInput(f"got {_short(arguments)}, allowed: an object", field=field)
        calls.append({**call, "function": {**function, "arguments": arguments}})
    return calls


def turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """A conversation for the chat template. Raises BadInput for parts other than text."""
    return [message.for_template(f"messages[{i}]") for i, message in enumerate(messages)]


class ChatBody(SamplingBody):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: ToolChoice = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def max_output(self) -> int | None:
        """Output tokens wanted at most; None: the rest of the context."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def check(self) -> None:
        super().check()
        if self.top_logprobs and not self.logprobs:
            raise BadInput("only allowed when logprobs is true", field="top_logprobs")
        check_tools(self.tools, self.tool_choice)


class CompletionBody(SamplingBody):
    """`POST /v1/completions`."""

    prompt: Prompts
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    best_of: int | None = Field(None, ge=1, le=MAX_CHOICES)
    suffix: str | None = None

    @property
    def max_output(self) -> int:
        """Output tokens wanted at most."""
        return 16 if self.max_tokens is None else self.max_tokens

    def check(self) -> None:
        super().check()
        if self.best_of is not None and self.best_of != self.num_choices:
            raise BadInput(
                f"got {self.best_of}, allowed: the same as n ({self.num_choices})", field="best_of"
            )
        if self.suffix:
            raise BadInput("not served; allowed: empty", field="suffix")
        if self.max_output == 0 and not self.echo:
            raise BadInput("got 0, allowed: 1 or more (0 only with echo)", field="max_tokens")
        if len(self.prompt) * self.num_choices > MAX_PROMPTS:
            raise BadInput(
                f"{len(self.prompt)} prompts x n = {self.num_choices}, allowed: at most"
                f" {MAX_PROMPTS} answers in one request",
                field="n",
            )


class TokenizeBody(Body):
    """`POST /tokenize`: a prompt or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1)
    add_special_tokens: bool | None = None

    def check(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise BadInput("exactly one of prompt and messages must be given", field="prompt")


class DetokenizeBody(Body):
    """`POST /detokenize`."""

    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0)]]


AnyBody = TypeVar("AnyBody", bound=Body)


def parse(kind: type[AnyBody], raw: bytes) -> AnyBody:
    """The body in `raw`. Raises BadInput: field, value, what is allowed."""
    try:
        body = kind.model_validate_json(raw)
    except ValidationError as error:
        raise explain(error, kind) from None
    body.check()
    return body


def explain(error: ValidationError, kind: type[BaseModel]) -> BadInput:
    """A validation error in the caller's words."""
    first = error.errors(include_url=False, include_context=True)[0]
    where = _path(first["loc"])
    if first["type"] == "json_invalid":
        return BadInput(
            f"the body is not valid JSON: {first['msg'].removeprefix('Invalid JSON: ')}"
        )
    if first["type"] == "missing":
        return BadInput("is missing", field=where)
    if first["type"] == "shape":
        return BadInput(first["msg"], field=where)
    allowed = _allowed(kind, first)
    return BadInput(f"got {_short(first['input'])}, allowed: {allowed}", field=where or None)


def _path(loc: Sequence[int | str]) -> str:
    """`messages[0].content`; the names of union members are left out."""
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        elif not part.startswith(("list[", "dict[")) and part not in ("str", "int"):
            text += f".{part}" if text else part
    return text


def _allowed(kind: type[BaseModel], error: ErrorDetails) -> str:
    """The range of a number with both its ends, or what pydantic says of other things."""
    info = kind.model_fields.get(str(error["loc"][0])) if len(error["loc"]) == 1 else None
    bounds: Mapping[str, Any] = {
        name: getattr(m, name)
        for m in (info.metadata if info else ())
        for name in ("ge", "gt", "le", "lt")
        if hasattr(m, name)
    }
    if not bounds:
        return error["msg"].removeprefix("Input should be ")
    low = f"from {bounds['ge']}" if "ge" in bounds else f"above {bounds.get('gt')}"
    high = f" to {bounds['le']}" if "le" in bounds else " up"
    whole = "a whole number " if info and "int" in str(info.annotation) else "a number "
    return f"{whole}{low}{high}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
