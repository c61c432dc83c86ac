"""What the operator logs, and what its pods are told about logs and traces."""

import asyncio
import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sloserve import logs
from sloserve.errors import Failed
from sloserve.slo import parse_service
from sloserve_operator import cli, names
from sloserve_operator.api import Key, Obj, Ref, owner_reference, ref_of
from sloserve_operator.children import render
from sloserve_operator.children.subject import Subject
from sloserve_operator.settings import OperatorSettings
from sloserve_operator.workqueue import WorkQueue

Make = Callable[..., Obj]


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """`lines()`: what the operator has logged, parsed."""
    text, log = io.StringIO(), logging.getLogger("sloserve_operator")
    handler = logging.StreamHandler(text)
    handler.setFormatter(logs.JsonLines())
    log.addHandler(handler)
    before = log.level
    log.setLevel(logging.INFO)
    yield lambda: [json.loads(line) for line in text.getvalue().splitlines()]
    log.removeHandler(handler)
    log.setLevel(before)


def test_every_line_about_a_service_names_it(lines: Callable[[], list[dict[str, Any]]]) -> None:
    keys = [Key("team", f"s{i}") for i in range(6)]

    async def work(key: Key) -> None:
        await asyncio.sleep(0)
        if key.name == "s1":
            raise Failed("the cluster does not answer")
        if key.name == "s2":
            raise RuntimeError("a bug")
        logging.getLogger("sloserve_operator.reconciler").info("looked at", extra={"key": key.name})

    async def story() -> None:
        queue = WorkQueue(min_interval_s=0.0)
        runner = asyncio.create_task(queue.run(work, num_workers=3))
        for key in keys:
            queue.add(key)
        async with asyncio.timeout(60):
            while len(lines()) < len(keys):
                await asyncio.sleep(0.002)
        runner.cancel()

    asyncio.run(story())
    told = lines()
    for line in told:
        if line["message"] == "looked at":
            assert line["service"] == f"team/{line['key']}"
    assert {line["service"] for line in told} == {f"team/{key.name}" for key in keys}
    (failed,) = [line for line in told if line.get("error")]
    assert failed["service"] == "team/s1"
    assert failed["error"] == "the cluster does not answer"
    assert failed["again_s"] > 0
    (bug,) = [line for line in told if line.get("exception")]
    assert bug["service"] == "team/s2"
    assert bug["level"] == "error"


def test_the_operator_takes_the_same_flags_and_variables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLOSERVE_LOG_FORMAT", "loud")
    monkeypatch.setenv("KUBECONFIG", "/nonexistent/kubeconfig")
    assert cli.main([]) == 2
    assert "SLOSERVE_LOG_FORMAT: is 'loud'; allowed: human, json" in capsys.readouterr().err
    assert cli.main(["--log-format", "json", "--log-level", "debug"]) == 1


@pytest.fixture
def children(manifest: Make) -> Callable[..., dict[Ref, Obj]]:
    """What is rendered for a service, by kind and name."""

    def make(**spec: Any) -> dict[Ref, Obj]:
        service = manifest(**spec)
        parsed = parse_service(service)
        subject = Subject(
            parsed, owner_reference(service), OperatorSettings(), parsed.replicas,
            kinds=frozenset(),
        )  # fmt: skip
        return {ref_of(child): child for child in render(subject)}

    return make


def env_of(made: dict[Ref, Obj], part: str) -> dict[str, Any]:
    (container,) = made[names.deployment("chat", part)]["spec"]["template"]["spec"]["containers"]
    return {variable["name"]: variable.get("value") for variable in container["env"]}


def overlay(part: str, **variables: str) -> Obj:
    env = [{"name": name, "value": value} for name, value in variables.items()]
    return {"spec": {"containers": [{"name": part, "env": env}]}}


@pytest.mark.parametrize("part", [names.REPLICA, names.GATEWAY])
def test_pods_log_json_and_an_overlay_may_have_it_otherwise(
    children: Callable[..., dict[Ref, Obj]], part: str
) -> None:
    assert env_of(children(), part)["SLOSERVE_LOG_FORMAT"] == "json"
    field = "engine" if part == names.REPLICA else "gateway"
    own = overlay(part, SLOSERVE_LOG_FORMAT="human", SLOSERVE_LOG_LEVEL="debug")
    env = env_of(children(**{field: {"podTemplate": own}}), part)
    assert env["SLOSERVE_LOG_FORMAT"] == "human"
    assert env["SLOSERVE_LOG_LEVEL"] == "debug"


@pytest.mark.parametrize(
    ("url", "port"),
    [
        ("http://otel-collector.observability:4318", 4318),
        ("http://$(NODE_IP):4318", 4318),
        ("https://otlp.example.com", 443),
        ("http://otlp.example.com/v1", 80),
        ("https://otlp.example.com:bad", 443),
        ("not a URL", None),
    ],
)
@pytest.mark.parametrize("part", [names.REPLICA, names.GATEWAY])
def test_a_pod_that_traces_reaches_its_collector_and_the_other_part_does_not(
    children: Callable[..., dict[Ref, Obj]], part: str, url: str, port: int | None
) -> None:
    field = "engine" if part == names.REPLICA else "gateway"
    own = overlay(part, OTEL_EXPORTER_OTLP_ENDPOINT=url)
    made, plain = children(**{field: {"podTemplate": own}}), children()

    def egress(of: dict[Ref, Obj], who: str) -> list[Obj]:
        found: list[Obj] = of[Ref("NetworkPolicy", f"chat-{who}")]["spec"]["egress"]
        return found

    more = [] if port is None else [{"ports": [{"port": port, "protocol": "TCP"}]}]
    assert egress(made, part) == egress(plain, part) + more
    other = names.GATEWAY if part == names.REPLICA else names.REPLICA
    assert egress(made, other) == egress(plain, other)
