"""Count what is lost when an appliance is killed at any point of a deployment, or its power is cut.

What this room does: runs the cases of `benchmarks.survival`, two programs at a time, and keeps
their counts; what was found wrong goes to the notes.
What it knows: a short run takes some points of some scenes, a whole one each point about an act and
each transaction in three seeds, and a part of the changes of the disk; power is cut before each.
What it never does: judge a disk; the oracle does.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.bars import Bar
from benchmarks.survival import hub, scenes
from benchmarks.versions.bench import Bench

KILLS, OURS, CASE = "kills", "ours", "every state, before and after every act"
SEEDS = 3
_CHANGES_EVERY = 6
_SHORT_SCENES = ("whole", "bad")
_AT_ONCE = 2
_DEADLINE_S = 1800.0
_SHOWN = 20

BARS: tuple[Bar, ...] = (
    Bar(suite=KILLS, case=CASE, metric="faults", side=OURS, at_most=0.0, exact=True),
    Bar(suite=KILLS, case=CASE, metric="states_missed", side=OURS, at_most=0.0, exact=True),
)
_STATES = {
    "planned",
    "fetching",
    "staged",
    "loading",
    "checking",
    "shadowing",
    "awaiting_approval",
    "shifting",
    "probation",
    "rolling_back",
}


def measure_kills(bench: Bench) -> None:
    """Kill it in every scene and seed."""
    world = bench.scratch / "kills"
    world.mkdir()
    scenes.build(world)
    names = _SHORT_SCENES if bench.short else tuple(scenes.SCENES)
    every = ("9", "30") if bench.short else ("1", str(_CHANGES_EVERY))
    with hub.serving(world) as url:
        for disk in scenes.MADE:
            scenes.make_disk(world, url, disk)
        commands = [
            ["benchmarks.survival.kills", str(world), url, name, str(seed), *every]
            for seed in bench.rounds(SEEDS)
            for name in names
        ]
        found = _told(bench, KILLS, commands)
    states = {state for one in found for state in one["states"]}
    bench.keep(
        KILLS,
        CASE,
        OURS,
        0,
        faults=_counted(bench, KILLS, found),
        states_missed=0.0 if bench.short else float(len(_STATES - states)),
        cases=float(sum(one["cases"] for one in found)),
        kills=float(sum(one["kills"] for one in found)),
    )


def _told(bench: Bench, suite: str, commands: Sequence[list[str]]) -> list[dict[str, Any]]:
    """Run programs, some at once, and read what each says in its last line."""
    bench.commands[suite] = [sys.executable, "-m", *commands[0]]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(_one, commands))


def _one(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        timeout=_DEADLINE_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-1000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _counted(bench: Bench, suite: str, found: Iterable[dict[str, Any]]) -> float:
    faults = [fault for one in found for fault in one["faults"]]
    bench.notes += [f"{suite}: {fault}" for fault in faults[:_SHOWN]]
    return float(len(faults))
