"""Live on under a clock that somebody else moves, and say on request who serves.

What this program does: runs the stack with its calendar while its input is open; for each line
asked, prints a line of JSON.
What it knows: it looks for news by itself; nobody tells it to.
What it never does: read the true time; it is run under libfaketime.

Usage: python -m benchmarks.survival.months DIRECTORY URL ROOT
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from pathlib import Path
from zoneinfo import ZoneInfo

from appliance.config import Deployments
from appliance.errors import StoreError, SyncError
from appliance.sync.schedule import Schedule
from benchmarks.survival.box import Parts, Plan, close, report_of, wired

_PASSES_S = 0.02


async def _main(directory: Path, plan: Plan) -> None:
    parts = wired(directory, plan)

    async def look() -> None:
        with contextlib.suppress(SyncError, StoreError):
            await parts.agent.look()

    schedule = Schedule(Deployments(refresh_s=300, refresh_jitter_s=0), ZoneInfo("UTC"), look)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(parts.agent.run(schedule))
            parts.agent.hint()
            await parts.agent.booted()
            while await asyncio.to_thread(sys.stdin.readline):
                print(json.dumps(_said(parts)), flush=True)
            parts.agent.close()
    finally:
        await close(parts)


def _said(parts: Parts) -> dict[str, object]:
    freshness = parts.remembered.freshness()
    is_stale = freshness.expires_utc_ms < parts.moment.utc_ms()
    return report_of(parts) | {"is_stale": is_stale, "day": parts.moment.utc_ms() / 86_400_000}


if __name__ == "__main__":
    where, address, root = sys.argv[1:]
    the_plan = Plan(url=address, bootstrap=Path(root).read_bytes(), passes_s=_PASSES_S)
    asyncio.run(_main(Path(where), the_plan))
