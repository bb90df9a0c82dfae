"""Cut the power before each thing that an appliance does to its disk, and start it again.

What this program does: records one life under `shim.c`; plays it on the model of `replay`, and
after each thing done writes down the disk that a power cut would leave; judges it, starts the
appliance there, and judges it again at rest.
What it knows: between two syncs a disk on which all else is lost does not change: each different
disk is judged once, and stands for the moments that would leave it.
What it never does: cut the power in the middle of a record; what is torn, `replay` tears.

Usage: python -m benchmarks.survival.power WORLD URL SCENE LOSS EVERY SHIM; prints a line of JSON.
Every so many moments are taken; SHIM is the built library.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.survival.forks import LIFE_S, lived
from benchmarks.survival.judging import Judge
from benchmarks.survival.replay import Disk, read
from benchmarks.survival.scenes import copy_disk


@dataclass(slots=True)
class Cuts:
    """The power cuts of one scene and one kind of loss."""

    judge: Judge
    loss: str
    moments: int = 0
    disks: int = 0

    def run(self, shim: Path, every: int) -> None:
        """Record a life, and cut it."""
        place = self.judge.world / f"{self.judge.name}-{self.loss}"
        copy_disk(self.judge.world, self.judge.url, self.judge.scene.base, place)
        disk, log = Disk(place), place.with_suffix(".log")
        self._record(shim, place, log)
        shutil.rmtree(place)
        known: set[str] = set()
        for number, one in enumerate(read(log), 1):
            disk.play(one)
            self.moments += 1
            if number % every:
                continue
            seen = disk.fingerprint(self.loss, number)
            if seen not in known:
                known.add(seen)
                self._cut(disk, place, number)

    def _cut(self, disk: Disk, place: Path, number: int) -> None:
        self.disks += 1
        title = f"{self.judge.name}, {self.loss} lost, after {number} things done"
        disk.write(place, self.loss, number)
        self.judge.left(place, title)
        code, said = lived(place, self.judge.plan(f"boot-{number}", 2))
        self.judge.rested(place, title, code, said)
        shutil.rmtree(place)

    def _record(self, shim: Path, place: Path, log: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.survival.recorded", str(self.judge.world)]
        watched = {
            "LD_PRELOAD": str(shim),
            "SURVIVAL_BELOW": str(place),
            "SURVIVAL_LOG": str(log),
        }
        done = subprocess.run(
            [*command, self.judge.url, self.judge.name, str(place)],
            env=os.environ | watched,
            capture_output=True,
            text=True,
            timeout=LIFE_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"the life that is recorded failed: {done.stderr[-2000:]}")


def build(directory: Path) -> Path:
    """Build the library. Raises RuntimeError where there is no compiler, or it does not build."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise RuntimeError("there is no C compiler: power cuts can't be recorded without one")
    source, library = Path(__file__).with_name("shim.c"), directory / "shim.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-o", str(library), str(source)]
    done = subprocess.run([*command, "-lpthread"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"shim.c does not build: {done.stderr[-1000:]}")
    return library


def main(judge: Judge, loss: str, every: int, shim: Path) -> None:
    """Cut the power, and print what came of it."""
    cuts = Cuts(judge, loss)
    cuts.run(shim, every)
    found = {"moments": cuts.moments, "disks": cuts.disks, "faults": judge.faults}
    print(json.dumps(found | {"states": sorted(judge.states)}))


if __name__ == "__main__":
    where, address, scene, lost, often, built = sys.argv[1:]
    main(Judge(Path(where), address, scene), lost, int(often), Path(built))
