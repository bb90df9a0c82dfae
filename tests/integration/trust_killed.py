"""Kill a refresh before each of its acts on the disk, and look at what is left.

    trust_killed.py DIRECTORY URL BOOTSTRAP COHORT LABEL

DIRECTORY holds a state to begin from. For each act of a refresh, on a copy of it: a process that
kills itself before that act; then one that checks the disk and learns LABEL. Prints how many acts.
Everything is forked from this process, which has no threads, so that an act costs milliseconds.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from appliance.clock import utc_ms
from appliance.config import Refresh
from appliance.config import Store as StoreSettings
from appliance.store import Store
from appliance.sync.fetcher import HttpMetadata
from appliance.sync.generations import Generations
from appliance.sync.remembered import MIGRATIONS, Remembered
from appliance.sync.trust import Trust, Trusted

ACTS = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink"}
ACTS_MAX = 2000
WAIT_S = 20.0
Files = dict[str, bytes]


def refresh(directory: Path, url: str, bootstrap: bytes, cohort: str) -> Trusted:
    store = Store(directory / "state.db", MIGRATIONS, StoreSettings())
    store.wait_open()
    remembered = Remembered(store, store_wait_s=WAIT_S)
    trust = Trust(directory / "tuf", bootstrap, remembered, clock=utc_ms, built_utc_ms=0)
    trusted = trust.refresh(HttpMetadata(url, Refresh(), tls=None), cohort)
    store.close(WAIT_S)
    return trusted


def content(directory: Path) -> Files:
    """Read the current generation."""
    current = Generations(directory / "tuf").current()
    assert current is not None
    return {str(file.relative_to(current)): file.read_bytes() for file in current.rglob("*.json")}


def die_before(act: int, below: Path) -> None:
    """Kill this process before its act number `act` on a file below a directory."""
    left = [act]

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and not int(str(arguments[2])) & (os.O_WRONLY | os.O_RDWR):
            return  # reads leave nothing behind
        if event in ACTS and any(str(one).startswith(str(below)) for one in arguments):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1

    sys.addaudithook(hook)


def forked(work: Callable[[], object]) -> int:
    """Do work in a process of its own; returns how it ended, as os.waitstatus_to_exitcode does."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(directory: Path, url: str, bootstrap: Path, cohort: str, label: str) -> int:
    root = bootstrap.read_bytes()
    old, scratch = content(directory), directory.with_name("scratch")
    fresh: Files = {}

    def killed(act: int) -> None:
        die_before(act, scratch / "tuf")
        refresh(scratch, url, root, cohort)

    def checked() -> None:
        left = content(scratch)
        assert left == old or not any(data == b"" for data in left.values())
        assert left["timestamp.json"] in (old["timestamp.json"], fresh["timestamp.json"])
        assert left == old or left.keys() == fresh.keys()
        trusted = refresh(scratch, url, root, cohort)
        assert [one.release.label for one in trusted.agreement.genuine] == [label]
        assert len(list((scratch / "tuf").glob("gen-*"))) <= 3  # kept, and the new

    shutil.copytree(directory, scratch, symlinks=True)
    assert forked(lambda: refresh(scratch, url, root, cohort)) == 0
    fresh.update(content(scratch))
    for act in range(ACTS_MAX):
        shutil.rmtree(scratch)
        shutil.copytree(directory, scratch, symlinks=True)
        ended = forked(functools.partial(killed, act))
        assert forked(checked) == 0, act
        if ended == 0:
            print(act)  # noqa: T201 # read by the test
            return 0
        assert ended == -signal.SIGKILL, act
    return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4], sys.argv[5]))
