"""Decide how many threads evaluate the next step.

What this room does: chooses the counts to use on a calm machine from measured steps; gives cores
up when another process takes them, and takes them back when they are free again.
What it knows: that ggml's threads meet at a barrier after every operation, so that one thread
without a core holds up all of them: steps of one row, with a barrier every few microseconds, are
three to a hundred times slower with two threads that share a core with a busy process than with
one that has a core of its own. Steps of many rows are not: there the work between two barriers is
long enough to be shared out anew. So each kind of step has a count of its own.
What it never does: read a clock or the machine: times, readings and predictions are arguments.

The rules, in order:
 1. A core is lost: our threads were ready and could not run (`Reading.denied`), and the steps
    meanwhile took longer than they would have with one thread fewer, by more than
    `GIVE_UP_MS` in all. As many threads go as cores are gone, but never more than half at once.
 2. It did not pay: the price of a step with fewer threads is of a calm machine, or old. The first
    `TRIAL_MS` of steps with fewer are held against the same prices as those before; if they are
    no better, the threads come back at once, and the next loss must be twice as large.
 3. A core is free: the others leave room for one more thread, or several, all through `hold_ms`.
 4. Perhaps a core is free: they leave room for part of one, all through ten times `hold_ms`. One
    thread comes back as a probe; rule 1 ends a probe that does not pay, at a cost of GIVE_UP_MS.
A thread that is given up soon after it came back doubles `hold_ms`, up to its bound; one that
stayed sets it back. So counts fall at once, and rise at most once per hold.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

GIVE_UP_MS = 50.0
HOLD_MS = 500.0
HOLD_MS_MAX = 8000.0
PROBE_HOLDS = 10
TRIAL_MS = 300.0
TRIAL_STEPS = 4
GIVE_UP_MS_MAX = 1600.0
_STAYED_HOLDS = 4  # a thread that stayed as many holds did not come back too early
_DENIED_MIN = 0.1  # cores; below, the machine is calm and a slow step has another cause
_ROOM_SURE = 0.8  # of a core that others leave: enough for a thread
_ROOM_PERHAPS = 0.35
_OTHERS_ROUNDING = 0.25  # of a core: what others use is measured low while they share with us
_AS_FAST = 1.03  # a count whose steps take as much longer is no slower, within what can be measured
_CALM_OTHERS = 0.2  # cores
_SMOOTH_MS = 150.0  # processors are accounted in ticks of 10 ms: a single reading is coarse


class Reason(enum.Enum):
    """Why a count is what it is."""

    CALM = "calm"
    CORE_LOST = "core_lost"
    NO_GAIN = "no_gain"
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


@dataclass(slots=True)
class _Steps:
    """Some steps: how long they took, and would have with one thread fewer, as it was priced."""

    step_ms: float = 0.0
    fewer_ms: float = 0.0
    count: int = 0

    def add(self, step_ms: float, fewer_ms: float) -> None:
        self.step_ms += step_ms
        self.fewer_ms += fewer_ms
        self.count += 1

    def joined(self, other: _Steps) -> _Steps:
        """Add what came later; a gain does not make up for more than was lost."""
        joined = _Steps(
            self.step_ms + other.step_ms, self.fewer_ms + other.fewer_ms, self.count + other.count
        )
        return joined if joined.extra_ms > 0.0 else _Steps()

    @property
    def extra_ms(self) -> float:
        return self.step_ms - self.fewer_ms

    @property
    def ratio(self) -> float:
        return self.step_ms / max(self.fewer_ms, 1e-3)


@dataclass(slots=True)
class _Trial:
    """Threads that were given up, the steps that told so, and those since."""

    threads: int
    before: _Steps
    since: _Steps = field(default_factory=_Steps)

    @property
    def is_over(self) -> bool:
        return self.since.step_ms >= TRIAL_MS and self.since.count >= TRIAL_STEPS


class ThreadCount:
    """The count of now for one kind of step, and what it will be next. Nothing here blocks."""

    def __init__(self, calm: int) -> None:
        """Begin with the count of a calm machine, which is never exceeded."""
        assert calm >= 1
        self.now = calm
        self.reason = Reason.CALM
        self.changes = dict.fromkeys(Reason, 0)
        self._calm = calm
        self._steps = _Steps()
        self._lost = _Steps()
        self._trial: _Trial | None = None
        self._give_up_ms = GIVE_UP_MS
        self._hold_ms = HOLD_MS
        self._raised_ms = -math.inf
        self._others = 0.0
        self._sure_since_ms: float | None = None
        self._perhaps_since_ms: float | None = None

    @property
    def hold_ms(self) -> float:
        """Read how long a core must be free before it is taken back."""
        return self._hold_ms

    @property
    def on_trial(self) -> bool:
        """Tell whether threads were just given up, and it is open whether that pays."""
        return self._trial is not None

    def observe(self, step_ms: float, fewer_ms: float) -> None:
        """Take in one step; fewer_ms: the prediction for it with one thread fewer."""
        self._steps.add(step_ms, fewer_ms)

    def judge(self, step_ms: float, fewer_ms: float) -> None:
        """Take in one step on trial; fewer_ms: as `observe` was told before the trial began."""
        assert self._trial is not None, "nothing is on trial"
        self._trial.since.add(step_ms, fewer_ms)

    def read(self, now_ms: float, reading: Reading) -> bool:
        """Take in a reading of the time since the one before; returns whether the count changes."""
        steps, self._steps = self._steps, _Steps()
        if self._trial is not None and self._trial.is_over:
            return self._end_trial(self._trial, now_ms)
        denied = reading.denied >= _DENIED_MIN
        self._lost = self._lost.joined(steps) if denied else _Steps()
        if self._lost.extra_ms > self._give_up_ms and self.now > 1:  # 1
            self._give_up(now_ms, reading)
            return True
        return self._take_back(now_ms, reading)

    def _give_up(self, now_ms: float, reading: Reading) -> None:
        free = math.floor(reading.cores - reading.others + _OTHERS_ROUNDING)
        self._trial = _Trial(threads=self.now, before=self._lost)
        self.now = max(1, min(self.now - 1, max(free, self.now // 2)))
        soon = now_ms - self._raised_ms < _STAYED_HOLDS * self._hold_ms
        self._hold_ms = min(2 * self._hold_ms, HOLD_MS_MAX) if soon else HOLD_MS
        self._lost = _Steps()
        self._sure_since_ms = self._perhaps_since_ms = None
        self._count(Reason.CORE_LOST)

    def _end_trial(self, trial: _Trial, now_ms: float) -> bool:
        self._trial = None
        if trial.since.ratio < trial.before.ratio:
            self._give_up_ms = GIVE_UP_MS
            return False
        self.now = trial.threads  # 2
        self._give_up_ms = min(2 * self._give_up_ms, GIVE_UP_MS_MAX)
        self._raised_ms = now_ms
        self._count(Reason.NO_GAIN)
        return True

    def _take_back(self, now_ms: float, reading: Reading) -> bool:
        weight = 1.0 - math.exp(-reading.window_ms / _SMOOTH_MS)
        self._others += weight * (reading.others - self._others)
        if self.now >= self._calm:
            return False
        room = reading.cores - self._others - self.now
        began_ms = now_ms - reading.window_ms
        self._sure_since_ms = _since(self._sure_since_ms, began_ms, held=room >= _ROOM_SURE)
        self._perhaps_since_ms = _since(
            self._perhaps_since_ms, began_ms, held=room >= _ROOM_PERHAPS
        )
        if _lasted(self._sure_since_ms, now_ms, self._hold_ms):  # 3
            threads, reason = math.floor(room + 1.0 - _ROOM_SURE), Reason.CORE_FREE
        elif _lasted(self._perhaps_since_ms, now_ms, PROBE_HOLDS * self._hold_ms):  # 4
            threads, reason = 1, Reason.PROBE
        else:
            return False
        self.now = min(self._calm, self.now + threads)
        self._trial = None
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
