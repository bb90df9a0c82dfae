"""Do now and then what nobody asks for: rehearse the way back, read files again, look after hosts.

What this room does: three loops, each with its interval.
What it knows: a drill is compared with the drills before it, at the same level; files in use are
read without pushing them out of memory.
What it never does: switch, or delete a file.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
from collections import deque
from collections.abc import Callable

from appliance import logs
from appliance.config import Versions
from appliance.domain import Digest, DrillReport, Origin, StandbyLevel, VersionState
from appliance.errors import ApplianceError, DeploymentRefused, SyncError
from appliance.runtime.host import Host
from appliance.runtime.router import Router
from appliance.sync.agent import Agent
from appliance.sync.holding import Holding
from appliance.sync.journal import Journal

FIRST_AFTER_S = 3600.0  # of a chore that is due more seldom than that, after a start
_DRILLS_KEPT = 16
_DRILLS_MIN = 3
_SLACK_MS = 20.0  # so much more is never worth a warning


class Chores:
    """What is done now and then. `run` until cancelled."""

    def __init__(
        self, settings: Versions, agent: Agent, holding: Holding, host: Host, router: Router
    ) -> None:
        """Look after what `agent` decides and `router` hosts."""
        self._settings = settings
        self._agent = agent
        self._journal: Journal = agent.journal
        self._holding = holding
        self._host = host
        self._router = router
        self._drills: dict[tuple[str, StandbyLevel], deque[float]] = {}

    async def run(self, watch_s: float) -> None:
        """Do all of it, until cancelled; watch_s: between two looks at what is hosted."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch(watch_s))
            if self._settings.drill_s:
                group.create_task(_every(self._settings.drill_s, self._drill_all))
            if self._settings.scrub_s:
                group.create_task(_every(self._settings.scrub_s, self._scrub))

    # --- the way back ---

    async def drill(self, model: str) -> DrillReport:
        """Rehearse the way back of one model, and warn where it has become slow or fails.

        Raises:
            DeploymentRefused: it has no standby, or a deployment is under way.
        """
        if model in self._agent.conductors:
            reason = "a deployment is under way"
            raise DeploymentRefused(model=model, action="drill", reason=reason)
        report = await self._host.drill(model)
        took_ms = report.load_ms + report.accepted_ms
        usual_ms = self._usual_ms(model, report, took_ms)
        bar_ms = usual_ms * self._settings.drill_slower_max + _SLACK_MS
        is_bad = bool(report.reason) or (usual_ms > 0 and took_ms > bar_ms)
        logs.event(
            "rollback_drill_regressed" if is_bad else "rollback_drill",
            level=logging.ERROR if is_bad else logging.INFO,
            model=report.version,
            standby_level=report.level.value,
            load_ms=round(report.load_ms, 2),
            accepted_ms=round(report.accepted_ms, 2),
            first_token_ms=round(report.first_token_ms, 2),
            usual_ms=round(usual_ms, 2),
            reason=report.reason,
        )
        return report

    def _usual_ms(self, model: str, report: DrillReport, took_ms: float) -> float:
        """Find how long drills took before this one; 0.0 while too few are known."""
        known = self._drills.setdefault((model, report.level), deque(maxlen=_DRILLS_KEPT))
        usual_ms = statistics.median(known) if len(known) >= _DRILLS_MIN else 0.0
        if not report.reason:
            known.append(took_ms)
        return usual_ms

    async def _drill_all(self) -> None:
        for model, serving in list(self._journal.memory.serving.items()):
            if not serving.standby or model in self._agent.conductors:
                continue
            try:
                await self.drill(model)
            except ApplianceError as error:
                logs.event(
                    "rollback_drill_failed", level=logging.ERROR, model=model, reason=str(error)
                )

    # --- files ---

    async def _scrub(self) -> None:
        try:
            damages = await self._holding.scrub(self._journal.roots())
        except SyncError as error:
            logs.event("scrub_failed", level=logging.WARNING, reason=str(error))
            return
        for damage in damages:
            is_repaired = damage.failure is None
            logs.event(
                "file_repaired" if is_repaired else "file_damaged",
                level=logging.WARNING if is_repaired else logging.ERROR,
                sha256=damage.wanted.blob.sha256,
                damaged_bytes=damage.damaged_bytes,
                reason="" if damage.failure is None else str(damage.failure),
            )
        logs.event("scrubbed", damaged_count=len(damages))

    # --- what is hosted ---

    async def _watch(self, watch_s: float) -> None:
        """Tell the agent of every version of a hub whose worker was given up, once."""
        told: set[Digest] = set()
        while True:
            await asyncio.sleep(watch_s)
            failed = {
                status.version.digest: status.reason
                for status in self._router.models()
                if status.state is VersionState.FAILED and status.version.origin is Origin.HUB
            }
            for digest, reason in failed.items():
                if digest not in told:
                    self._agent.version_failed(digest, reason or "its worker can't be restarted")
            told = set(failed)


async def _every(interval_s: float, chore: Callable[[], object]) -> None:
    """Do a chore again and again; the first time soon after the start."""
    wait_s = min(interval_s, FIRST_AFTER_S)
    while True:
        await asyncio.sleep(wait_s)
        await chore()  # type: ignore[misc]
        wait_s = interval_s
