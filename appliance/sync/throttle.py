"""Share a bandwidth among all connections, and follow it as it changes.

What this room does: one bucket of tokens, a byte each, that every connection takes from after it
has received; while the bucket is in debt nobody reads, and TCP slows the sender down.
What it knows: who comes first is served first, so no connection starves; a burst is at most a
tenth of a second's worth.
What it never does: drop bytes, or decide what the limit is: `Timetable` and the operator do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from appliance.clock import monotonic_ms

_BURST_S = 0.1
_LOOK_AGAIN_S = 1.0  # a limit that follows a timetable is asked for so often


class Throttle:
    """A bucket that all connections share. For one event loop."""

    def __init__(
        self,
        limit: Callable[[], int | None],
        *,
        now_ms: Callable[[], float] = monotonic_ms,
    ) -> None:
        """Follow `limit`: bytes per second, 0 for a pause, None for no limit.

        It is asked for every piece, and once a second while somebody waits.
        """
        self._limit = limit
        self._now_ms = now_ms
        self._tokens = 0.0
        self._filled_ms = now_ms()
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()

    def follow(self, limit: Callable[[], int | None]) -> None:
        """Follow another limit from now on, also for who is waiting."""
        self._limit = limit
        self._changed.set()

    async def take(self, count: int) -> None:
        """Account for `count` bytes; waits until they are paid for."""
        async with self._turn:
            self._fill(self._limit())
            self._tokens -= count
            while (wait_s := self._debt_s()) > 0:
                self._changed.clear()
                try:
                    async with asyncio.timeout(min(wait_s, _LOOK_AGAIN_S)):
                        await self._changed.wait()
                except TimeoutError:
                    pass

    def _debt_s(self) -> float:
        limit = self._limit()
        self._fill(limit)
        if limit is None or self._tokens >= 0:
            return 0.0
        return -self._tokens / limit if limit else _LOOK_AGAIN_S

    def _fill(self, limit: int | None) -> None:
        now_ms = self._now_ms()
        passed_s = (now_ms - self._filled_ms) / 1000
        self._filled_ms = now_ms
        if limit is None:
            self._tokens = 0.0
            return
        self._tokens = min(self._tokens + passed_s * limit, limit * _BURST_S)
