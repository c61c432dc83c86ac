"""From a body to sequences that the engine can run: prompts as tokens, sampling as parameters."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from sloserve.engine.sampling import SamplingParams
from sloserve.engine.tokenizer import Tokenizer
from sloserve.errors import BadInput
from sloserve.frontend.replica import Served
from sloserve.frontend.speech import Manner
from sloserve.grammar.matcher import Grammar
from sloserve.http.bodies import ChatBody, CompletionBody, SamplingBody

T = TypeVar("T")

LONG_TEXT = 8_000
"""Characters from which tokenising leaves the event loop."""
LEAST_TOP_P = 1e-6
"""OpenAI allows top_p 0: the likeliest token only."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request asks of its answers beside sampling."""

    manner: Manner = Manner()  # noqa: RUF009 (frozen)
    grammar: Grammar | None = None
    grammar_after: str | None = None  # the marker up to which the grammar does not bind
    show_special: bool = False  # markers that are special tokens must be seen


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt; `text` is what `echo` repeats."""

    tokens: list[int]
    text: str


def template_options(body: ChatBody) -> dict[str, Any]:
    """What the chat template is given beside the conversation. Raises BadInput."""
    options = dict(body.chat_template_kwargs or {})
    if body.tools and body.tool_choice != "none":
        if "tools" in options:
            raise BadInput("'tools' are a field of their own", field="chat_template_kwargs")
        options["tools"] = [tool.for_template() for tool in body.tools]
    return options


async def chat_prompt(
    turns: Sequence[Mapping[str, Any]], options: Mapping[str, Any], tokenizer: Tokenizer
) -> Prompt:
    """A conversation as the model's template writes it. Raises BadInput when it refuses."""
    long = sum(len(str(turn.get("content", ""))) for turn in turns) > LONG_TEXT

    def write() -> list[int]:
        try:
            return tokenizer.chat(turns, **options)
        except BadInput:
            raise
        except Exception as error:  # a template is a program run on what the client sent
            raise BadInput(f"the chat template refused them: {error}", field="messages") from error

    return Prompt(await asyncio.to_thread(write) if long else write(), "")


async def completion_prompts(body: CompletionBody, served: Served) -> list[Prompt]:
    """Every prompt of the body, in its order."""
    tokenizer, echo = served.tokenizer, bool(body.echo)
    prompts = []
    for i, given in enumerate(body.prompt):
        if isinstance(given, str):
            tokens = await encode(tokenizer, given)
            prompts.append(Prompt(tokens, given))
            continue
        check_tokens(given, vocab_size=served.facts.vocab_size, field=f"prompt[{i}]")
        text = tokenizer.decode(given, skip_special=False) if echo else ""
        prompts.append(Prompt(given, text))
    return prompts


async def encode(tokenizer: Tokenizer, text: str, *, add_special: bool = True) -> list[int]:
    """Tokens of `text`; a long one is done in a thread."""
    if len(text) > LONG_TEXT:
        return await asyncio.to_thread(tokenizer.encode, text, add_special=add_special)
    return tokenizer.encode(text, add_special=add_special)


def check_tokens(tokens: Sequence[int], *, vocab_size: int, field: str) -> None:
    """Refuse token ids that the model does not have."""
    worst = max(tokens, default=0)
    if worst >= vocab_size:
        raise BadInput(f"got token id {worst}, allowed: 0 to {vocab_size - 1}", field=field)


def sampling_of(
    body: ChatBody | CompletionBody, prompt: Prompt, served: Served, *, choice: int, wish: Wish
) -> SamplingParams:
    """
    The parameters of answer number `choice` to `prompt`. Raises BadInput.

    Answers to the same prompt get seeds that follow each other, or all would be the same.
    """
    d = served.defaults
    max_tokens = _max_tokens(body, prompt, served)
    if (body.min_tokens or 0) > max_tokens:
        raise BadInput(f"got {body.min_tokens}, allowed: 0 to {max_tokens}", field="min_tokens")
    _check_ids(body, served)
    logprobs, prompt_logprobs = _logprobs(body)
    return replace(
        d,
        temperature=_or(body.temperature, d.temperature),
        top_p=max(LEAST_TOP_P, _or(body.top_p, d.top_p)),
        top_k=max(0, _or(body.top_k, d.top_k)),
        min_p=_or(body.min_p, d.min_p),
        repetition_penalty=_or(body.repetition_penalty, d.repetition_penalty),
        presence_penalty=_or(body.presence_penalty, d.presence_penalty),
        frequency_penalty=_or(body.frequency_penalty, d.frequency_penalty),
        logit_bias=body.logit_bias,
        seed=_seed(body.seed, choice),
        stop=(*d.stop, *body.stop),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=bool(body.ignore_eos),
        min_tokens=body.min_tokens or 0,
        max_tokens=max_tokens,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        include_stop=bool(body.include_stop_str_in_output),
        skip_special_tokens=body.skip_special_tokens is not False and not wish.show_special,
        grammar=wish.grammar,
        grammar_after=wish.grammar_after,
    )


def _or(given: T | None, default: T) -> T:
    return default if given is None else given


def _seed(seed: int | None, choice: int) -> int | None:
    return None if seed is None else (seed + choice + 2**63) % 2**64 - 2**63


def _max_tokens(body: ChatBody | CompletionBody, prompt: Prompt, served: Served) -> int:
    limit, num_prompt = served.max_model_len, len(prompt.tokens)
    field = "prompt" if isinstance(body, CompletionBody) else "messages"
    if num_prompt == 0:
        raise BadInput("got no tokens, allowed: 1 or more", field=field)
    if num_prompt >= limit:
        raise BadInput(
            f"got {num_prompt} tokens, allowed: at most {limit - 1}"
            f" ({limit} tokens in all, and 1 of them for the answer)",
            field=field,
        )
    room = limit - num_prompt
    if isinstance(body, ChatBody):
        asked, name = body.max_output, "max_tokens"
        if body.max_completion_tokens is not None:
            name = "max_completion_tokens"
        if asked is None:
            return room
    else:
        asked, name = max(1, body.max_output), "max_tokens"
        if body.max_tokens is None:
            return min(asked, room)
    if asked > room:
        raise BadInput(
            f"got {asked}, and the prompt has {num_prompt} tokens, together"
            f" {asked + num_prompt}; allowed: at most {limit} together, so at most {room} here",
            field=name,
        )
    return asked


def _check_ids(body: SamplingBody, served: Served) -> None:
    vocab_size = served.facts.vocab_size
    check_tokens(list(body.logit_bias), vocab_size=vocab_size, field="logit_bias")
    check_tokens(body.stop_token_ids or [], vocab_size=vocab_size, field="stop_token_ids")


def _logprobs(body: ChatBody | CompletionBody) -> tuple[int | None, int | None]:
    """Alternatives wanted for (the answer, the prompt)."""
    if isinstance(body, ChatBody):
        return ((body.top_logprobs or 0) if body.logprobs else None), None
    return body.logprobs, (body.logprobs if body.echo else None)
