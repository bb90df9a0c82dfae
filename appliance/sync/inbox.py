"""Take in what somebody drops into a directory: bundles, each once, when it is whole.

What this room does: looks at the directory, waits until an entry has stopped growing, has it taken
in, and moves it to `taken/` or `refused/` beside the others. One that a full disk or a file that is
not to be had stands in the way of stays, and is tried again, each time later.
What it knows: nothing of what is inside; whoever takes it in believes only what is signed.
What it never does: delete what somebody brought.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple, TypeAlias

from appliance import logs
from appliance.clock import monotonic_ms
from appliance.errors import ApplianceError, StoreError

ENTRIES_MAX = 64  # looked at together
FILES_MAX = 20_000  # counted of one entry
RETRY_FIRST_MS = 5_000.0
TAKEN, REFUSED = "taken", "refused"
_Print: TypeAlias = tuple[int, int, int]  # files, bytes, newest change


class _Wait(NamedTuple):
    wait_ms: float
    until_ms: float


class Inbox:
    """A directory that is looked at now and then."""

    def __init__(
        self,
        directory: Path,
        take_in: Callable[[Path], Awaitable[None]],
        *,
        retry_ms_max: float,
        clock: Callable[[], float] = monotonic_ms,
    ) -> None:
        """Have what lies in `directory` taken in by `take_in`, which raises where it can't be.

        retry_ms_max: the longest wait until it is tried again.
        """
        self._directory = directory
        self._take_in = take_in
        self._retry_ms_max = retry_ms_max
        self._clock = clock
        self._seen: dict[str, _Print] = {}
        self._waits: dict[str, _Wait] = {}

    async def look(self) -> int:
        """Take in each entry that is as it was when it was looked at before; counts those taken."""
        taken = 0
        seen = await asyncio.to_thread(self._prints)
        settled = [name for name, found in seen.items() if self._seen.get(name) == found]
        self._seen = seen
        self._waits = {name: wait for name, wait in self._waits.items() if name in settled}
        for name in settled:
            wait = self._waits.get(name)
            if wait is not None and self._clock() < wait.until_ms:
                continue
            path, place, reason = self._directory / name, TAKEN, ""
            try:
                await self._take_in(path)
            except ApplianceError as error:
                if error.retryable or isinstance(error, StoreError):
                    self._later(name, str(error))
                    continue
                place, reason = REFUSED, str(error)
            else:
                taken += 1
            level = logging.WARNING if reason else logging.INFO
            logs.event("bundle_" + place, level=level, name=name, reason=reason)
            await asyncio.to_thread(self._move, path, place)
            self._seen.pop(name, None)
            self._waits.pop(name, None)
        return taken

    def _later(self, name: str, reason: str) -> None:
        """Leave an entry where it is: nothing was found against it."""
        before = self._waits.get(name)
        wait_ms = min(self._retry_ms_max, before.wait_ms * 2 if before else RETRY_FIRST_MS)
        self._waits[name] = _Wait(wait_ms, self._clock() + wait_ms)
        wait_s = wait_ms / 1000
        logs.event("bundle_waits", level=logging.WARNING, name=name, reason=reason, wait_s=wait_s)

    def _prints(self) -> dict[str, _Print]:
        """Measure each entry; one that goes meanwhile is none."""
        found: dict[str, _Print] = {}
        with contextlib.suppress(OSError):
            entries = (
                path
                for path in self._directory.iterdir()
                if path.name not in (TAKEN, REFUSED) and not path.name.startswith(".")
            )
            for path in itertools.islice(entries, ENTRIES_MAX):
                with contextlib.suppress(OSError):
                    found[path.name] = _print(path)
        return found

    def _move(self, path: Path, place: str) -> None:
        """Move an entry out of the way; one that stays is taken in again, which does no harm."""
        with contextlib.suppress(OSError):
            directory = self._directory / place
            directory.mkdir(exist_ok=True)
            path.rename(_free(directory / path.name))


def _print(path: Path) -> _Print:
    files = itertools.islice(itertools.chain([path], path.rglob("*")), FILES_MAX)
    stats = [file.lstat() for file in files]
    return len(stats), sum(one.st_size for one in stats), max(one.st_mtime_ns for one in stats)


def _free(path: Path) -> Path:
    """Find a name beside `path` that nothing has yet."""
    names = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
    return next(name for name in itertools.chain([path], names) if not name.exists())
