"""Tell how far a download has come: verified bytes, rate, time left, and why it stands still.

What this room does: the account of one download of several files. Pure: the time is an argument.
What it knows: only verified bytes count, and the number never goes back: where bytes turn out wrong
later, it waits until they are there again.
What it never does: round, or write a sentence.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from appliance.errors import SyncError

_WINDOW_MS = 10_000.0
_POINT_MS = 250.0  # least between two points of the rate: so they are bounded


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a download is. Bytes are of all its files together.

    fetched_bytes: from the sources, in this run; seeded_bytes: from files that were here already;
    stopped_by: what it waits for, None while it runs. pause: the same of what is meant to be so.
    """

    total_bytes: int
    verified_bytes: int
    fetched_bytes: int
    seeded_bytes: int
    bytes_per_s: float
    seconds_left: float | None
    stopped_by: SyncError | None = None
    pause: str = ""

    @property
    def waits_for(self) -> str:
        """Say why it stands still; empty while it runs."""
        return str(self.stopped_by or self.pause)


class Account:
    """What is known of a running download."""

    def __init__(self, total_bytes: int) -> None:
        self._total = total_bytes
        self._verified = 0
        self._most = 0
        self._fetched = 0
        self._seeded = 0
        self._points: deque[tuple[float, int]] = deque()

    def found(self, count: int) -> None:
        """Add bytes that were there from before, right; take away such that are not."""
        self._add(count)

    def seeded(self, count: int) -> None:
        """Add bytes taken from a file that is here."""
        self._seeded += count
        self._add(count)

    def fetched(self, count: int, now_ms: float) -> None:
        """Add verified bytes from a source."""
        self._fetched += count
        self._add(count)
        if not self._points or now_ms - self._points[-1][0] >= _POINT_MS:
            self._points.append((now_ms, self._fetched))
        while now_ms - self._points[0][0] > _WINDOW_MS:
            self._points.popleft()

    def again(self) -> None:
        """Count what is there anew: the download begins its next turn."""
        self._verified = 0

    def progress(self, now_ms: float, stopped_by: SyncError | None = None) -> Progress:
        """Say where it is."""
        rate = 0.0
        if self._points and now_ms > self._points[0][0] and stopped_by is None:
            begin_ms, begin = self._points[0]
            rate = (self._fetched - begin) * 1000 / (now_ms - begin_ms)
        return Progress(
            total_bytes=self._total,
            verified_bytes=self._most,
            fetched_bytes=self._fetched,
            seeded_bytes=self._seeded,
            bytes_per_s=rate,
            seconds_left=(self._total - self._most) / rate if rate else None,
            stopped_by=stopped_by,
        )

    def _add(self, count: int) -> None:
        self._verified += count
        self._most = max(self._most, self._verified)
