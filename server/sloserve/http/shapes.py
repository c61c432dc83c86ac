"""
The parts of a body that ask for a shape: `response_format`, `guided_*`, `structured_outputs`,
tools. OpenAI's words and vLLM's.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from sloserve.errors import BadInput

MAX_TOOLS = 128
MAX_OPTIONS = 4096
_FUNCTION = re.compile(r"[\w.-]{1,64}", re.ASCII)


def _shape(words: str) -> PydanticCustomError:
    return PydanticCustomError("shape", "{words}", {"words": words})


def _schema(value: object) -> object:
    """A JSON schema: an object, or one written as text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise _shape(f"is no JSON: {error}; allowed: a JSON schema") from None
    if value is None or isinstance(value, dict):
        return value
    raise _shape("allowed: a JSON schema, which is an object")


def _options(value: object) -> object:
    """The texts to choose from."""
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(text, str) and text for text in value):
        raise _shape("allowed: a list of strings, none of them empty")
    if not 1 <= len(value) <= MAX_OPTIONS:
        raise _shape(f"got {len(value)}, allowed: 1 to {MAX_OPTIONS} strings")
    return value


Schema = Annotated[dict[str, Any] | None, BeforeValidator(_schema)]
Options = Annotated[list[str] | None, BeforeValidator(_options)]


class JsonSchema(BaseModel):
    """`response_format.json_schema`; the schema itself is under `schema`."""

    model_config = ConfigDict(extra="allow")
    name: str | None = None
    strict: bool | None = None
    schema_: Schema = Field(None, alias="schema")


class ResponseFormat(BaseModel):
    """`response_format`."""

    model_config = ConfigDict(extra="allow")
    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None


class StructuredOutputs(BaseModel):
    """`structured_outputs`, vLLM's later form of the `guided_*` fields."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True)
    json_: Schema = Field(None, alias="json")
    regex: str | None = Field(None, min_length=1)
    choice: Options = None
    grammar: str | None = Field(None, min_length=1)
    json_object: bool | None = None
    structural_tag: Any = None


def _name(value: object) -> object:
    if not isinstance(value, str) or not _FUNCTION.fullmatch(value):
        shown = repr(value)[:80]
        raise _shape(f"got {shown}, allowed: 1 to 64 letters, digits and _ - .")
    return value


Name = Annotated[str, BeforeValidator(_name)]


class FunctionTool(BaseModel):
    """A function as a request describes it; what else is said goes to the chat template."""

    model_config = ConfigDict(extra="allow")
    name: Name
    description: str | None = None
    parameters: Schema = None
    strict: bool | None = None


class Tool(BaseModel):
    """One entry of `tools`."""

    model_config = ConfigDict(extra="allow")
    type: Literal["function"]
    function: FunctionTool

    def for_template(self) -> dict[str, Any]:
        """As the chat template is given it: what was sent, and `parameters` in any case."""
        told = self.model_dump(exclude_unset=True, exclude_none=True)
        told["function"].setdefault("parameters", {"type": "object", "properties": {}})
        return told


class _Named(BaseModel):
    name: Name


class NamedTool(BaseModel):
    """`tool_choice` of one function."""

    type: Literal["function"]
    function: _Named


def _choice(value: object) -> object:
    if value is None or value in ("none", "auto", "required"):
        return value
    if not isinstance(value, dict) or value.get("type") != "function":
        raise _shape(
            f"got {repr(value)[:80]}, allowed: 'none', 'auto', 'required' or"
            ' {"type": "function", "function": {"name": ...}}'
        )
    return NamedTool.model_validate(value)


ToolChoice = Annotated[
    Literal["none", "auto", "required"] | NamedTool | None, BeforeValidator(_choice)
]


@dataclass(frozen=True, slots=True)
class Shape:
    """The one shape that a body asks for; exactly one of the four is given."""

    field: str
    schema: Mapping[str, Any] | None = None
    regex: str | None = None
    choices: tuple[str, ...] | None = None
    grammar: str | None = None
    lenient: bool = False
    """Keywords of the schema that can't be enforced are passed over."""


JSON_OBJECT: Mapping[str, Any] = {"type": "object"}


def shape_of(
    response_format: ResponseFormat | None,
    structured: StructuredOutputs | None,
    guided: Mapping[str, Any],
) -> Shape | None:
    """
    What the three ways of asking come to; `guided` has the values of the `guided_*` fields.
    Raises BadInput for more than one shape, and for what is not served.
    """
    found = [shape for shape in (_formatted(response_format),) if shape is not None]
    found += _each(guided, prefix="guided_")
    if structured is not None:
        if structured.structural_tag is not None:
            raise BadInput(
                "is not served; allowed: json, regex, choice, grammar, json_object",
                field="structured_outputs.structural_tag",
            )
        values: dict[str, Any] = {
            "json": structured.json_,
            "regex": structured.regex,
            "choice": structured.choice,
            "grammar": structured.grammar,
        }
        if structured.json_object:
            found.append(Shape("structured_outputs.json_object", schema=JSON_OBJECT))
        found += _each(values, prefix="structured_outputs.")
    if len(found) > 1:
        raise BadInput(
            f"and {found[1].field} ask for different shapes; allowed: one of them",
            field=found[0].field,
        )
    return found[0] if found else None


def _formatted(given: ResponseFormat | None) -> Shape | None:
    if given is None or given.type == "text":
        return None
    if given.type == "json_object":
        return Shape("response_format", schema=JSON_OBJECT)
    if given.json_schema is None or given.json_schema.schema_ is None:
        raise BadInput("is missing", field="response_format.json_schema.schema")
    return Shape(
        "response_format.json_schema.schema",
        schema=given.json_schema.schema_,
        lenient=not given.json_schema.strict,
    )


def _each(values: Mapping[str, Any], *, prefix: str) -> list[Shape]:
    found = []
    if values.get("json") is not None:
        found.append(Shape(f"{prefix}json", schema=values["json"]))
    if values.get("regex") is not None:
        found.append(Shape(f"{prefix}regex", regex=values["regex"]))
    if values.get("choice") is not None:
        found.append(Shape(f"{prefix}choice", choices=tuple(values["choice"])))
    if values.get("grammar") is not None:
        found.append(Shape(f"{prefix}grammar", grammar=values["grammar"]))
    return found


def check_tools(tools: list[Tool] | None, choice: str | NamedTool | None) -> None:
    """What one tool alone can't tell. Raises BadInput."""
    names = [tool.function.name for tool in tools or ()]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise BadInput(f"there are two functions named {name!r}", field=f"tools[{i}]")
    if not names and choice not in (None, "none"):
        raise BadInput("is only allowed when tools are given", field="tool_choice")
    if isinstance(choice, NamedTool) and choice.function.name not in names:
        raise BadInput(
            f"got {choice.function.name!r}, allowed: {', '.join(names)}",
            field="tool_choice.function.name",
        )
