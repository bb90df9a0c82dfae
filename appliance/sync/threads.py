"""Run what blocks beside the loop, without losing hold of it.

What this room does: one call in the loop's pool of threads.
What it knows: a thread can't be cancelled, and a file must not be closed under one that uses it.
What it never does: start a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_thread(
    call: Callable[..., T], *arguments: object, undo: Callable[[T], object] | None = None
) -> T:
    """Run what blocks in a thread. If cancelled, wait until it has ended all the same.

    undo: what is done then with a result that nobody gets: an open file is closed.
    """
    future = asyncio.get_running_loop().run_in_executor(None, call, *arguments)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([future])
        if future.exception() is None and undo is not None:
            undo(future.result())
        raise
