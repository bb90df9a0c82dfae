"""Read what this machine lends to us.

What this room does: counts the cores the process may use (affinity and cgroup quota, v1 and v2),
and divides them among workers; finds how much memory may still be taken.
What it knows: where Linux tells it.
What it never does: change an affinity or a limit.
"""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

_CGROUP_ROOT = Path("/sys/fs/cgroup")


def cores_available() -> int:
    """Count the cores this process may use, at least 1: affinity, then the cgroup's quota."""
    cores = len(os.sched_getaffinity(0))
    quota = _quota_v2() or _quota_v1()
    return max(1, min(cores, math.floor(quota))) if quota else cores


def divide_threads(cores: int, workers: int) -> tuple[int, ...]:
    """Give each worker its threads; their sum is `cores`, but each has at least one."""
    share, rest = divmod(cores, max(1, workers))
    return tuple(max(1, share + (index < rest)) for index in range(workers))


def available_bytes() -> int | None:
    """Find how much memory this process may still take: the machine's and the cgroup's bound."""
    found = [bound for bound in (_machine_bytes(), *_cgroup_bytes()) if bound is not None]
    return min(found, default=None)


def _quota_v2() -> float:
    """Read cpu.max ("max 100000" or "150000 100000") of our own cgroup; 0 if there is none."""
    with contextlib.suppress(OSError, ValueError):
        own = _own_cgroup("0::")
        for directory in (_CGROUP_ROOT / own, _CGROUP_ROOT):
            path = directory / "cpu.max"
            if path.exists():
                quota, period = path.read_text("ascii").split()
                return 0.0 if quota == "max" else int(quota) / int(period)
    return 0.0


def _quota_v1() -> float:
    """Read cpu.cfs_quota_us over cpu.cfs_period_us; 0 if there is none."""
    with contextlib.suppress(OSError, ValueError):
        for name in ("cpu,cpuacct", "cpu"):
            directory = _CGROUP_ROOT / name
            if (directory / "cpu.cfs_quota_us").exists():
                quota = int((directory / "cpu.cfs_quota_us").read_text("ascii"))
                period = int((directory / "cpu.cfs_period_us").read_text("ascii"))
                return max(0.0, quota / period)
    return 0.0


def _own_cgroup(prefix: str) -> str:
    for line in Path("/proc/self/cgroup").read_text("utf-8").splitlines():
        if line.startswith(prefix):
            return line.removeprefix(prefix).lstrip("/")
    return ""


def _machine_bytes() -> int | None:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cgroup_bytes() -> list[int | None]:
    roots = ("/sys/fs/cgroup", "/sys/fs/cgroup/memory")
    names = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")
    return [
        _cgroup_room(Path(root) / limit, Path(root) / usage)
        for root, (limit, usage) in zip(roots, names, strict=True)
    ]


def _cgroup_room(limit_file: Path, usage_file: Path) -> int | None:
    try:
        limit = limit_file.read_text(encoding="ascii").strip()
        usage = int(usage_file.read_text(encoding="ascii"))
        stat = (limit_file.parent / "memory.stat").read_text(encoding="ascii")
    except OSError:
        return None
    if limit == "max" or int(limit) >= 2**60:
        return None
    pages = dict(line.split() for line in stat.splitlines())
    cached = int(pages.get("total_inactive_file", pages.get("inactive_file", "0")))
    return max(0, int(limit) - usage + cached)
