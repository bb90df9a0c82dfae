"""Say what is wrong with disks that were left, and with disks at rest.

What this room does: holds what the oracle and the running appliance say against what a scene
allows; keeps every fault with the name of its case.
What it knows: which versions may serve in a scene, before its end and at it.
What it never does: kill, or cut.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.survival.box import Plan
from benchmarks.survival.forks import judged, left_processes, lived
from benchmarks.survival.scenes import MADE, SCENES, Scene, plan_of, versions

_LOG_CHARS = 1500


@dataclass(slots=True)
class Judge:
    """The judge of one scene. states: those in which deployments were found under way."""

    world: Path
    url: str
    name: str
    faults: list[str] = field(default_factory=list)
    states: set[str] = field(default_factory=set)

    @property
    def scene(self) -> Scene:
        """Look the scene up."""
        return SCENES[self.name]

    def left(self, place: Path, title: str) -> None:
        """Judge what was left at once: nothing may be lost, whatever lies around."""
        found = judged(place, settled=False)
        self.states.update(found["under_way"])
        active = {found["versions"].get(one, one) for one, _ in found["serving"].values()}
        begun = SCENES[MADE[self.scene.base]].ends if self.scene.base else ("",)
        foreign = active - {*begun, *self.scene.ends}
        self._note(title, "as it was left", [*found["faults"], *left_processes(place)])
        self._note(title, "as it was left", [f"version {one} is active" for one in foreign])
        if self.scene.base and not active - {""}:
            self._note(title, "as it was left", ["nothing is active any more"])

    def rested(self, place: Path, title: str, code: int, said: dict[str, Any]) -> None:
        """Judge the disk when nothing is under way, and what is served."""
        if self.scene.mood.strands:  # the person that had to come has come, and starts it again
            mended = replace(self.scene, mood=replace(self.scene.mood, strands=False))
            code, said = lived(place, plan_of(mended, self.world, self.url, later=9))
        if code or not said:
            log = (place / "log").read_text()[-_LOG_CHARS:]
            self._note(title, "started again", [f"ended with {code}: {log}"])
            return
        found = judged(place, settled=True)
        self._note(title, "at rest", [*found["faults"], *left_processes(place)])
        served = [one for one, files in versions(self.world).items() if files == said["serves"]]
        if not {*(served or [""])} <= {*self.scene.ends}:
            self._note(title, "at rest", [f"{served or said['serves']} is served"])
        if [active for active, _ in found["serving"].values()] != said["active"]:
            self._note(title, "at rest", [f"{found['serving']} on disk, {said['active']} served"])
        if said["percent"]:
            self._note(title, "at rest", [f"{said['percent']} percent are on trial still"])

    def plan(self, boot_id: str, later: int) -> Plan:
        """Say what the next life is asked to do; so many were before."""
        return plan_of(self.scene, self.world, self.url, boot_id=boot_id, later=later)

    def _note(self, title: str, when: str, faults: Iterable[str]) -> None:
        self.faults += [f"{title}, {when}: {fault}" for fault in faults]
