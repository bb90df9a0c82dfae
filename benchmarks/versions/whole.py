"""Take signed versions the whole way, while users ask: a real hub, a real appliance, real requests.

What this room does: the suites `switch` (version after version, through shadow, step and probation)
and `caught` (damaged editions of a trained model, and a genuine one, each signed and assigned).
What it knows: the fleet that the tests run: our own program in processes, over mutual TLS, with
hints (so it is imported from them: what is measured is what is tested); requests ask for so many
tokens, so that a short answer is seen as one.
What it never does: count a switch that left out a part of the way.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.bars import Bar
from benchmarks.versions import gate
from benchmarks.versions.bench import Bench
from tests.integration.daemons import RunningDaemon
from tests.integration.fleet import (
    DEMO_1,
    DEMO_2,
    MODEL,
    QUICK,
    STRAIGHT,
    Desk,
    Fleet,
    Load,
    state_of,
    steps,
)

SWITCH, CAUGHT, OURS = "switch", "caught", "ours"
CASE = "the whole way, under load"
DAMAGED, GENUINE = "damaged editions", "Q6_K of the same weights"
USERS, TOKENS = 8, 24
_SWITCHES, _SWITCHES_SHORT = 20, 2
_SHORT_DAMAGED = 1
_END_S, _LOOK_S = 120.0, 0.05
_ENDS = {"COMMITTED", "ABORTED", "ROLLED_BACK", "STRANDED"}
_WHOLE_WAY = (
    *("fetching", "staged", "loading", "checking"),
    *("shadowing", "shifting", "probation", "committed"),
)

BARS: tuple[Bar, ...] = (
    Bar(suite=SWITCH, case=CASE, metric="failed", side=OURS, at_most=0.0, exact=True),
    Bar(suite=SWITCH, case=CASE, metric="interrupted", side=OURS, at_most=0.0, exact=True),
    Bar(suite=SWITCH, case=CASE, metric="other_ways", side=OURS, at_most=0.0, exact=True),
    Bar(suite=CAUGHT, case=DAMAGED, metric="not_refused", side=OURS, at_most=0.0, exact=True),
    Bar(suite=CAUGHT, case=DAMAGED, metric="seen_by_users", side=OURS, at_most=0.0, exact=True),
    Bar(suite=CAUGHT, case=DAMAGED, metric="failed", side=OURS, at_most=0.0, exact=True),
    Bar(suite=CAUGHT, case=GENUINE, metric="committed", side=OURS, at_least=1.0, exact=True),
)


def measure_switch(bench: Bench) -> None:
    """Take versions one after another, each from the one before."""
    count = _SWITCHES_SHORT if bench.short else _SWITCHES
    for number in bench.rounds(1):
        with (
            box(bench.scratch / f"switch-{number}", DEMO_1) as one,
            Load(one.daemon, USERS, TOKENS) as load,
        ):
            for version in range(2, count + 2):
                one.fleet.publish(str(version), DEMO_2 if version % 2 == 0 else DEMO_1, QUICK)
                one.ended(str(version))
            ways = [tuple(steps(one.daemon.lines, str(n))) for n in range(2, count + 2)]
        cut = sum(failure.endswith(" tokens") for failure in load.failures)
        bench.notes += load.failures[:5]
        bench.keep(
            SWITCH,
            CASE,
            OURS,
            number,
            failed=float(len(load.failures) - cut),
            interrupted=float(cut),
            other_ways=float(sum(way != _WHOLE_WAY for way in ways)),
            switches=float(len(ways)),
            requests=float(len(load.versions)),
        )


def measure_caught(bench: Bench) -> None:
    """Have damaged editions signed and assigned; then one that is well."""
    pack = msgspec.to_builtins(gate.health_pack())
    makes = list(gate.REFUSED.values())[: _SHORT_DAMAGED if bench.short else None]
    for number in bench.rounds(1):
        place, refused, labels = bench.scratch / f"caught-{number}", 0, set[str]()
        with box(place, gate.SERVED) as one, Load(one.daemon, USERS, TOKENS) as load:
            for version, make in enumerate((*makes, gate.PASSED[GENUINE]), start=2):
                path = place / f"edition-{version}.gguf"
                make(gate.DEMO, path)
                one.fleet.publish(str(version), path, QUICK, pack)
                end = one.ended(str(version))
                if version < len(makes) + 2:
                    way = steps(one.daemon.lines, str(version))
                    refused += end == "ABORTED" and way[-2:] == ["checking", "aborted"]
                    labels.add(f"{MODEL}@{version}")
        bench.notes += load.failures[:5]
        bench.keep(
            CAUGHT,
            DAMAGED,
            OURS,
            number,
            not_refused=float(len(makes) - refused),
            seen_by_users=float(sum(label in labels for label in load.versions)),
            failed=float(len(load.failures)),
            requests=float(len(load.versions)),
        )
        bench.keep(CAUGHT, GENUINE, OURS, number, committed=float(end == "COMMITTED"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """An appliance that takes versions from its hub."""

    fleet: Fleet
    daemon: RunningDaemon
    desk: Desk

    def ended(self, version: str) -> str:
        """Wait for the end of a version's deployment, also in the log, and name it."""
        _wait(lambda: self._end(version) != "")
        _wait(lambda: {state.upper() for state in steps(self.daemon.lines, version)} & _ENDS)
        return self._end(version)

    def _end(self, version: str) -> str:
        states = [state_of(one) for one in self.desk.deployments() if one.version == version]
        return next((state for state in states if state in _ENDS), "")


@contextlib.contextmanager
def box(place: Path, first: Path) -> Iterator[Box]:
    """Run a hub and an appliance that serves version 1 of it, until the block is left."""
    place.mkdir()
    fleet = Fleet(place)
    fleet.publish("1", first, STRAIGHT)
    fleet.trust()
    with fleet.hub() as hub:
        fleet.enrol(hub)
        with fleet.daemon() as daemon:
            desk = Desk(daemon)
            daemon.ready()
            _wait(lambda: desk.active() == "1")
            yield Box(fleet=fleet, daemon=daemon, desk=desk)


def _wait(condition: Callable[[], object]) -> None:
    limit_s, pause = time.monotonic() + _END_S, threading.Event()
    while not condition():
        if time.monotonic() > limit_s:
            raise RuntimeError("a deployment came to no end")
        pause.wait(_LOOK_S)
