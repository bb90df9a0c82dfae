"""Take in what somebody drops into a directory: bundles, each once, when it is whole.

What this room does: looks at the directory, waits until an entry has stopped growing, has it taken
in, and moves it to `taken/` or `refused/` beside the others.
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
from typing import TypeAlias

from appliance import logs
from appliance.errors import ApplianceError

ENTRIES_MAX = 64  # looked at together
FILES_MAX = 20_000  # counted of one entry
TAKEN, REFUSED = "taken", "refused"
_Print: TypeAlias = tuple[int, int, int]  # files, bytes, newest change


class Inbox:
    """A directory that is looked at now and then."""

    def __init__(self, directory: Path, take_in: Callable[[Path], Awaitable[None]]) -> None:
        """Have what lies in `directory` taken in by `take_in`, which raises where it refuses."""
        self._directory = directory
        self._take_in = take_in
        self._seen: dict[str, _Print] = {}

    async def look(self) -> int:
        """Take in each entry that is as it was when it was looked at before; counts those taken."""
        taken = 0
        seen = await asyncio.to_thread(self._prints)
        settled = [name for name, found in seen.items() if self._seen.get(name) == found]
        self._seen = seen
        for name in settled:
            path, place, reason = self._directory / name, TAKEN, ""
            try:
                await self._take_in(path)
            except ApplianceError as error:
                place, reason = REFUSED, str(error)
            else:
                taken += 1
            level = logging.WARNING if reason else logging.INFO
            logs.event("bundle_" + place, level=level, name=name, reason=reason)
            await asyncio.to_thread(self._move, path, place)
            self._seen.pop(name, None)
        return taken

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
