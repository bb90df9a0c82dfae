"""Kill an appliance at every transaction, act and change of its disk, and start it again.

What this program does: one life without a kill, which counts the points; then the same life killed
at each of them; the disk as it was left, the restart and the disk at rest are judged.
What it knows: a seed decides whether the restart is killed as well, and where, and whether it comes
after a reboot: seed 0 is killed once and restarts plainly.
What it never does: let one case learn from another: each begins with a copy of a disk.

Usage: python -m benchmarks.survival.kills WORLD URL SCENE SEED ACTS CHANGES; prints a line of JSON.
Every so many points about acts and transactions are taken, and every so many changes of the disk; 0
takes none.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.survival.box import STATE, Act
from benchmarks.survival.forks import lived
from benchmarks.survival.judging import Judge
from benchmarks.survival.scenes import copy_disk

CHANGES = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link"}
_ACTS = ("before ", "after ")
REBOOTS = 2  # the seed whose restarts come after a power failure


class Points:
    """Counts what happens in a life, and ends the process at one point. `names`: what was there."""

    def __init__(self, kill_at: int, below: Path, names: Path | None = None) -> None:
        self._count = 0
        self._kill_at = kill_at
        self._below = str(below)
        self._names = names
        self._lock = threading.Lock()

    def around(self, name: str, act: Act) -> Act:
        """Lay a point before and one after an act."""

        async def wrapped(*arguments: Any) -> Any:  # noqa: ANN401 - whatever the act takes and gives
            self._point(f"before {name}")
            result = await act(*arguments)
            self._point(f"after {name}")
            return result

        return wrapped

    def watch_disk(self) -> None:
        """Lay a point before each change below a directory, for the rest of this process."""

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            if event not in CHANGES:
                return
            here = [str(one) for one in arguments if str(one).startswith(self._below)]
            if not here:
                return
            if event == "open" and not int(str(arguments[2])) & (os.O_WRONLY | os.O_RDWR):
                return  # reads leave nothing behind
            self._point(f"{event} of {Path(here[-1]).relative_to(self._below)}")

        sys.addaudithook(hook)

    def _point(self, name: str) -> None:
        with self._lock:
            self._count += 1
            if self._count == self._kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if self._names is not None:
                descriptor = os.open(self._names, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                os.write(descriptor, name.encode() + b"\n")
                os.close(descriptor)


@dataclass(slots=True)
class Cases:
    """The cases of one scene and one seed."""

    judge: Judge
    seed: int
    cases: int = 0
    kills: int = 0
    names: list[str] = field(default_factory=list)

    def run(self, acts_every: int, changes_every: int) -> None:
        """Run every so many points of the scene, from one that the seed chooses."""
        place = self.judge.world / f"{self.judge.name}-{self.seed}"
        copy_disk(self.judge.world, self.judge.url, self.judge.scene.base, place)
        listed = self.judge.world / f"{self.judge.name}-{self.seed}.names"
        code, said = self._life(place, 0, later=1, names=listed)
        self.judge.rested(place, f"{self.judge.name}, not killed", code, said)
        self.names = listed.read_text().splitlines()
        shutil.rmtree(place)
        draw = random.Random(f"{self.judge.name} {self.seed}")
        numbered = list(enumerate(self.names, 1))
        acts = [number for number, name in numbered if name.startswith(_ACTS)]
        changes = [number for number, name in numbered if not name.startswith(_ACTS)]
        for points, every in ((acts, acts_every), (changes, changes_every)):
            for point in points[draw.randrange(every) :: every] if every else ():
                self._case(place, point, draw)

    def _case(self, place: Path, point: int, draw: random.Random) -> None:
        copy_disk(self.judge.world, self.judge.url, self.judge.scene.base, place)
        title = f"{self.judge.name}, seed {self.seed}, point {point} ({self.names[point - 1]})"
        self.cases += 1
        code, _ = self._life(place, point, later=1)
        self._note_kill(place, code, title)
        if self.seed:
            again = draw.randrange(1, len(self.names))
            title += f", again at {again}"
            code, _ = self._life(place, again, later=2)
            self._note_kill(place, code, title)
        code, said = self._life(place, 0, later=3)
        self.judge.rested(place, title, code, said)
        shutil.rmtree(place)

    def _life(
        self, place: Path, kill_at: int, *, later: int, names: Path | None = None
    ) -> tuple[int, dict[str, Any]]:
        points = Points(kill_at, place / STATE, names)
        boot_id = f"boot-{later}" if self.seed == REBOOTS else "boot"
        plan = self.judge.plan(boot_id, later)

        def around(name: str, act: Act) -> Act:
            if name == "save":  # the first of all that is wrapped, so once, and in the fork
                points.watch_disk()
            return points.around(name, act)

        return lived(place, plan, around)

    def _note_kill(self, place: Path, code: int, title: str) -> None:
        if code == -signal.SIGKILL:
            self.kills += 1
            self.judge.left(place, title)


def main(judge: Judge, seed: int, acts: int, changes: int) -> None:
    """Run the cases and print what came of them."""
    cases = Cases(judge, seed)
    cases.run(acts, changes)
    found = {"cases": cases.cases, "kills": cases.kills, "points": len(cases.names)}
    print(json.dumps(found | {"states": sorted(judge.states), "faults": judge.faults}))


if __name__ == "__main__":
    where, address, scene, *numbers = sys.argv[1:]
    main(Judge(Path(where), address, scene), *map(int, numbers))
