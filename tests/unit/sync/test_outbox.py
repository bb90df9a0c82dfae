"""The outbox: real SQLite, and its bound."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest

from appliance.config import Store as Settings
from appliance.errors import DocumentRefused
from appliance.store import Store
from appliance.sync.outbox import MIGRATIONS, Outbox

Body = Callable[[Outbox], Coroutine[None, None, None]]


def with_outbox(place: Path, body: Body, reports_max: int = 5) -> None:
    store = Store(place / "state.db", MIGRATIONS, Settings())
    try:
        outbox = Outbox(store, reports_max, lambda: 42)
        asyncio.run(body(outbox))
    finally:
        assert store.close(10)


async def numbers(outbox: Outbox, after: int = 0, count: int = 100) -> list[int]:
    name = await outbox.name()
    return [report.seq for report in await outbox.after(name, after, count)]


def test_reports_wait_in_order_over_a_restart(tmp_path: Path) -> None:
    names: list[str] = []

    async def fill(outbox: Outbox) -> None:
        for text in (b"1", b"2", b"3"):
            await outbox.add("state", text)
        assert outbox.changed.is_set()
        names.append(await outbox.name())

    async def look(outbox: Outbox) -> None:
        name = await outbox.name()
        assert name == names[0]
        found = await outbox.after(name, 1, 1)
        assert [(one.outbox, one.seq, one.body) for one in found] == [(name, 2, b"2")]
        assert await numbers(outbox) == [1, 2, 3]

    with_outbox(tmp_path, fill)
    with_outbox(tmp_path, look)


def test_a_number_is_never_given_twice(tmp_path: Path) -> None:
    async def settled(outbox: Outbox) -> None:
        await outbox.add("state", b"1")
        await outbox.add("state", b"2")
        assert await outbox.settle(2)
        assert await numbers(outbox) == []

    async def again(outbox: Outbox) -> None:
        await outbox.add("state", b"3")
        await outbox.add("state", b"4")
        assert await numbers(outbox) == [3, 4]
        await outbox.refused(3)
        assert await numbers(outbox) == [4]

    with_outbox(tmp_path, settled)
    with_outbox(tmp_path, again)


def test_beyond_the_bound_the_oldest_go_and_are_counted(tmp_path: Path) -> None:
    async def fill(outbox: Outbox) -> None:
        assert await outbox.lost() == 0
        for number in range(8):
            await outbox.add("state", str(number).encode())
        assert await numbers(outbox) == [4, 5, 6, 7, 8]
        assert await outbox.lost() == 3

    with_outbox(tmp_path, fill)


def test_an_older_copy_of_our_state_takes_a_new_name(tmp_path: Path) -> None:
    async def restored(outbox: Outbox) -> None:
        await outbox.add("state", b"1")
        name = await outbox.name()
        assert not await outbox.settle(2)
        assert await outbox.name() != name
        assert await outbox.settle(0)
        assert await numbers(outbox) == [1]

    with_outbox(tmp_path, restored)


def test_a_report_out_of_bounds_is_refused_where_it_is_made(tmp_path: Path) -> None:
    async def odd(outbox: Outbox) -> None:
        with pytest.raises(DocumentRefused, match="body"):
            await outbox.add("state", bytes(20_000))
        with pytest.raises(DocumentRefused, match="kind"):
            await outbox.add("a state", b"")

    with_outbox(tmp_path, odd)
