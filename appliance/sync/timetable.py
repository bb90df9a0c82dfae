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
        return self._limit_on(local.weekday(), local.hour * 60 + local.minute)

    def pause_at(self, utc_ms: int) -> str:
        """Say until when a pause lasts; empty where there is none."""
        if self.limit_at(utc_ms) != 0:
            return ""
        utc = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=utc_ms)
        now = utc.astimezone(self._zone)
        minutes = {end % _DAY_MINUTES for one in self._spans for end in (one.begins, one.ends)}
        for day in range(len(_DAYS) + 1):
            weekday = (now.weekday() + day) % len(_DAYS)
            for minute in sorted({0, *minutes}):
                is_past = day == 0 and minute <= now.hour * 60 + now.minute
                if not is_past and self._limit_on(weekday, minute) != 0:
                    name = f" {_DAYS[weekday]}" if day else ""
                    clock = f"{minute // 60:02}:{minute % 60:02}"
                    return f"the timetable pauses downloads until{name} {clock}"
        return "the timetable never lets downloads through"

    def _limit_on(self, weekday: int, minute: int) -> int | None:
        for span in self._spans:
            if span.holds(weekday, minute):
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
