"""Let a worker run only on cores that nobody else wants, and take that back.

What this room does: sets the scheduling policy of all threads of a process.
What it knows: SCHED_IDLE (sched(7)) gives way at once, which a low nice value does not; a process
without CAP_SYS_NICE or RLIMIT_NICE may take it but never leave it again, so it is asked first.
What it never does: decide who yields.
"""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

_CAP_SYS_NICE = 1 << 23  # linux/capability.h
_NICE_0 = 20  # RLIMIT_NICE counts down from 20


def may_return() -> bool:
    """Tell whether this process may give a child its share of the cores back again."""
    if resource.getrlimit(resource.RLIMIT_NICE)[0] >= _NICE_0:
        return True
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text("ascii").splitlines():
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) & _CAP_SYS_NICE)
    return False


def set_yielding(pid: int, *, yields: bool) -> bool:
    """Have every thread of a process yield to all others, or not; tell whether all do.

    Threads made later inherit it. False where the process has gone or it is not permitted.
    """
    policy = os.SCHED_IDLE if yields else os.SCHED_OTHER
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):  # that thread has ended
                os.sched_setscheduler(int(task.name), policy, os.sched_param(0))
    except OSError:
        return False
    return True
