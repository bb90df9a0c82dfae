"""Decide how many threads evaluate the next step.

What this room does: chooses the counts to use on a calm machine from measured steps; gives cores
up when another process takes them, and takes them back when they are free again.
What it knows: that ggml's threads meet at a barrier after every operation, so that one thread
without a core holds up all of them: two threads that share a core with a busy process are three
to a hundred times slower than one thread with a core of its own.
What it never does: read a clock or the machine: times, readings and predictions are arguments.

The rules, in order:
 1. A core is lost: our threads were ready and could not run (`Reading.denied`), and the steps
    meanwhile took longer than they would have with one thread fewer, by more than
    `GIVE_UP_MS` in all. As many threads go as cores are gone, but never more than half at once.
 2. A core is free: the others leave room for one more thread, or several, all through `hold_ms`.
 3. Perhaps a core is free: they leave room for part of one, all through ten times `hold_ms`. One
    thread comes back as a probe; rule 1 ends a probe that does not pay, at a cost of GIVE_UP_MS.
A thread that is given up soon after it came back doubles `hold_ms`, up to its bound; one that
stayed sets it back. So counts fall at once, and rise at most once per hold.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass

GIVE_UP_MS = 50.0
HOLD_MS = 500.0
HOLD_MS_MAX = 8000.0
PROBE_HOLDS = 10
_STAYED_HOLDS = 4  # a thread that stayed as many holds did not come back too early
_DENIED_MIN = 0.1  # cores; below, the machine is calm and a slow step has another cause
_ROOM_SURE = 0.8  # of a core that others leave: enough for a thread
_ROOM_PERHAPS = 0.35
_OTHERS_ROUNDING = 0.25  # of a core: what others use is measured low while they share with us
_AS_FAST = 1.03  # a count whose steps take as much longer is no slower, within what can be measured
_CALM_OTHERS = 0.2  # cores


class Reason(enum.Enum):
    """Why a count is what it is."""

    CALM = "calm"
    CORE_LOST = "core_lost"
    CORE_FREE = "core_free"
    PROBE = "probe"


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Threads of a step that only decodes, and of one that evaluates prompt tokens too."""

    decode: int
    prefill: int

    def __post_init__(self) -> None:
        assert self.decode >= 1
        assert self.prefill >= 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the machine did since the reading before, in cores.

    cores: what we may use of it. others: what all but this process used of these cores, time
    stolen by a hypervisor included. denied: what our threads were ready to use and did not get,
    per millisecond of a step.
    """

    window_ms: float
    cores: float
    others: float
    denied: float


class ThreadCounts:
    """The counts of now, and what they will be next. One owner; nothing here blocks."""

    def __init__(self, calm: Counts) -> None:
        """Begin with the counts of a calm machine, which are never exceeded."""
        self.calm = calm
        self.reason = Reason.CALM
        self.changes = dict.fromkeys(Reason, 0)
        self._top = max(calm.decode, calm.prefill)
        self._available = self._top
        self._extra_ms = 0.0
        self._lost_ms = 0.0
        self._hold_ms = HOLD_MS
        self._raised_ms = -math.inf
        self._sure_since_ms: float | None = None
        self._perhaps_since_ms: float | None = None

    @property
    def now(self) -> Counts:
        """Read the counts of the next step."""
        return Counts(
            decode=min(self.calm.decode, self._available),
            prefill=min(self.calm.prefill, self._available),
        )

    @property
    def hold_ms(self) -> float:
        """Read how long a core must be free before it is taken back."""
        return self._hold_ms

    def observe(self, step_ms: float, fewer_ms: float) -> None:
        """Take in one step; fewer_ms: the prediction for it with one thread fewer."""
        self._extra_ms += step_ms - fewer_ms

    def read(self, now_ms: float, reading: Reading, used: int) -> bool:
        """Take in a reading, `used`: the most threads of a step since the one before.

        Returns whether the counts have changed.
        """
        extra_ms, self._extra_ms = self._extra_ms, 0.0
        denied = reading.denied >= _DENIED_MIN
        self._lost_ms = max(0.0, self._lost_ms + extra_ms) if denied and used > 1 else 0.0
        if self._lost_ms > GIVE_UP_MS:  # 1
            self._give_up(now_ms, reading, used)
            return True
        return self._take_back(now_ms, reading)

    def _give_up(self, now_ms: float, reading: Reading, used: int) -> None:
        free = math.floor(reading.cores - reading.others + _OTHERS_ROUNDING)
        self._available = max(1, min(used - 1, max(free, used // 2)))
        soon = now_ms - self._raised_ms < _STAYED_HOLDS * self._hold_ms
        self._hold_ms = min(2 * self._hold_ms, HOLD_MS_MAX) if soon else HOLD_MS
        self._lost_ms = 0.0
        self._sure_since_ms = self._perhaps_since_ms = None
        self._count(Reason.CORE_LOST)

    def _take_back(self, now_ms: float, reading: Reading) -> bool:
        if self._available >= self._top:
            return False
        room = reading.cores - reading.others - self._available
        began_ms = now_ms - reading.window_ms
        self._sure_since_ms = _since(self._sure_since_ms, began_ms, held=room >= _ROOM_SURE)
        self._perhaps_since_ms = _since(
            self._perhaps_since_ms, began_ms, held=room >= _ROOM_PERHAPS
        )
        if _lasted(self._sure_since_ms, now_ms, self._hold_ms):  # 2
            threads, reason = math.floor(room + 1.0 - _ROOM_SURE), Reason.CORE_FREE
        elif _lasted(self._perhaps_since_ms, now_ms, PROBE_HOLDS * self._hold_ms):  # 3
            threads, reason = 1, Reason.PROBE
        else:
            return False
        self._available = min(self._top, self._available + threads)
        self._raised_ms = now_ms
        self._sure_since_ms = self._perhaps_since_ms = None
        self._count(reason)
        return True

    def _count(self, reason: Reason) -> None:
        self.reason = reason
        self.changes[reason] += 1


def choose_calm(
    allowed: int, physical: int, decode_ms: Mapping[int, float], prefill_ms: Mapping[int, float],
    others: float,
) -> Counts:  # fmt: skip
    """Choose the counts for a calm machine from the steps measured at the start, by thread count.

    The fewest threads that are as fast as the fastest; `physical` cores, at most what is allowed,
    if other processes disturbed the measurement.
    """
    if others > _CALM_OTHERS or not decode_ms or not prefill_ms:
        threads = max(1, min(allowed, physical))
        return Counts(decode=threads, prefill=threads)
    return Counts(decode=_fewest(decode_ms), prefill=_fewest(prefill_ms))


def candidates(allowed: int, physical: int) -> tuple[int, ...]:
    """Name the counts worth measuring, most first: all, one per core, and half as often."""
    per_core = max(1, min(allowed, physical))
    return tuple(sorted({allowed, per_core, max(1, per_core // 2)}, reverse=True))


def _fewest(step_ms: Mapping[int, float]) -> int:
    best_ms = min(step_ms.values())
    return min(count for count, ms in step_ms.items() if ms <= best_ms * _AS_FAST)


def _since(since_ms: float | None, began_ms: float, *, held: bool) -> float | None:
    if not held:
        return None
    return began_ms if since_ms is None else since_ms


def _lasted(since_ms: float | None, now_ms: float, wanted_ms: float) -> bool:
    return since_ms is not None and now_ms - since_ms >= wanted_ms
