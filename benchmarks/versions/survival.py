"""Count what is lost when an appliance is killed at any point, its power cut, its hub taken away.

What this room does: runs the cases of `benchmarks.survival`, two programs at a time, and keeps
their counts; what was found wrong goes to the notes.
What it knows: a short run takes some points of some scenes. A whole one takes each point about an
act and each transaction in three seeds, and every sixth change of the disk; it cuts the power after
each in four scenes, and after every ninth in the others.
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
from benchmarks.survival import hub, outage, power, scenes
from benchmarks.survival.replay import LOSSES
from benchmarks.versions.bench import Bench

KILLS, POWER, OUTAGE, OURS = "kills", "power", "outage", "ours"
CASE = "every state, before and after every act"
POWER_CASE = "after every thing done to the disk"
OUTAGE_CASE = f"{outage.DAYS} days without a hub"
SEEDS = 3
_CHANGES_EVERY = 6
_SHORT_SCENES = ("whole", "bad")
# Scenes, and every how many things done to the disk the power is cut: the last three differ from
# `whole` and `bad` only towards their end.
_CUTS_EVERY = {
    "first": 1,
    "whole": 1,
    "back": 1,
    "bad": 1,
    "refused": 9,
    "alone": 9,
    "stranded": 9,
}
_CUTS_EVERY_SHORT, _DAYS_SHORT = 90, 9
_AT_ONCE = 2
_DEADLINE_S = 1800.0
_SHOWN = 20

BARS: tuple[Bar, ...] = (
    Bar(suite=KILLS, case=CASE, metric="faults", side=OURS, at_most=0.0, exact=True),
    Bar(suite=KILLS, case=CASE, metric="states_missed", side=OURS, at_most=0.0, exact=True),
    Bar(suite=POWER, case=POWER_CASE, metric="faults", side=OURS, at_most=0.0, exact=True),
    Bar(
        suite=OUTAGE, case=OUTAGE_CASE, metric="days_not_served", side=OURS, at_most=0.0, exact=True
    ),
    Bar(suite=OUTAGE, case=OUTAGE_CASE, metric="faults", side=OURS, at_most=0.0, exact=True),
    Bar(suite=OUTAGE, case=OUTAGE_CASE, metric="caught_up", side=OURS, at_least=1.0, exact=True),
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


def measure_power(bench: Bench) -> None:
    """Cut its power, with each kind of loss."""
    world = bench.scratch / "power"
    world.mkdir()
    scenes.build(world)
    shim = str(power.build(world))
    cuts = {_SHORT_SCENES[0]: _CUTS_EVERY_SHORT} if bench.short else _CUTS_EVERY
    with hub.serving(world) as url:
        for disk in scenes.MADE:
            scenes.make_disk(world, url, disk)
        commands = [
            ["benchmarks.survival.power", str(world), url, name, loss, str(every), shim]
            for name, every in cuts.items()
            for loss in LOSSES
        ]
        found = _told(bench, POWER, commands)
    bench.keep(
        POWER,
        POWER_CASE,
        OURS,
        0,
        faults=_counted(bench, POWER, found),
        moments=float(sum(one["moments"] for one in found)),
        disks=float(sum(one["disks"] for one in found)),
    )


def measure_outage(bench: Bench) -> None:
    """Take its hub away."""
    days = _DAYS_SHORT if bench.short else outage.DAYS
    lived = outage.suffer(bench.scratch / "outage", days)
    bench.commands[OUTAGE] = [sys.executable, "-m", "benchmarks.survival.months"]
    bench.keep(
        OUTAGE,
        OUTAGE_CASE,
        OURS,
        0,
        days_not_served=float(lived.not_served),
        faults=_counted(bench, OUTAGE, [{"faults": lived.faults}]),
        caught_up=float(lived.caught_up),
        days=float(lived.days),
        days_stale=float(lived.stale_days),
        restarts=float(lived.restarts),
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
