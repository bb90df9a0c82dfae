"""Name the lives of a deployment that are cut short: where each begins, and how it may end.

What this room does: the table of scenes, and the world they play in: a hub's folders, served, and
the disks that they begin from.
What it knows: together the scenes enter every state that is persisted.
What it never does: kill anything.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.survival.box import ACKNOWLEDGED, STATE, Plan, live
from benchmarks.survival.host import Mood
from benchmarks.survival.hub import ALONE, Hub

ROOT, VERSIONS = "root.json", "versions.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """One life. base: the disk it begins from. hub: the hub's folder. ends: who may serve then."""

    base: str
    hub: str
    mood: Mood
    goal: str
    ends: tuple[str, ...]


# The first scene makes the disk `one`, the second `two`.
SCENES: Mapping[str, Scene] = {
    "first": Scene(base="", hub="one", mood=Mood(), goal="follow", ends=("", "1")),
    "whole": Scene(base="one", hub="two", mood=Mood(), goal="follow", ends=("1", "2")),
    "back": Scene(base="two", hub="two", mood=Mood(), goal="go_back", ends=("1", "2")),
    "bad": Scene(base="one", hub="two", mood=Mood(bad="2"), goal="follow", ends=("1",)),
    "refused": Scene(base="one", hub="two", mood=Mood(fails="2"), goal="follow", ends=("1",)),
    "alone": Scene(
        base="one", hub="alone", mood=Mood(is_alone=True), goal="follow", ends=("1", "2")
    ),
    "stranded": Scene(
        base="one",
        hub="alone",
        mood=Mood(is_alone=True, bad="2", strands=True),
        goal="follow",
        ends=("1",),
    ),
}
MADE = {"one": "first", "two": "whole"}  # disks, and the scenes that make them


def build(world: Path) -> Hub:
    """Found the hub in `world`, with a folder for each of its states."""
    hub = Hub(world / "hub")
    hub.assign("1")
    hub.copy("one")
    hub.assign("2")
    hub.copy("two")
    hub.assign("2", ALONE)
    hub.copy("alone")
    (world / ROOT).write_bytes(hub.bootstrap)
    (world / VERSIONS).write_text(json.dumps(hub.digests))
    return hub


def plan_of(scene: Scene, world: Path, url: str, *, boot_id: str = "boot", later: int = 0) -> Plan:
    """Say what a run of a scene is asked to do; `later`: so many runs have been before."""
    return Plan(
        url=f"{url}/{scene.hub}/",
        bootstrap=(world / ROOT).read_bytes(),
        mood=scene.mood,
        goal=scene.goal,
        boot_id=boot_id,
        later_ms=later * 600_000,
    )


def versions(world: Path) -> dict[str, list[str]]:
    """Read which files each version has."""
    found: dict[str, list[str]] = json.loads((world / VERSIONS).read_text())
    return found


def make_disk(world: Path, url: str, disk: str) -> None:
    """Make one of the disks that scenes begin from, where it is not there yet."""
    place = world / "disks" / disk
    if place.exists():
        return
    scene = SCENES[MADE[disk]]
    copy_disk(world, url, scene.base, place)
    asyncio.run(live(place, plan_of(scene, world, url)))
    (place / ACKNOWLEDGED).unlink()


def copy_disk(world: Path, url: str, disk: str, to: Path) -> None:
    """Begin at `to` with a copy of a disk; an empty name is an empty disk."""
    if disk:
        make_disk(world, url, disk)
        shutil.copytree(world / "disks" / disk, to, symlinks=True)
    else:
        (to / STATE).mkdir(parents=True)
