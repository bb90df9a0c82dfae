"""Read how much of this machine others use, from inside a worker.

What this room does: reads, between steps, the processor time that others had on the cores we may
use, and how long our own computing threads were ready and could not run.
What it knows: /proc/stat, the wait for a core in a thread's own schedstat, throttling by a
cgroup's quota; that a reading must cost next to nothing: the next one waits 200 times as long as
this one kept a core.
What it never does: decide (that is `threads`), or change anything.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from appliance.runtime.devices import throttled_ms
from appliance.runtime.threads import Reading

_WINDOW_MS = 50.0
_COST_SHARE = 200  # a reading may take a 200th of the time between two
_STAT_BYTES = 256 * 1024
_TICK_MS = 1000.0 / os.sysconf("SC_CLK_TCK")
_BUSY_FIELDS = (0, 1, 2, 5, 6, 7)  # user, nice, system, irq, softirq, steal
_STEAL_FIELD = 7
_NS_PER_MS = 1e6


def open_contention(clock: Callable[[], float]) -> Contention | None:
    """Read the cores this process may use; None on a machine that does not tell."""
    with contextlib.suppress(OSError):
        return Contention(frozenset(os.sched_getaffinity(0)), clock)
    return None


class Contention:
    """The readings of one worker. Used by the thread that decodes."""

    def __init__(self, cores: frozenset[int], clock: Callable[[], float]) -> None:
        """Read the processors of `cores` from now on; `clock` reads monotonic milliseconds.

        Raises:
            OSError: the machine does not tell.
        """
        self._cores = cores
        self._clock = clock
        self._stat = os.open("/proc/stat", os.O_RDONLY | os.O_CLOEXEC)
        self._waits: dict[str, float] = {}
        self._window_ms = _WINDOW_MS
        self._at_ms = clock()
        self._used_ms, self._stolen_ms = self._processors()
        self._own_ms = _own_ms()
        self._denied_ms()
        self._throttled_ms = throttled_ms()

    def close(self) -> None:
        """Release the file."""
        os.close(self._stat)

    def due(self, now_ms: float) -> bool:
        """Say whether the time since the last reading is worth another."""
        return now_ms - self._at_ms >= self._window_ms

    def read(self, busy_ms: float) -> Reading:
        """Read what happened since the last reading, of which `busy_ms` were steps.

        Raises:
            OSError: the machine does not tell any more.
        """
        began_ms, began_cpu_s = self._clock(), time.thread_time()
        window_ms = max(began_ms - self._at_ms, 1.0)
        used_ms, stolen_ms = self._processors()
        own_ms, throttle_ms = _own_ms(), throttled_ms()
        others_ms = (used_ms - self._used_ms) - (own_ms - self._own_ms)
        denied_ms = self._denied_ms() + (stolen_ms - self._stolen_ms)
        denied_ms += throttle_ms - self._throttled_ms
        self._used_ms, self._stolen_ms, self._own_ms = used_ms, stolen_ms, own_ms
        self._throttled_ms = throttle_ms
        self._at_ms = began_ms
        cost_ms = (time.thread_time() - began_cpu_s) * 1000.0
        self._window_ms = max(_WINDOW_MS, _COST_SHARE * cost_ms)
        return Reading(
            window_ms=window_ms,
            cores=float(len(self._cores)),
            others=max(0.0, others_ms / window_ms),
            denied=denied_ms / min(max(busy_ms, 1.0), window_ms),
        )

    def _processors(self) -> tuple[float, float]:
        """Sum the busy and the stolen milliseconds of our cores since the machine started."""
        used, stolen = 0, 0
        for line in os.pread(self._stat, _STAT_BYTES, 0).split(b"\n"):
            if not line.startswith(b"cpu"):
                break
            name, *fields = line.split()
            if name[3:] and int(name[3:]) in self._cores:
                used += sum(int(fields[index]) for index in _BUSY_FIELDS)
                stolen += int(fields[_STEAL_FIELD])
        return used * _TICK_MS, stolen * _TICK_MS

    def _denied_ms(self) -> float:
        """Sum how long our computing threads waited for a core since the last call.

        They are all threads of the process but Python's own other ones.
        """
        python = {str(thread.native_id) for thread in threading.enumerate()}
        python.discard(str(threading.get_native_id()))
        waits: dict[str, float] = {}
        for task in Path("/proc/self/task").iterdir():
            if task.name not in python:
                with contextlib.suppress(OSError):  # it has ended
                    wait_ns = int((task / "schedstat").read_bytes().split()[1])
                    waits[task.name] = wait_ns / _NS_PER_MS
        denied_ms = sum(wait - self._waits.get(key, wait) for key, wait in waits.items())
        self._waits = waits
        return denied_ms


def _own_ms() -> float:
    return time.process_time() * 1000.0
