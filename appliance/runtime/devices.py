"""Read what this machine lends to us.

What this room does: counts the cores the process may use (affinity and cgroup quota, v1 and v2),
the physical ones among them, and divides them among workers; finds the NUMA node whose cores a
worker should keep to, how long a quota has held us up, and how much memory may still be taken.
What it knows: where Linux tells it.
What it never does: change an affinity or a limit.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
from pathlib import Path

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_CPUS = Path("/sys/devices/system/cpu")
_MEMORY_PRESSURE = Path("/proc/pressure/memory")
_NODES = Path("/sys/devices/system/node")


def cores_available() -> int:
    """Count the cores this process may use, at least 1: affinity, then the cgroup's quota."""
    cores = len(os.sched_getaffinity(0))
    quota = _quota_v2() or _quota_v1()
    return max(1, min(cores, math.floor(quota))) if quota else cores


def physical_cores(allowed: frozenset[int], root: Path = _CPUS) -> int:
    """Count the physical cores behind these logical ones; siblings share one."""
    cores = set()
    for cpu in allowed:
        path = root / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        try:
            cores.add(frozenset(parse_cpus(path.read_text("ascii"))))
        except (OSError, ValueError):
            cores.add(frozenset({cpu}))
    return max(1, len(cores))


def node_cores(allowed: frozenset[int], threads: int, root: Path = _NODES) -> frozenset[int]:
    """Find the cores of one NUMA node that hold this many threads, so that memory stays near.

    Of several nodes the one with most memory free, which spreads workers. Returns `allowed`
    unchanged where no single node is enough, or the machine has one.
    """
    found: list[tuple[int, frozenset[int]]] = []
    for directory in sorted(root.glob("node[0-9]*")):
        try:
            cores = parse_cpus((directory / "cpulist").read_text("ascii")) & allowed
            memory = (directory / "meminfo").read_text("ascii")
        except (OSError, ValueError):
            return allowed
        if len(cores) >= threads:
            found.append((_free_kib(memory), cores))
    return max(found, key=lambda one: one[0])[1] if found else allowed


def parse_cpus(text: str) -> frozenset[int]:
    """Read Linux's list of CPUs, e.g. "0-3,8".

    Raises:
        ValueError: it is none.
    """
    cpus: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            cpus.update(range(int(first), int(last or first) + 1))
    return frozenset(cpus)


def throttled_ms() -> float:
    """Read how long a cgroup's CPU quota has held us up so far; 0 if there is none."""
    for path in _throttle_files():
        with contextlib.suppress(OSError, ValueError):
            for line in path.read_text("ascii").splitlines():
                name, _, value = line.partition(" ")
                if name == "throttled_usec":
                    return int(value) / 1e3
                if name == "throttled_time":
                    return int(value) / 1e6
    return 0.0


@functools.cache
def _throttle_files() -> tuple[Path, ...]:
    """Name the files that tell it, of our own cgroup first; read often, so looked for once."""
    with contextlib.suppress(OSError):
        own = _own_cgroup("0::")
        places = (_CGROUP_ROOT / own, _CGROUP_ROOT / "cpu,cpuacct", _CGROUP_ROOT / "cpu")
        return tuple(one / "cpu.stat" for one in places if (one / "cpu.stat").exists())[:1]
    return ()


def _free_kib(meminfo: str) -> int:
    """Read "Node 0 MemFree:  123 kB"; 0 if it is not there."""
    for line in meminfo.splitlines():
        words = line.split()
        if "MemFree:" in words:
            return int(words[words.index("MemFree:") + 1])
    return 0


def divide_threads(cores: int, workers: int) -> tuple[int, ...]:
    """Give each worker its threads; their sum is `cores`, but each has at least one."""
    share, rest = divmod(cores, max(1, workers))
    return tuple(max(1, share + (index < rest)) for index in range(workers))


def available_bytes() -> int | None:
    """Find how much memory this process may still take: the machine's and the cgroup's bound."""
    found = [bound for bound in (_machine_bytes(), *_cgroup_bytes()) if bound is not None]
    return min(found, default=None)


def memory_pressure(path: Path = _MEMORY_PRESSURE) -> float:
    """Read in how many percent of ten seconds some task waited for memory (PSI); 0 if unknown."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        some = path.read_text("ascii").splitlines()[0]
        return float(dict(word.split("=") for word in some.split()[1:])["avg10"])
    return 0.0


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
