"""Take the hub away for months, move the clock on, restart the appliance now and then.

What this room does: runs `months` under libfaketime; a day at a time asks who serves; in the end
gives the hub back, which has a new version, and waits until that serves.
What it knows: half of the restarts are kills. The metadata run out on the way, and say so.
What it never does: tell the appliance to look.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.survival import hub
from benchmarks.survival.forks import judged

DAYS, RESTART_EVERY = 60, 6
_LIBRARIES = ("libfaketimeMT.so.1", "libfaketime.so.1")
_DAY_MS = 86_400_000
_ANSWER_S, _PAUSE_S = 60.0, 0.1


@dataclass(slots=True)
class Outage:
    """What came of it. not_served: days on which another version than the old one was served."""

    days: int = 0
    restarts: int = 0
    not_served: int = 0
    stale_days: int = 0
    caught_up: bool = False
    faults: list[str] = field(default_factory=list)


class Clocked:
    """An appliance under a clock that we move."""

    def __init__(self, place: Path, url: str, root: Path) -> None:
        self._place = place
        self._command = [sys.executable, "-m", "benchmarks.survival.months", str(place / "box")]
        self._command += [url, str(root)]
        self._clock = place / "clock"
        self._minutes = 0
        self.turn_to(0)
        self._start()

    def turn_to(self, day: int) -> None:
        """Move the clock on; a little further each time, so that it always jumps."""
        self._minutes += 2
        fresh = self._clock.with_suffix(".new")
        fresh.write_text(f"+{day * 86_400 + self._minutes * 60}\n")
        fresh.rename(self._clock)

    def ask(self) -> dict[str, Any]:
        """Ask who serves."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("?\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            log = (self._place / "log").read_text()[-1000:]
            raise RuntimeError(f"the appliance ended: {log}")
        found: dict[str, Any] = json.loads(line)
        return found

    def wait_for(self, name: str, value: object) -> dict[str, Any]:
        """Ask until it says so, or for a minute."""
        limit_s = time.monotonic() + _ANSWER_S
        while (said := self.ask())[name] != value and time.monotonic() < limit_s:
            time.sleep(_PAUSE_S)
        return said

    def restart(self, *, kill: bool) -> None:
        """End it, cleanly or not, and start it again."""
        self.end(kill=kill)
        self._start()

    def end(self, *, kill: bool) -> None:
        """End it."""
        if kill:
            self._process.send_signal(signal.SIGKILL)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait(_ANSWER_S)

    def _start(self) -> None:
        faked = {
            "LD_PRELOAD": str(library()),
            "FAKETIME_TIMESTAMP_FILE": str(self._clock),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }
        with (self._place / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | faked,
            )


def library() -> Path:
    """Find libfaketime. Raises RuntimeError where it is not."""
    program = shutil.which("faketime")
    folders = [Path("/usr/lib"), Path("/usr/local/lib")]
    for folder in folders if program else ():
        for name in _LIBRARIES:
            for found in folder.glob(f"**/{name}"):
                return found
    raise RuntimeError("libfaketime is not here: a clock can't be moved without it")


def suffer(place: Path, days: int) -> Outage:
    """Live through it; blocks for a minute or so."""
    outage = Outage()
    place.mkdir()
    repository = place / "hub"
    here = hub.Hub(repository)
    here.assign("1", hub.QUICK)
    root = place / "root.json"
    root.write_bytes(here.bootstrap)
    box: Clocked | None = None
    try:
        with hub.serving(repository) as url:
            port = int(url.rpartition(":")[2])
            box = Clocked(place, f"{url}/", root)
            box.wait_for("serves", here.digests["1"])
        for day in range(1, days + 1):
            _survive(box, outage, here, day)
        here.assign("2", hub.QUICK, later_ms=days * _DAY_MS)
        with hub.serving(repository, port):
            box.turn_to(days)
            said = box.wait_for("serves", here.digests["2"])
            outage.caught_up = said["serves"] == here.digests["2"] and not said["is_stale"]
            if not outage.caught_up:
                outage.faults.append(f"did not catch up: {said}")
    finally:
        if box is not None:
            box.end(kill=False)
    outage.faults += judged(place / "box", settled=True)["faults"]
    return outage


def _survive(box: Clocked, outage: Outage, here: hub.Hub, day: int) -> None:
    """Let a day pass."""
    box.turn_to(day)
    if day % RESTART_EVERY == 0:
        box.restart(kill=day // RESTART_EVERY % 2 == 0)
        outage.restarts += 1
        box.wait_for("serves", here.digests["1"])
    said = box.ask()
    outage.days += 1
    outage.stale_days += said["is_stale"]
    if said["serves"] != here.digests["1"]:
        outage.not_served += 1
        outage.faults.append(f"day {day}: {said}")
