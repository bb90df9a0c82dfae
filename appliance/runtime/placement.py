"""Decide how near to serving a standby may be kept, for the memory there is. Pure.

What this room does: the highest level that fits; giving levels up, one at a time, when memory gets
short; rising again when it has sufficed for a while.
What it knows: what each level takes, and what the machine has; all are arguments.
What it never does: read the machine or a clock, or load.

The rules, in order:
 1. Memory is short (less is available than is to stay free, or tasks waited for memory longer than
    they may): the level below. Locked memory is skipped where none may be locked.
 2. A higher level fits, and memory was not short, for all of `rise_ms`: the highest that fits. At
    first sight there is no wait.
 3. Otherwise the level stays.

| level   | takes beside what is taken already                                   |
|---------|----------------------------------------------------------------------|
| LOADED  | the weights and what its worker had as its own                       |
| LOCKED  | the weights, out of what may be locked                               |
| CACHED  | the weights, which the kernel may take back                          |
| DISK    | nothing                                                              |
"""

from __future__ import annotations

import math

from appliance.domain import StandbyLevel, Value

_MIB = 1024 * 1024


class Need(Value):
    """What a version takes. own_bytes: of a worker, beside the weights."""

    weights_bytes: int
    own_bytes: int


class Room(Value):
    """What the machine has now. pressure_percent: of ten seconds, waited for memory (PSI)."""

    available_bytes: int
    lockable_bytes: int
    pressure_percent: float


class Bounds(Value):
    """What the operator says of it."""

    level_max: StandbyLevel
    free_bytes: int
    pressure_percent: float
    rise_ms: float


class Decision(Value):
    """The level to hold, and why not another one."""

    level: StandbyLevel
    reason: str


class Placement:
    """The level of one standby over time."""

    def __init__(self, bounds: Bounds) -> None:
        """Begin on disk, having seen nothing."""
        self._bounds = bounds
        self._enough_since_ms = -math.inf

    def decide(self, now_ms: float, now: StandbyLevel, need: Need, room: Room) -> Decision:
        """Say which level to hold next. `now` is the one held; PROVEN counts as LOADED."""
        now = min(now, StandbyLevel.LOADED, key=lambda level: level.rank)
        short = self._short(room)
        if short:  # 1
            self._enough_since_ms = now_ms
            return Decision(level=self._below(now, need, room), reason=short)
        best, reason = self._highest(now, need, room)
        if best.rank < now.rank:  # the operator allows less than he did
            return Decision(level=best, reason=reason)
        if best.rank > now.rank and now_ms - self._enough_since_ms >= self._bounds.rise_ms:  # 2
            return Decision(level=best, reason=reason)
        if best.rank > now.rank:
            reason = "memory suffices again, but not for long enough yet"
        return Decision(level=now, reason=reason)  # 3

    def _short(self, room: Room) -> str:
        bounds = self._bounds
        if room.available_bytes < bounds.free_bytes:
            return (
                f"{room.available_bytes // _MIB} MiB are available, "
                f"{bounds.free_bytes // _MIB} MiB are to stay free"
            )
        if room.pressure_percent > bounds.pressure_percent:
            return f"tasks wait for memory {room.pressure_percent:g} % of the time"
        return ""

    def _below(self, now: StandbyLevel, need: Need, room: Room) -> StandbyLevel:
        """Name the level below: what is loaded gives its own memory up and keeps its weights."""
        levels = [level for level in StandbyLevel if level.rank < now.rank]
        if (
            levels
            and levels[-1] is StandbyLevel.LOCKED
            and need.weights_bytes > room.lockable_bytes
        ):
            levels.pop()
        return levels[-1] if levels else StandbyLevel.DISK

    def _highest(self, now: StandbyLevel, need: Need, room: Room) -> tuple[StandbyLevel, str]:
        """Name the highest level that fits, and what keeps it from being higher."""
        bounds, reason = self._bounds, ""
        spare = room.available_bytes - bounds.free_bytes
        held = need.weights_bytes if now.rank >= StandbyLevel.LOCKED.rank else 0
        for level in (StandbyLevel.LOADED, StandbyLevel.LOCKED, StandbyLevel.CACHED):
            own = need.own_bytes if level is StandbyLevel.LOADED else 0
            missing = need.weights_bytes + own - held - spare
            if level.rank > bounds.level_max.rank:
                reason = reason or "the configuration allows no higher level"
            elif now.rank >= level.rank:
                return level, reason
            elif level is StandbyLevel.LOCKED and need.weights_bytes > room.lockable_bytes:
                reason = reason or f"{room.lockable_bytes // _MIB} MiB may be locked"
            elif missing > 0:
                reason = reason or f"{level.value} would take {-(-missing // _MIB)} MiB too much"
            else:
                return level, reason
        return StandbyLevel.DISK, reason
