"""Look at this machine, one thing at a time.

What this room does: each check reads something and returns one finding: ok, warn or fail, what was
seen, and what to do about it.
What it knows: what the appliance needs to run well.
What it never does: change anything, load the engine in this process, or wait longer than
CHILD_TIMEOUT_S.
"""

from __future__ import annotations

import ctypes
import enum
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import msgspec
import psutil
import pynvml

from appliance.cli import places, show
from appliance.config import Config
from appliance.runtime.devices import available_bytes, cores_available, physical_cores
from appliance.runtime.process import child_environment, exit_cause
from appliance.store.database import sqlite_version

CHILD_TIMEOUT_S = 60.0
CONNECT_TIMEOUT_S = 1.0
MEMORY_BYTES_WARN = 1024**3
DISK_BYTES_WARN = 1024**3
DISK_BYTES_FAIL = 64 * 1024**2
SPARE_FILES = 128
SQLITE_MIN = (3, 51, 3)  # before it two writers can corrupt a WAL (docs/adr/0002)
PYTHON_MIN = (3, 11)
BUILT_UTC_S = 1_790_000_000  # September 2026: no clock is right that shows less
TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
PACKAGES = (
    *("aiohttp", "click", "cryptography", "grpcio", "jinja2", "llama-cpp-python", "llguidance"),
    *("msgspec", "numpy", "nvidia-ml-py", "protobuf", "psutil", "pysqlite3", "rich"),
    "sqlite-utils",
)


class Level(enum.Enum):
    """How bad a finding is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one check saw; `remedy` is empty when there is nothing to do."""

    name: str
    level: Level
    seen: str
    remedy: str = ""


def _found(name: str, seen: str, *, fail: str = "", warn: str = "") -> Finding:
    """Make a finding whose level follows from which remedy is given."""
    level = Level.FAIL if fail else Level.WARN if warn else Level.OK
    return Finding(name=name, level=level, seen=seen, remedy=fail or warn)


def all_findings(state_dir: Path, runtime_dir: Path) -> Iterator[Finding]:
    """Run every check, in the order a person reads them."""
    facts = ask_engine()
    checks: tuple[Callable[[], Finding], ...] = (
        python,
        packages,
        lambda: engine(facts),
        demo_model,
        cpu,
        gpu,
        memory,
        files,
        clock,
        sqlite,
        lambda: disk(state_dir),
        lambda: daemon_socket(runtime_dir),
        rest_port,
    )
    for check in checks:
        yield check()


def python() -> Finding:
    """Check the interpreter."""
    seen = f"Python {platform.python_version()} on {platform.platform()}"
    old = sys.version_info < PYTHON_MIN
    return _found("python", seen, fail="install Python 3.11 or newer" if old else "")


def packages() -> Finding:
    """Check that every package we need is there; show the versions."""
    versions: list[str] = []
    missing: list[str] = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        remedy = f"install {', '.join(missing)}: run 'make' again"
        return _found("packages", f"{len(missing)} are missing", fail=remedy)
    return _found("packages", ", ".join(versions))


class EngineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What llama.cpp says of itself; `fault` if it can't."""

    version: str = ""
    features: str = ""
    gpu: bool = False
    fault: str = ""


def ask_engine() -> EngineFacts:
    """Ask llama.cpp what it is, in a child process: a wrong build may kill whoever loads it."""
    command = [sys.executable] + (
        [] if getattr(sys, "frozen", False) else ["-P", "-m", "appliance"]
    )
    try:
        child = subprocess.run(
            [*command, "engine-facts"],
            env=child_environment(),
            capture_output=True,
            timeout=CHILD_TIMEOUT_S,
            check=False,
        )
        if child.returncode != 0:
            return EngineFacts(fault=f"ends with {exit_cause(child.returncode)}")
        return msgspec.json.decode(child.stdout, type=EngineFacts)
    except subprocess.TimeoutExpired:
        return EngineFacts(fault=f"does not answer within {CHILD_TIMEOUT_S:.0f} s")
    except msgspec.MsgspecError:
        return EngineFacts(fault="answers nonsense")


def engine(facts: EngineFacts) -> Finding:
    """Check that llama.cpp runs on this CPU; show how it was built."""
    if facts.fault:
        remedy = "rebuild llama-cpp-python on this machine: it may be built for another CPU"
        return _found("engine", facts.fault, fail=remedy)
    backend = "with GPU support" if facts.gpu else "for the CPU"
    return _found("engine", f"llama-cpp-python {facts.version} {backend}: {facts.features}")


def demo_model() -> Finding:
    """Check that the embedded model is there."""
    path = places.embedded_file()
    if not path.is_file():
        return _found("demo model", "is missing", warn="reinstall: without it name a --model")
    return _found("demo model", f"{path.name}, {show.size(path.stat().st_size)}")


def cpu() -> Finding:
    """Count the cores we may use, and see whether they are free."""
    usable, total = cores_available(), os.cpu_count() or 1
    load = os.getloadavg()[0]
    physical = physical_cores(frozenset(os.sched_getaffinity(0)))
    shared = f" ({physical} physical)" if physical < usable else ""
    seen = f"{usable} of {total} cores usable{shared}, load {load:.1f}"
    busy = load > 2 * total
    return _found("cpu", seen, warn="other programs keep the cores busy" if busy else "")


def gpu() -> Finding:
    """Ask NVML for GPUs; none is fine."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return _found("gpu", "none: models run on the CPU")
    try:
        names = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            total = pynvml.nvmlDeviceGetMemoryInfo(handle).total
            names.append(f"{pynvml.nvmlDeviceGetName(handle)} ({show.size(total)})")
        driver = pynvml.nvmlSystemGetDriverVersion()
    except pynvml.NVMLError as error:
        return _found("gpu", f"the driver fails: {error}", warn="look at the NVIDIA driver")
    finally:
        pynvml.nvmlShutdown()
    return _found("gpu", f"{', '.join(names) or 'none'}, driver {driver}")


def memory() -> Finding:
    """Read how much memory a model may take; a cgroup's limit counts."""
    total = psutil.virtual_memory().total
    free = available_bytes()
    if free is None:
        return _found("memory", f"{show.size(total)} in all")
    seen = f"{show.size(free)} available to us of {show.size(total)}"
    few = free < MEMORY_BYTES_WARN
    return _found(
        "memory", seen, warn="free some memory, or raise the cgroup's limit" if few else ""
    )


def files() -> Finding:
    """Check that the limit on open files covers the connections that are allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    config = Config()
    need = config.grpc.calls_max + config.rest.connections_max + SPARE_FILES
    seen = f"{soft} open files allowed (at most {hard})"
    return _found("files", seen, warn=f"ulimit -n {need}" if soft < need else "")


def clock() -> Finding:
    """Check that the clocks run, show a possible time, and are kept by somebody."""
    first, second = time.monotonic_ns(), time.monotonic_ns()
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    if second < first:
        return _found(
            "clock", f"{now}, the monotonic clock ran backwards", fail="look at the kernel"
        )
    if time.time() < BUILT_UTC_S:
        return _found("clock", f"{now}, which is too early", fail="set the clock")
    state = _clock_state()
    if state is None:
        return _found("clock", f"{now}; who keeps it can't be told")
    if state == TIME_ERROR:
        remedy = "keep it with chrony or systemd-timesyncd"
        return _found("clock", f"{now}, not synchronised", warn=remedy)
    return _found("clock", f"{now}, synchronised")


def _clock_state() -> int | None:
    """Read the kernel's clock state (adjtimex(2) with modes 0 changes nothing)."""
    with suppress(OSError, AttributeError):
        state: int = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))
        return state if state >= 0 else None
    return None


def sqlite() -> Finding:
    """Check the version of the SQLite we bring along."""
    version = sqlite_version()
    old = tuple(int(part) for part in version.split(".")) < SQLITE_MIN
    remedy = "install a newer pysqlite3: this SQLite can corrupt a database"
    return _found("sqlite", version, fail=remedy if old else "")


def disk(state_dir: Path) -> Finding:
    """Check the file system of the state directory: room, and whether we may write."""
    place = state_dir
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK | os.X_OK):
        remedy = "choose another with --state-dir, or change its owner"
        return _found("disk", f"{state_dir}: this user may not write in {place}", fail=remedy)
    free = shutil.disk_usage(place).free
    seen = f"{state_dir}: {show.size(free)} free"
    if free < DISK_BYTES_FAIL:
        return _found("disk", seen, fail="free some room")
    return _found("disk", seen, warn="free some room" if free < DISK_BYTES_WARN else "")


def daemon_socket(runtime_dir: Path) -> Finding:
    """See whether a daemon answers on its socket."""
    path = Path(places.socket_address(runtime_dir).removeprefix("unix:"))
    if not path.exists():
        return _found("socket", f"{path}: no daemon runs here")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(CONNECT_TIMEOUT_S)
        try:
            probe.connect(str(path))
        except PermissionError:
            remedy = "run this as the daemon's user, or join the group of the socket"
            return _found("socket", f"{path}: this user may not talk to it", warn=remedy)
        except OSError:
            return _found("socket", f"{path}: left over, nobody answers; the next start removes it")
    return _found("socket", f"{path}: a daemon answers")


def rest_port() -> Finding:
    """See whether the REST port is free, or who might have it."""
    address = Config().rest.tcp
    host, _, port = address.rpartition(":")
    with socket.socket(socket.AF_INET) as probe:
        probe.settimeout(CONNECT_TIMEOUT_S)
        if probe.connect_ex((host, int(port))) != 0:
            return _found("rest", f"{address}: free")
    return _found("rest", f"{address}: in use, by a daemon or by another program")
