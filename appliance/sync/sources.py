"""Rank the places that files come from: the best that is not resting is asked next.

What this room does: what a source is; how each has done; which is asked next, and when.
What it knows: no source is trusted: each chunk is hashed. Who sent wrong bytes comes after everyone
who did not, then the order of the configuration holds. A source that failed rests for a random
part of a time that doubles (full jitter), or as long as it asked for.
What it never does: open a connection, or give a source up for ever.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from appliance.clock import monotonic_ms
from appliance.config import Downloads
from appliance.contract.release import BlobRef

_DOUBLINGS_MAX = 32


class SourceFailed(Exception):
    """A source did not give what was asked. Another may, or the same one later."""

    def __init__(self, reason: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """What a source sends: bytes from `start` on, which may be before what was asked for."""

    start: int
    pieces: AsyncIterator[bytes]  # raises SourceFailed


class Source(Protocol):
    """A place that may have files, by their digest."""

    @property
    def name(self) -> str:
        """Name it for people."""

    def open(self, blob: BlobRef, start: int, stop: int) -> AbstractAsyncContextManager[Body]:
        """Ask for the bytes of a file from `start` up to before `stop`; raises SourceFailed."""

    async def close(self) -> None:
        """Let go of its connections."""


@dataclass(slots=True, kw_only=True)
class Standing:
    """How one source has done so far. `sends_all`: it ignores Range."""

    source: Source
    order: int
    wrong_count: int = 0
    failure_count: int = 0  # since bytes came
    rests_until_ms: float = 0.0
    sends_all: bool = False
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)  # held where it sends all

    def delivered(self) -> None:
        """Note right bytes: it does not rest after its next failure longer than at first."""
        self.failure_count = 0


class Ranking:
    """The sources, and what became of asking them."""

    def __init__(
        self,
        sources: Sequence[Source],
        settings: Downloads,
        *,
        now_ms: Callable[[], float] = monotonic_ms,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Take the sources in the operator's order; `draw` gives numbers from 0 up to 1."""
        self.standings = [
            Standing(source=source, order=number) for number, source in enumerate(sources)
        ]
        self._settings = settings
        self._now_ms = now_ms
        self._draw = draw

    def put_first(self, source: Source) -> Standing:
        """Add a source before all others, until it is removed."""
        first = min((one.order for one in self.standings), default=0) - 1
        standing = Standing(source=source, order=first)
        self.standings.append(standing)
        return standing

    def put_last(self, source: Source) -> None:
        """Add a source after all others."""
        last = max((one.order for one in self.standings), default=0) + 1
        self.standings.append(Standing(source=source, order=last))

    def remove(self, standing: Standing) -> None:
        """Ask a source no more; what it is sending still counts."""
        self.standings = [one for one in self.standings if one is not standing]

    def best(self, excluded: set[str]) -> tuple[Standing, float] | None:
        """Choose who is asked next, and in how many milliseconds; None where nobody is left."""
        now_ms = self._now_ms()
        left = [one for one in self.standings if one.source.name not in excluded]
        if not left:
            return None
        ready = [one for one in left if one.rests_until_ms <= now_ms]
        if ready:
            return min(ready, key=lambda one: (one.wrong_count, one.order)), 0.0
        first = min(left, key=lambda one: one.rests_until_ms)
        return first, first.rests_until_ms - now_ms

    def failed(self, standing: Standing, failure: SourceFailed) -> None:
        """Let a source rest: other connections have failed with it, so it counts once a rest."""
        now_ms = self._now_ms()
        if failure.retry_after_s is not None:
            rest_ms = min(failure.retry_after_s, self._settings.retry_after_s_max) * 1000
        elif standing.rests_until_ms > now_ms:
            return
        else:
            doubled = self._settings.backoff_ms * 2 ** min(standing.failure_count, _DOUBLINGS_MAX)
            rest_ms = self._draw() * min(doubled, self._settings.backoff_ms_max)
        standing.failure_count += 1
        standing.rests_until_ms = max(standing.rests_until_ms, now_ms + rest_ms)
