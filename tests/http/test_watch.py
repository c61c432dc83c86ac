"""Files that change while a server runs."""

import asyncio
import os
from pathlib import Path

import pytest

from sloserve.errors import BadInput
from sloserve.http.watch import Watched


def number_in(path: Path) -> int:
    text = path.read_text()
    if not text.strip().isdigit():
        raise BadInput(f"{text!r} is no number")
    return int(text)


def write(path: Path, text: str) -> None:
    """A new inode each time, so that the clock's resolution does not matter."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)


def test_a_change_is_seen_once(tmp_path: Path) -> None:
    path = tmp_path / "n"
    write(path, "1")
    watched = Watched(path, number_in)
    assert not watched.poll()
    write(path, "2")
    assert watched.poll()
    assert watched.value == 2
    assert not watched.poll()


def test_bad_content_keeps_the_old_and_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "n"
    write(path, "1")
    watched = Watched(path, number_in)
    write(path, "many")
    assert not watched.poll()
    assert not watched.poll()
    assert watched.value == 1
    assert [r.levelname for r in caplog.records] == ["ERROR"]
    write(path, "3")
    assert watched.poll()
    assert watched.value == 3


def test_a_file_that_goes_away_and_comes_back_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "n"
    write(path, "1")
    watched = Watched(path, number_in)
    path.unlink()
    assert not watched.poll()
    assert watched.value == 1
    write(path, "4")
    assert watched.poll()
    assert watched.value == 4


def test_a_swapped_symlink_is_seen_as_in_a_mounted_configmap(tmp_path: Path) -> None:
    for name, text in (("v1", "1"), ("v2", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "n").write_text(text)
    (tmp_path / "..data").symlink_to("v1")
    (tmp_path / "n").symlink_to("..data/n")
    watched = Watched(tmp_path / "n", number_in)
    (tmp_path / "..tmp").symlink_to("v2")
    os.replace(tmp_path / "..tmp", tmp_path / "..data")
    assert watched.poll()
    assert watched.value == 2


def test_a_bad_file_at_the_start_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "n"
    write(path, "none")
    with pytest.raises(BadInput):
        Watched(path, number_in)


def test_following_hands_over_every_new_value_and_survives_a_failing_reader(
    tmp_path: Path,
) -> None:
    path = tmp_path / "n"
    write(path, "1")
    seen: list[int] = []

    def changed(value: int) -> None:
        seen.append(value)
        if value == 2:
            raise BadInput("not this one")

    async def main() -> None:
        task = asyncio.create_task(Watched(path, number_in).follow(changed, period_s=0.001))
        for text in ("2", "3"):
            await asyncio.sleep(0.01)
            write(path, text)
            while not seen or seen[-1] != int(text):
                await asyncio.sleep(0.001)
        task.cancel()

    asyncio.run(asyncio.wait_for(main(), 60))
    assert seen == [2, 3]
