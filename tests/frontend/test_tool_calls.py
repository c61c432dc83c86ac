"""Tool calls, forced and not, through the official client."""

import json
from typing import Any

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sloserve.engine.tokenizer import ByteTokenizer
from sloserve.frontend.loading import tool_format
from sloserve.tools.formats import HERMES, LLAMA3, MISTRAL, MISTRAL_ARGS, format_of

ASK: list[Any] = [{"role": "user", "content": "hi"}]
SAYS = (
    'Well.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>'
)


def tool(name: str, **more: Any) -> Any:
    return {"type": "function", "function": {"name": name, **more}}


TOOLS = [
    tool(
        "get_weather",
        parameters={
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/city"}},
            "required": ["city"],
            "additionalProperties": False,
            "$defs": {"city": {"enum": ["Paris", "Rome"]}},
        },
    ),
    tool("add"),
]


@pytest.fixture
def client(running: Any) -> Any:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="x", max_retries=0) as made:
        yield made


def test_calls_of_the_model_s_own_accord_are_told_as_openai_tells_them(
    running: Any, client: openai.OpenAI
) -> None:
    running.runner.says = SAYS
    answer = client.chat.completions.create(model="sim", messages=ASK, tools=TOOLS)
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls"
    assert message.content == "Well."
    calls: list[Any] = message.tool_calls or []
    assert [(c.function.name, c.function.arguments) for c in calls] == [
        ("get_weather", '{"city": "Paris"}'),
        ("add", "{}"),
    ]
    assert len({c.id for c in calls}) == 2
    assert all(c.id.startswith("call_") and c.type == "function" for c in calls)


def test_streamed_calls_come_as_a_head_and_then_fragments(
    running: Any, client: openai.OpenAI
) -> None:
    running.runner.says = SAYS
    deltas = []
    for chunk in client.chat.completions.create(
        model="sim", messages=ASK, tools=TOOLS, stream=True
    ):
        deltas.append(chunk.choices[0].delta)
        reason = chunk.choices[0].finish_reason
    assert reason == "tool_calls"
    assert deltas[0].role == "assistant"
    assert "".join(d.content or "" for d in deltas) == "Well."
    parts = [part for d in deltas for part in d.tool_calls or []]
    heads = [p for p in parts if p.id]
    assert [(h.index, h.type, h.function and h.function.name) for h in heads] == [
        (0, "function", "get_weather"),
        (1, "function", "add"),
    ]
    assert all(h.function and h.function.arguments == "" for h in heads)
    assert [p.index for p in parts] == sorted(p.index for p in parts)
    first = [p for p in parts if p.index == 0]
    assert first[0].id
    assert len(first) > 5  # fragments as they come, not one lump
    assert all(p.function and p.function.name is None and not p.type for p in first[1:])
    text = "".join(p.function.arguments or "" for p in first if p.function)
    assert json.loads(text) == {"city": "Paris"}


def test_the_client_s_own_assembly_of_a_stream_works(running: Any, client: openai.OpenAI) -> None:
    running.runner.says = SAYS
    with client.chat.completions.stream(model="sim", messages=ASK, tools=TOOLS) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    calls: list[Any] = final.choices[0].message.tool_calls or []
    assert [c.function.arguments for c in calls] == ['{"city": "Paris"}', "{}"]
    assert final.choices[0].finish_reason == "tool_calls"


def test_without_parallel_calls_only_the_first_is_told(running: Any, client: openai.OpenAI) -> None:
    running.runner.says = SAYS
    answer = client.chat.completions.create(
        model="sim", messages=ASK, tools=TOOLS, parallel_tool_calls=False
    )
    assert [c.type for c in answer.choices[0].message.tool_calls or []] == ["function"]


def test_an_answer_without_calls_is_text(running: Any, client: openai.OpenAI) -> None:
    running.runner.says = "No <tool is needed."
    for choice in ("auto", "none"):
        answer = client.chat.completions.create(
            model="sim", messages=ASK, tools=TOOLS, tool_choice=choice
        )
        assert answer.choices[0].message.content == "No <tool is needed."
        assert answer.choices[0].message.tool_calls is None
        assert answer.choices[0].finish_reason == "stop"


def test_with_choice_none_what_looks_like_a_call_is_text(
    running: Any, client: openai.OpenAI
) -> None:
    running.runner.says = SAYS
    answer = client.chat.completions.create(
        model="sim", messages=ASK, tools=TOOLS, tool_choice="none"
    )
    assert answer.choices[0].message.content == SAYS


def test_a_call_that_max_tokens_cut_off_says_length(running: Any, client: openai.OpenAI) -> None:
    running.runner.says = SAYS
    answer = client.chat.completions.create(model="sim", messages=ASK, tools=TOOLS, max_tokens=65)
    assert answer.choices[0].finish_reason == "length"
    calls: list[Any] = answer.choices[0].message.tool_calls or []
    assert '{"city": "Paris"}'.startswith(calls[0].function.arguments)


@pytest.mark.parametrize("how", [HERMES, LLAMA3, MISTRAL, MISTRAL_ARGS, None])
@pytest.mark.parametrize("stream", [False, True])
def test_required_calls_are_enforced_in_every_format(
    unready: Any, how: Any, stream: bool, ready: Any
) -> None:
    unready.tool_format = how
    with (
        ready(unready) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client,
    ):
        for choice, names in (("required", {"get_weather"}), (tool("add"), {"add"})):
            given: Any = {"model": "sim", "messages": ASK, "tools": TOOLS, "tool_choice": choice}
            if stream:
                with client.chat.completions.stream(**given) as events:
                    done: Any = events.until_done().get_final_completion()
            else:
                done = client.chat.completions.create(**given)
            assert done.choices[0].finish_reason == "tool_calls"
            assert not done.choices[0].message.content
            calls = done.choices[0].message.tool_calls
            assert {c.function.name for c in calls} <= {"get_weather", "add"}
            assert choice == "required" or {c.function.name for c in calls} == names
            for call in calls:
                value = json.loads(call.function.arguments)
                assert call.function.name == "add" or value["city"] in ("Paris", "Rome")


def test_calls_or_an_answer_of_a_shape(running: Any, client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"x": {"const": 1}}, "required": ["x"],
              "additionalProperties": False}  # fmt: skip
    wish: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    answer = client.chat.completions.create(
        model="sim", messages=ASK, tools=TOOLS, response_format=wish
    )
    message = answer.choices[0].message
    assert message.tool_calls or json.loads(message.content or "") == {"x": 1}
    with pytest.raises(openai.BadRequestError, match="together with tools"):
        client.chat.completions.create(
            model="sim", messages=ASK, tools=TOOLS, extra_body={"guided_regex": "a"}
        )


def test_calls_and_results_may_stand_in_the_history(running: Any, client: openai.OpenAI) -> None:
    running.runner.says = "It is 20 degrees."
    history: Any = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "call_1", "type": "function",
             "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "20"},
    ]  # fmt: skip
    answer = client.chat.completions.create(model="sim", messages=history, tools=TOOLS)
    assert answer.choices[0].message.content == "It is 20 degrees."


def test_a_template_that_teaches_no_format_is_said(unready: Any, ready: Any) -> None:
    unready.tool_format = None
    with ready(unready) as server:
        answer = server.post("/v1/chat/completions", json={"messages": ASK, "tools": TOOLS})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "tools"
    assert "--tool-parser" in answer.json()["error"]["message"]


def test_the_tokens_of_calls_are_counted_for_the_gateway(running: Any) -> None:
    running.runner.says = SAYS
    asked = {"messages": ASK, "tools": TOOLS, "stream": True}
    with running.client.stream(
        "POST", "/v1/chat/completions", json=asked, headers={"x-sloserve-annotate": "1"}
    ) as response:
        lines = [line for line in response.iter_lines() if line]
    counted = [int(line.split()[1].removeprefix("n=")) for line in lines if line.startswith(": n=")]
    assert sum(counted) == len(SAYS) + 1  # every byte is a token, and so is the end
    assert lines[-1] == "data: [DONE]"


@pytest.mark.parametrize(
    ("template", "how"),
    [
        ("{{ '<tool_call>\\n' }}", HERMES),
        ("<tool_call>\\n<function=...", None),
        ("{{ '[TOOL_CALLS] [' }}", MISTRAL),
        ("{{ '[TOOL_CALLS]' + name + '[ARGS]' }}", MISTRAL_ARGS),
        ("{{ '<|python_tag|>' }}", LLAMA3),
        ('Environment: ipython {"name": "", "parameters": {}}', LLAMA3),
        ("{{ messages }}", None),
    ],
)
def test_the_template_tells_the_format(template: str, how: Any) -> None:
    assert format_of(template) is how


def test_a_flag_overrides_the_template() -> None:
    assert tool_format(None, ByteTokenizer()) is None
    assert tool_format("mistral", ByteTokenizer()) is MISTRAL


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)
FUNCTIONS = st.fixed_dictionaries(
    {"name": st.text(max_size=4) | st.sampled_from(["f", "g"])},
    optional={"parameters": ODD, "strict": ODD, "description": ODD},
)
TOOL_LISTS = st.lists(
    st.fixed_dictionaries({"type": st.just("function"), "function": FUNCTIONS | ODD}) | ODD,
    max_size=3,
)
CALLS = st.lists(
    st.fixed_dictionaries({"function": st.fixed_dictionaries({"name": ODD, "arguments": ODD})})
    | ODD,
    max_size=2,
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    tools=TOOL_LISTS | ODD,
    choice=st.sampled_from(["none", "auto", "required", None, tool("f")]) | ODD,
    parallel=st.none() | st.booleans() | ODD,
    calls=CALLS,
    role=st.sampled_from(["assistant", "tool", "function"]),
)
def test_odd_tools_never_make_a_5xx(
    shared: Any, tools: Any, choice: Any, parallel: Any, calls: Any, role: str
) -> None:
    body = {
        "messages": [*ASK, {"role": role, "content": None, "tool_calls": calls}],
        "tools": tools,
        "tool_choice": choice,
        "parallel_tool_calls": parallel,
        "max_tokens": 4,
    }
    answer = shared.post("/v1/chat/completions", content=json.dumps(body))
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 400:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
