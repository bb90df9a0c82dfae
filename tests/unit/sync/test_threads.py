"""What blocks in a thread is waited for, and what it opened is not left open."""

from __future__ import annotations

import asyncio
import threading

import pytest

from appliance.sync.threads import in_thread


def test_a_cancelled_call_is_waited_for_and_undone() -> None:
    begun, may_end = threading.Event(), threading.Event()
    undone: list[str] = []

    def opened() -> str:
        begun.set()
        may_end.wait(10)
        return "a file"

    async def run() -> None:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(in_thread(opened, undo=undone.append))
            await asyncio.to_thread(begun.wait, 10)
            task.cancel()
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.sleep(0)
            assert not task.done()
            may_end.set()
        assert task.cancelled()

    asyncio.run(run())
    assert undone == ["a file"]


def test_an_error_comes_out_as_it_is() -> None:
    def fails() -> None:
        raise OSError(5, "broken")

    with pytest.raises(OSError, match="broken"):
        asyncio.run(in_thread(fails))
