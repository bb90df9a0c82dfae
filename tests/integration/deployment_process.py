"""Take a version as a process of its own, and be killed at a numbered point of it.

Usage: python -m tests.integration.deployment_process DIRECTORY VERSION KILL_AT

A point is before and after each transaction of the journal and each act of the host. With KILL_AT 0
nothing is killed. Writes the number of points and what is served at the end.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from appliance.config import Deployments
from appliance.sync.journal import Journal
from tests.unit.sync.agent_world import Box, until

ACTS = ("load", "unload", "direct", "switch", "stand_by", "fetch", "prune")


class Points:
    """Counts points, and ends the process at one of them as a power cut would."""

    def __init__(self, kill_at: int) -> None:
        self.count = 0
        self._kill_at = kill_at

    def point(self) -> None:
        self.count += 1
        if self.count == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, act: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def wrapped(*arguments: Any) -> Any:  # noqa: ANN401 - whatever the act takes and gives
            self.point()
            result = await act(*arguments)
            self.point()
            return result

        return wrapped


async def main(directory: Path, version: str, kill_at: int) -> None:
    points = Points(kill_at)
    box = Box(directory, Deployments(tick_s=0.5))
    for number in range(1, int(version) + 1):
        box.hub.publish(str(number))
    box.hub.assign(version)
    for name in ACTS:
        setattr(box.host, name, points.around(getattr(box.host, name)))
    write = Journal._write  # noqa: SLF001 - where every transaction passes
    Journal._write = points.around(write)  # type: ignore[assignment,method-assign] # noqa: SLF001
    async with box.running() as (agent, _):
        await until(lambda: bool(agent.refusals) and not agent.conductors)
        active, standby, percent = box.host.serves
        seen = (points.count, active, standby or "-", percent, len(box.host.loaded))
        sys.stdout.write(" ".join(map(str, seen)) + "\n")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
