"""What is dropped into a directory is taken in once, when it is whole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.errors import DiskFull, HubUnreachable, SyncError, Untrusted
from appliance.sync.inbox import ENTRIES_MAX, RETRY_FIRST_MS, Inbox


def looked(inbox: Inbox, *between: Callable[[], object]) -> None:
    """Look, then look again after each thing that happens."""

    async def test() -> None:
        await inbox.look()
        for happens in between:
            happens()
            await inbox.look()

    asyncio.run(test())


def taking(taken: list[str], *, refuse: str = "") -> Callable[[Path], object]:
    async def take_in(path: Path) -> None:
        taken.append(path.name)
        if path.name == refuse:
            raise Untrusted(what=path.name, reason="nobody signed it")

    return take_in


def nothing() -> None:
    """Let nothing happen."""


def make(tmp_path: Path, taken: list[str], *, refuse: str = "") -> Inbox:
    return Inbox(tmp_path, taking(taken, refuse=refuse), retry_ms_max=8e3)  # type: ignore[arg-type]


def test_a_file_is_taken_in_once_it_stays_as_it_is(tmp_path: Path) -> None:
    taken: list[str] = []
    bundle = tmp_path / "bundle.tar"
    bundle.write_bytes(b"half")
    inbox = make(tmp_path, taken)
    looked(inbox, lambda: bundle.write_bytes(b"half and half"))
    assert taken == []
    looked(inbox, nothing)
    assert taken == ["bundle.tar"]
    assert (tmp_path / "taken" / "bundle.tar").read_bytes() == b"half and half"


def test_a_directory_is_whole_when_nothing_below_it_changes(tmp_path: Path) -> None:
    taken: list[str] = []
    (tmp_path / "stick" / "blobs").mkdir(parents=True)
    inbox = make(tmp_path, taken)
    looked(inbox, lambda: (tmp_path / "stick" / "blobs" / "a").write_bytes(b"a"))
    assert taken == []
    looked(inbox, nothing)
    assert (tmp_path / "taken" / "stick" / "blobs" / "a").exists()


def test_what_is_refused_is_kept_apart_and_not_tried_again(tmp_path: Path) -> None:
    taken: list[str] = []
    (tmp_path / "forged.tar").write_bytes(b"x")
    inbox = make(tmp_path, taken, refuse="forged.tar")
    looked(inbox, nothing, nothing)
    assert taken == ["forged.tar"]
    assert (tmp_path / "refused" / "forged.tar").exists()


def test_the_same_name_twice_overwrites_nothing(tmp_path: Path) -> None:
    taken: list[str] = []
    inbox = make(tmp_path, taken)
    for content in (b"1", b"2"):
        (tmp_path / "b.tar").write_bytes(content)
        looked(inbox, nothing)
    names = sorted(path.name for path in (tmp_path / "taken").iterdir())
    assert names == ["b.tar", "b.tar.1"]


def test_hidden_files_and_a_missing_directory_are_nothing(tmp_path: Path) -> None:
    taken: list[str] = []
    (tmp_path / ".part").write_bytes(b"x")
    looked(make(tmp_path, taken), nothing)
    looked(make(tmp_path / "missing", taken), nothing)
    assert taken == []


def test_so_many_are_looked_at_together_and_the_rest_later(tmp_path: Path) -> None:
    taken: list[str] = []
    for number in range(ENTRIES_MAX + 3):
        (tmp_path / f"{number}.tar").write_bytes(b"x")
    inbox = make(tmp_path, taken)
    looked(inbox, nothing)
    assert len(taken) == ENTRIES_MAX
    looked(inbox, nothing)
    assert len(taken) == ENTRIES_MAX + 3


@pytest.mark.parametrize(
    "stands_in_the_way",
    [
        DiskFull(path="blobs", needed_bytes=2, free_bytes=1),
        HubUnreachable(source="b.tar", reason="lacks a file"),
    ],
)
def test_what_nothing_is_found_against_stays_and_is_tried_again_ever_later(
    tmp_path: Path, stands_in_the_way: SyncError
) -> None:
    tried_ms: list[float] = []
    now_ms = 0.0

    async def take_in(_: Path) -> None:
        tried_ms.append(now_ms)
        if len(tried_ms) < 4:
            raise stands_in_the_way

    async def test() -> None:
        nonlocal now_ms
        inbox = Inbox(tmp_path, take_in, retry_ms_max=8_000, clock=lambda: now_ms)
        (tmp_path / "b.tar").write_bytes(b"x")
        await inbox.look()
        while not (tmp_path / "taken" / "b.tar").exists():
            assert not (tmp_path / "refused").exists()
            await inbox.look()
            now_ms += 1_000

    asyncio.run(test())
    first = RETRY_FIRST_MS
    assert tried_ms == [0, first, first + 8_000, first + 16_000]


def test_one_that_waits_holds_no_other_up_and_a_changed_one_is_new(tmp_path: Path) -> None:
    tried: list[str] = []
    is_whole = {"a.tar": False, "b.tar": True}

    async def take_in(path: Path) -> None:
        tried.append(path.name)
        if not is_whole[path.name]:
            raise HubUnreachable(source=path.name, reason="lacks a file")

    async def test() -> None:
        inbox = Inbox(tmp_path, take_in, retry_ms_max=1e6, clock=lambda: 0)
        (tmp_path / "a.tar").write_bytes(b"half")
        await inbox.look()
        await inbox.look()
        (tmp_path / "b.tar").write_bytes(b"whole")
        await inbox.look()
        await inbox.look()
        (tmp_path / "a.tar").write_bytes(b"all of it")
        is_whole["a.tar"] = True
        await inbox.look()
        await inbox.look()

    asyncio.run(test())
    assert tried == ["a.tar", "b.tar", "a.tar"]
