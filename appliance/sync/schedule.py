"""Know the calendar of a site: when to look for new versions, and when one may be activated.

What this room does: the only importer of APScheduler: its cron triggers say when windows open, its
scheduler when to look.
What it knows: APScheduler lives on the wall clock. Set back, its jobs stand still for as long; set
forward, each missed run is counted through. So jobs are few and minutes apart, missed ones are one,
and `tick` makes them anew when the wall clock and the monotonic one part. Its weekday numbers begin
with Monday as 0 and cron's with Sunday, so weekdays have names here.
What it never does: keep a job over a restart, or act.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

from appliance.config import Deployments as Settings
from appliance.errors import ConfigError

JUMP_MS = 60_000.0
WINDOW_S_MAX = 7 * 86_400
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DURATION = re.compile(r"(\d{1,5})(m|h)")
_FIELDS = 5
_SECONDS = {"m": 60, "h": 3600}


class Calendar:
    """The windows of a site. Its triggers look at nothing but their argument."""

    def __init__(self, settings: Settings) -> None:
        """Read the expressions.

        Raises:
            ConfigError: one is none, or the time zone is unknown.
        """
        self.zone = _zone(settings.time_zone)
        self._windows = tuple(_window(text, self.zone) for text in settings.windows)

    def closed(self, utc_ms: int) -> str:
        """Say when the next window opens; empty: one is open, or there are none."""
        if not self._windows:
            return ""
        now = _moment(utc_ms)
        opens = []
        for trigger, length in self._windows:
            begun = trigger.get_next_fire_time(None, now - length + timedelta(seconds=1))
            if begun is not None and begun <= now:
                return ""
            if begun is not None:
                opens.append(begun)
        if not opens:
            return "no window opens any more"
        return f"the next window opens at {min(opens).isoformat(timespec='minutes')}"


class Schedule:
    """When to look for new versions. `look` is called on the loop, never twice at once."""

    def __init__(
        self, settings: Settings, zone: ZoneInfo, look: Callable[[], Awaitable[None]]
    ) -> None:
        """Read the expressions; nothing runs before `start`.

        Raises:
            ConfigError: one is none.
        """
        self._settings = settings
        self._look = look
        self._crons = [_cron(text, zone, "deployments.refresh_at") for text in settings.refresh_at]
        self._scheduler = AsyncIOScheduler(
            timezone=zone,
            job_defaults={"coalesce": True, "misfire_grace_time": None, "max_instances": 1},
        )
        self._lead_ms: float | None = None

    def start(self) -> None:
        """Begin on the running loop."""
        self._make_jobs()
        self._scheduler.start()

    def stop(self) -> None:
        """End; a look that is under way goes on."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)

    def tick(self, monotonic_ms: float, utc_ms: int) -> bool:
        """Look at the clocks; tells whether the wall clock jumped, and makes all jobs anew then."""
        lead_ms = utc_ms - monotonic_ms
        before, self._lead_ms = self._lead_ms, lead_ms
        if before is None or abs(lead_ms - before) < JUMP_MS:
            return False
        self._make_jobs()
        return True

    def next_looks(self) -> list[datetime]:
        """List when the next looks are."""
        return [job.next_run_time for job in self._scheduler.get_jobs()]

    def _make_jobs(self) -> None:
        self._scheduler.remove_all_jobs()
        every = IntervalTrigger(
            seconds=round(self._settings.refresh_s),
            jitter=round(self._settings.refresh_jitter_s) or None,
            timezone=self._scheduler.timezone,
        )
        for trigger in (every, *self._crons):
            self._scheduler.add_job(self._look, trigger)


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name or "UTC")
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigError(
            key="deployments.time_zone", reason=f"{name!r} is no known time zone"
        ) from error


def _window(text: str, zone: ZoneInfo) -> tuple[CronTrigger, timedelta]:
    expression, _, duration = text.rpartition(" ")
    found = _DURATION.fullmatch(duration)
    seconds = int(found[1]) * _SECONDS[found[2]] if found else 0
    if not 0 < seconds <= WINDOW_S_MAX:
        raise ConfigError(
            key="deployments.windows",
            reason=f"{text!r} must end with how long it is open, such as 90m or 4h, up to 7 days",
        )
    return _cron(expression, zone, "deployments.windows"), timedelta(seconds=seconds)


def _cron(text: str, zone: ZoneInfo, key: str) -> CronTrigger:
    fields = text.split()
    if len(fields) != _FIELDS:
        raise ConfigError(
            key=key, reason=f"{text!r} must have minute, hour, day, month and weekday"
        )
    if any(character.isdigit() for character in fields[-1]):
        raise ConfigError(key=key, reason=f"{text!r}: write weekdays as mon to sun")
    minute, hour, day, month, weekday = fields
    try:
        return CronTrigger(
            minute=minute, hour=hour, day=day, month=month, day_of_week=weekday, timezone=zone
        )
    except ValueError as error:
        raise ConfigError(key=key, reason=f"{text!r}: {error}") from error


def _moment(utc_ms: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=utc_ms)
