"""The real daemon, killed while it takes a version, in one state after another; the disk is judged.

Every point of every state, on a host that stands for the runtime, is in the figures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil

from benchmarks.survival.forks import judged
from tests.integration.daemons import Line, RunningDaemon
from tests.integration.fleet import DEMO_1, DEMO_2, MODEL, QUICK, STRAIGHT, Desk, Fleet, Load
from tests.integration.hubs import until

STATES = ("fetching", "loading", "shadowing", "shifting", "probation", "committed")
AGAIN = {"deployments.attempt_wait_s": 1, "deployments.attempts_max": 100}
MOSTLY = {**QUICK, "steps_percent": [90]}  # of few users, by a digest that differs each time
GONE_S = 20.0


def kill(daemon: RunningDaemon) -> None:
    """Kill it; none of its processes outlives it."""
    children = daemon.children()
    daemon.process.kill()
    daemon.wait()
    assert psutil.wait_procs(children, GONE_S)[1] == []


def active(found: dict[str, Any]) -> str:
    """Name the version that a disk says is active."""
    ((digest, _),) = found["serving"].values()
    return str(found["versions"][digest])


def test_killed_in_one_state_after_another_the_daemon_serves_one_version_or_the_other(
    tmp_path: Path,
) -> None:
    fleet = Fleet(tmp_path)
    fleet.publish("1", DEMO_1, STRAIGHT)
    fleet.trust()
    with fleet.hub() as hub:
        fleet.enrol(hub)
        with fleet.daemon(**AGAIN) as daemon:
            until(lambda: Desk(daemon.ready()).active() == "1")
            kill(daemon)
        fleet.publish("2", DEMO_2, MOSTLY)
        for state in STATES:
            with fleet.daemon(**AGAIN) as daemon, Load(daemon.ready()):
                daemon.waited(lambda lines, wanted=state: entered(lines, wanted))  # type: ignore[misc]
                kill(daemon)
            found = judged(fleet.box, settled=False)
            assert found["faults"] == [], state
            assert active(found) == ("2" if state == "committed" else "1"), state
        with fleet.daemon(**AGAIN) as daemon:
            until(lambda: Desk(daemon.ready()).active() == "2")
            with Load(daemon, users=1) as load:
                until(lambda: len(load.versions) > 1)
            assert (set(load.versions), load.failures) == ({f"{MODEL}@2"}, [])
            daemon.process.terminate()
            assert daemon.wait() == 0
        assert judged(fleet.box, settled=True)["faults"] == []


def entered(lines: list[Line], state: str) -> list[Line]:
    """Find where version 2 entered a state."""
    label = f"{MODEL}@2"
    return [one for one in lines if one.get("version") == label and one.get("state") == state]
