"""From a body to what its answers must look like, and how they are read."""

from collections.abc import Sequence

from sloserve.engine.tokenizer import Tokenizer
from sloserve.frontend.calling import Calling, calling_of, constraint_of, literals
from sloserve.frontend.prompts import Prompt, Wish
from sloserve.frontend.replica import Served
from sloserve.frontend.speech import Manner
from sloserve.frontend.thinking import Thinking, thinking_of
from sloserve.http.bodies import ChatBody, CompletionBody
from sloserve.slo import Promise


def check_shape(body: ChatBody | CompletionBody, served: Served) -> Calling | None:
    """What can be refused before the prompt is known. Raises BadInput."""
    calling = calling_of(body, served.tool_format) if isinstance(body, ChatBody) else None
    shape = body.shape()
    if shape is not None:
        served.grammars.check(shape.field)
    elif calling is not None and calling.forced:
        served.grammars.check("tool_choice")
    return calling


async def wish_of(
    body: ChatBody | CompletionBody,
    prompts: Sequence[Prompt],
    served: Served,
    *,
    calling: Calling | None,
    promise: Promise,
) -> Wish:
    """What the answers to `prompts` must be like. Raises BadInput; compiles beside the loop."""
    tokenizer = served.tokenizer
    thinking = None
    if isinstance(body, ChatBody):
        thinking = thinking_of(promise, prompts[0].tokens, tokenizer)
    constraint = constraint_of(body, calling, literal=literals(tokenizer))
    grammar = None if constraint is None else await served.grammars.compile(constraint)
    return Wish(
        Manner(thinking, calling),
        grammar=grammar,
        grammar_after=_marker(thinking),
        show_special=_has_special(thinking, calling, tokenizer),
    )


def _marker(thinking: Thinking | None) -> str | None:
    """Where a grammar begins to bind. Thinking that is only possible is left out for it."""
    return thinking.marker if thinking is not None and thinking.begins else None


def _has_special(thinking: Thinking | None, calling: Calling | None, tokenizer: Tokenizer) -> bool:
    """Whether a marker that the answer is read by is a token that text usually leaves out."""
    markers = [] if calling is None else [*calling.how.markers]
    markers += [] if thinking is None else [thinking.marker]
    ids = [tokenizer.encode(marker, add_special=False) for marker in markers]
    return any(len(one) == 1 and one[0] in tokenizer.special_ids for one in ids)
