"""Keep one worker process waiting, with its imports done, for whatever is loaded next.

What this room does: starts a spare worker once nothing loads, hands it over, ends it.
What it knows: a new worker spends most of a second on imports before it can begin to load; one that
waits has them behind it, needs no core, and some memory.
What it never does: keep more than one, or send it anything.
"""

from __future__ import annotations

import asyncio

from appliance.runtime import wire
from appliance.runtime.process import Child


class Spare:
    """The one spare worker. `run` owns it."""

    def __init__(self, *, wanted: bool, stop_wait_s: float) -> None:
        """Keep a spare, if one is wanted, from the first `refill` on."""
        self._wanted = wanted
        self._stop_wait_s = stop_wait_s
        self._child: Child[wire.FromWorker] | None = None
        self._refill = asyncio.Event()

    @property
    def pid(self) -> int:
        """Name the process that waits; 0 while there is none."""
        return self._child.pid if self._child is not None and not self._child.ended else 0

    def refill(self) -> None:
        """Have a spare started, if there is none; called when nothing needs the cores for loading.

        Does not block.
        """
        self._refill.set()

    async def take(self) -> Child[wire.FromWorker]:
        """Hand over the spare, or start a worker if there is none.

        Raises:
            OSError: no process can be started.
        """
        child, self._child = self._child, None
        if child is None:
            return await self._start()
        if child.ended:
            await child.end()
            return await self._start()
        return child

    async def run(self) -> None:
        """Start a spare whenever one is due, until cancelled; then end it."""
        try:
            while True:
                await self._refill.wait()
                self._refill.clear()
                if not self._wanted or self.pid:
                    continue
                old, self._child = self._child, None
                if old is not None:
                    await old.end()
                try:
                    self._child = await self._start()
                except OSError:
                    continue  # whatever is loaded next says so
        finally:
            child, self._child = self._child, None
            if child is not None:
                await child.end()

    async def _start(self) -> Child[wire.FromWorker]:
        return await Child.start("worker", wire.FromWorker, stop_wait_s=self._stop_wait_s)
