"""What a chat request asks of tool calls, and the shape that its answer must have."""

import json
from collections.abc import Callable
from dataclasses import dataclass

from sloserve.engine.tokenizer import Tokenizer
from sloserve.errors import BadInput
from sloserve.grammar.constraint import Constraint, Kind, of_choices, of_schema, with_options
from sloserve.http.bodies import ChatBody, SamplingBody
from sloserve.http.shapes import JSON_OBJECT, NamedTool, Shape
from sloserve.tools.formats import LLAMA3, ToolFormat
from sloserve.tools.writing import Function, calls_grammar


@dataclass(frozen=True, slots=True)
class Calling:
    """
    The functions that an answer may call. `forced`: it calls at least one and says nothing else;
    `several`: more than one.
    """

    how: ToolFormat
    functions: tuple[Function, ...]
    forced: bool
    several: bool

    @property
    def names(self) -> tuple[str, ...]:
        """Of the functions."""
        return tuple(function.name for function in self.functions)


def calling_of(body: ChatBody, how: ToolFormat | None) -> Calling | None:
    """
    None: the answer is text. `how` the model writes calls; None: it was taught no way known here,
    so calls can only be forced (as bare JSON). Raises BadInput.
    """
    choice = body.tool_choice or "auto"
    if not body.tools or choice == "none":
        return None
    if how is None and choice == "auto":
        raise BadInput(
            "this model's chat template teaches no format of tool calls that is known here;"
            " allowed: tool_choice 'none', 'required' or one function, or a replica started with"
            " --tool-parser (and, if need be, --chat-template)",
            field="tools",
        )
    tools = body.tools
    if isinstance(choice, NamedTool):
        tools = [tool for tool in tools if tool.function.name == choice.function.name]
    functions = tuple(
        Function(
            tool.function.name,
            with_options(tool.function.parameters or JSON_OBJECT, lenient=not tool.function.strict),
        )
        for tool in tools
    )
    several = body.parallel_tool_calls is not False and not isinstance(choice, NamedTool)
    return Calling(how or LLAMA3, functions, choice != "auto", several)


def constraint_of(
    body: SamplingBody, calling: Calling | None, *, literal: Callable[[str], str]
) -> Constraint | None:
    """The shape that the answer must have; None: any. Raises BadInput."""
    shape = body.shape()
    if calling is None:
        return None if shape is None else _constraint(shape)
    if not calling.forced and shape is None:
        return None
    answer = None
    if not calling.forced and shape is not None:  # calls, or an answer of that shape
        if shape.schema is None:
            raise BadInput(
                "can't be had together with tools that may be called or not; allowed: a JSON"
                " schema, or tool_choice 'none'",
                field=shape.field,
            )
        answer = with_options(shape.schema, lenient=shape.lenient)
    text = calls_grammar(
        calling.how,
        calling.functions,
        several=calling.several,
        literal=literal,
        answer=answer,
    )
    return Constraint(Kind.GRAMMAR, text, "tools" if answer is None else "response_format")


def _constraint(shape: Shape) -> Constraint:
    if shape.schema is not None:
        return of_schema(shape.schema, field=shape.field, lenient=shape.lenient)
    if shape.choices is not None:
        return of_choices(shape.choices, field=shape.field)
    if shape.regex is not None:
        return Constraint(Kind.REGEX, shape.regex, shape.field)
    assert shape.grammar is not None
    return Constraint(Kind.GRAMMAR, shape.grammar, shape.field)


def literals(tokenizer: Tokenizer) -> Callable[[str], str]:
    """
    Texts as Lark: the ids of markers that are one special token (a tag such as `<tool_call>`,
    which grammars never read as text), strings otherwise.
    """

    def literal(text: str) -> str:
        bracketed = text[:1] + text[-1:] in ("<>", "[]") and len(text) > 2
        ids = tokenizer.encode(text, add_special=False) if bracketed else []
        return f"<[{ids[0]}]>" if len(ids) == 1 else json.dumps(text)

    return literal
