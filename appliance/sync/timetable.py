"""Say how much bandwidth downloads have at a moment. Pure.

What this room does: a week's spans and their limits, read from the configuration once.
What it knows: spans are of the wall clock on site, so a day with 23 or 25 hours is as people
expect; the first span that applies holds.
What it never does: read a clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import msgspec

from appliance.config import Bandwidth, Config

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_MINUTES = 24 * 60


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of some days: minutes from the midnight it belongs to, and the limit in it."""

    days: frozenset[int]
    begins: int
    ends: int  # beyond _DAY_MINUTES where it goes past midnight
    bytes_per_s: int

    def holds(self, weekday: int, minute: int) -> bool:
        """Say whether it applies on a weekday (0 is Monday), `minute` minutes after midnight."""
        today = weekday in self.days and self.begins <= minute < self.ends
        late = minute + _DAY_MINUTES
        return today or ((weekday - 1) % 7 in self.days and self.begins <= late < self.ends)


class Timetable:
    """The limits of a week."""

    def __init__(
        self, spans: Iterable[Bandwidth], *, otherwise: int | None, zone: ZoneInfo | None
    ) -> None:
        """Take the spans; `otherwise`: the limit where none applies, None: without one.

        zone: of the wall clock on site; None: that of this machine.
        """
        self._spans = tuple(_span(one) for one in spans)
        self._otherwise = otherwise
        self._zone = zone

    @classmethod
    def of(cls, config: Config) -> Timetable:
        """Take what the configuration says."""
        zone = ZoneInfo(config.server.time_zone) if config.server.time_zone else None
        return cls(config.bandwidth, otherwise=config.downloads.bytes_per_s or None, zone=zone)

    def limit_at(self, utc_ms: int) -> int | None:
        """Find the limit in bytes per second; 0 is a pause, None no limit."""
        utc = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=utc_ms)
        local = utc.astimezone(self._zone)
        minute = local.hour * 60 + local.minute
        for span in self._spans:
            if span.holds(local.weekday(), minute):
                return span.bytes_per_s
        return self._otherwise


def _span(row: Bandwidth) -> Span:
    begins, ends = _minute(row.begins), _minute(row.ends)
    return Span(
        days=frozenset(_days(row.days)),
        begins=begins,
        ends=ends if ends > begins else ends + _DAY_MINUTES,
        bytes_per_s=row.bytes_per_s,
    )


def _days(text: str) -> Iterable[int]:
    for part in text.split(","):
        first, _, last = part.partition("-")
        begin, end = _DAYS.index(first), _DAYS.index(last or first)
        for number in range((end - begin) % 7 + 1):
            yield (begin + number) % 7


def _minute(text: str) -> int:
    hours, _, minutes = text.partition(":")
    return int(hours) * 60 + int(minutes)
