"""Who the replicas are."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from sloserve.errors import BadInput
from sloserve.gateway.replicas import Replicas
from sloserve.gateway.sources import FileSource, ListSource, make_source, parse_endpoints

Make = Any
"""A builder from conftest."""


def test_a_list_may_hold_addresses_and_names() -> None:
    source = make_source("127.0.0.1:9001, [::1]:9002,localhost:9003")
    assert isinstance(source, ListSource)
    found = asyncio.run(source.look())
    assert found is not None
    assert found[:2] == [("127.0.0.1", 9001), ("::1", 9002)]
    assert found[2][1] == 9003
    assert len(found) == 3  # one family: a pod with two addresses would count twice


def test_a_name_that_does_not_exist_is_nobody() -> None:
    assert asyncio.run(make_source("no-such-host.invalid:80").look()) in ([], None)


@pytest.mark.parametrize("text", ["127.0.0.1", "host:0", "host:99999", ":80", "a:b"])
def test_a_bad_entry_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="allowed: HOST:PORT"):
        make_source(text)


def test_a_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "replicas"
    source = make_source(str(path))
    assert isinstance(source, FileSource)
    assert asyncio.run(source.look()) == []
    path.write_text("# two of them\n127.0.0.1:1\nhttp://127.0.0.1:2/ \n")
    assert asyncio.run(source.look()) == [("127.0.0.1", 1), ("127.0.0.1", 2)]
    path.write_text("nonsense")
    assert asyncio.run(source.look()) is None
    path.unlink()
    assert asyncio.run(source.look()) == []


def test_entries_are_separated_by_commas_or_space() -> None:
    found = parse_endpoints("a:1, b:2\nc:3 # d:4", field="x")
    assert found == [("a", 1), ("b", 2), ("c", 3)]


def test_replicas_come_and_go_while_their_answers_go_on(
    gateway: Make, replica: Make, act: Make
) -> None:
    async def story() -> None:
        leaving, coming = replica("a"), replica("b")
        go = asyncio.Event()
        leaving.default = act(after_all=go)
        async with gateway(leaving, coming) as world:
            replicas: Replicas = world.core.replicas
            replicas.follow([leaving.address])
            assert list(replicas.known) == [leaving.address]
            streaming = asyncio.create_task(world.ask(stream=True))
            await world.until(lambda: bool(leaving.asked))
            replicas.follow([coming.address])
            answer = await world.ask(stream=True)
            assert answer.headers["x-slo-replica"] == "b"
            go.set()
            assert (await streaming).events[-1] == "[DONE]"

    asyncio.run(story())
