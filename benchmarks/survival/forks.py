"""Run appliances in processes of their own that cost milliseconds, and judge their disks.

What this room does: forks for each run; waits, kills what does not end; asks the oracle; looks for
processes that were left.
What it knows: a process that forks must have no threads; what runs in a fork tells by a file.
What it never does: run an appliance in this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.survival.box import ACKNOWLEDGED, STATE, Around, Plan, live, untouched

LIFE_S, GONE_S = 90.0, 5.0
_ORACLE = Path(__file__).with_name("oracle.py")
_POLL_S = 0.005


def forked(work: Callable[[], None], log: Path) -> int:
    """Do work in a process of its own; returns how it ended, as os.waitstatus_to_exitcode does."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(descriptor, sys.stderr.fileno())
            work()
            code = 0
        except BaseException:  # noqa: BLE001 - a fork ends here, whatever happened
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    limit_s = time.monotonic() + LIFE_S
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > limit_s:
            os.kill(child, signal.SIGABRT)
            limit_s += LIFE_S
        time.sleep(_POLL_S)


def lived(directory: Path, plan: Plan, around: Around = untouched) -> tuple[int, dict[str, Any]]:
    """Run an appliance in a fork; returns how the process ended, and what it said, if it did."""
    said = directory / "said.json"
    said.unlink(missing_ok=True)

    def work() -> None:
        report = asyncio.run(live(directory, plan, around))
        said.write_text(json.dumps(report))

    code = forked(work, directory / "log")
    return code, json.loads(said.read_text()) if said.exists() else {}


def judged(directory: Path, *, settled: bool) -> dict[str, Any]:
    """Ask the oracle."""
    words = ["--settled"] if settled else []
    command = [sys.executable, "-I", "-S", str(_ORACLE), str(directory / STATE)]
    done = subprocess.run(
        [*command, str(directory / ACKNOWLEDGED), *words],
        capture_output=True,
        text=True,
        timeout=LIFE_S,
        check=False,
    )
    if done.returncode:
        return {
            "serving": {},
            "versions": {},
            "under_way": [],
            "faults": [f"the oracle failed: {done.stderr}"],
        }
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def left_processes(directory: Path) -> list[str]:
    """Find processes that have a directory in their command line; waits a little for them to go."""
    limit_s = time.monotonic() + GONE_S
    while True:
        found = list(_with_words(os.fsencode(directory)))
        if not found or time.monotonic() > limit_s:
            return found
        time.sleep(_POLL_S)


def _with_words(words: bytes) -> Iterator[str]:
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (place / "cmdline").read_bytes()
            if words in line and int(place.name) != os.getpid():
                yield line.replace(b"\0", b" ").decode(errors="replace")
