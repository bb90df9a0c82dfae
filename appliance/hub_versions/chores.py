"""Do now and then what nobody asks for: rehearse the way back, read files again, look after hosts.

What this room does: three loops, each with its interval, kept over restarts.
What it knows: a drill is compared with the drills before it, at the same level; files in use are
read without pushing them out of memory.
What it never does: switch, or delete a file.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
from collections.abc import Awaitable, Callable

from appliance import logs
from appliance.clock import utc_ms
from appliance.config import Versions
from appliance.domain import Digest, DrillReport, Origin, VersionState
from appliance.errors import ApplianceError, DeploymentRefused, SyncError
from appliance.hub_versions.alerts import DRILL, SCRUB, Alerts
from appliance.hub_versions.runs import Run, Runs
from appliance.observe.metrics import Metrics
from appliance.runtime.host import Host
from appliance.runtime.router import Router
from appliance.sync.agent import Agent
from appliance.sync.holding import Holding
from appliance.sync.journal import Journal

FIRST_AFTER_S = 3600.0  # of a chore that is due more seldom than that, after a start
SETTLE_S = 60.0  # after a start, before a chore that was due meanwhile
_DRILLS_MIN = 3
_DRILLS, _TIMES = "drills", "drill_times"  # all models' at once; of a model at a level
_SLACK_MS = 20.0  # so much more is never worth a warning


class Chores:
    """What is done now and then. `run` until cancelled."""

    def __init__(
        self,
        settings: Versions,
        agent: Agent,
        holding: Holding,
        host: Host,
        router: Router,
        metrics: Metrics,
        runs: Runs,
        alerts: Alerts,
    ) -> None:
        """Look after what `agent` decides and `router` hosts."""
        self._settings = settings
        self._agent = agent
        self._journal: Journal = agent.journal
        self._holding = holding
        self._host = host
        self._router = router
        self._metrics = metrics
        self._runs = runs
        self._alerts = alerts

    async def run(self, watch_s: float) -> None:
        """Do all of it, until cancelled; watch_s: between two looks at what is hosted."""
        await self._runs.load()
        for name in (DRILL, SCRUB):
            for subject, run in self._runs.latest(name).items():
                self._show(name, subject, run)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch(watch_s))
            for interval_s, name, chore in (
                (self._settings.drill_s, _DRILLS, self._drill_all),
                (self._settings.scrub_s, SCRUB, self._scrub),
            ):
                if interval_s:
                    last = self._runs.latest(name).get("")
                    wait_s = first_wait_s(interval_s, last.utc_ms if last else None, utc_ms())
                    group.create_task(_every(interval_s, chore, wait_s))

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
        level = f"{model}/{report.level.value}"
        usual_ms = self._usual_ms(level)
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
        slow = f"took {took_ms:.0f} ms, usual are {usual_ms:.0f} ms" if is_bad else ""
        if not report.reason:
            await self._runs.note(_TIMES, level, Run(utc_ms=utc_ms(), took_ms=took_ms))
        await self._note(
            DRILL, model, Run(utc_ms=utc_ms(), took_ms=took_ms, reason=report.reason or slow)
        )
        return report

    def _usual_ms(self, level: str) -> float:
        """Find how long drills took, earlier programs' too; 0.0 while too few are known."""
        known = [one.took_ms for one in self._runs.known(_TIMES, level)]
        return statistics.median(known) if len(known) >= _DRILLS_MIN else 0.0

    async def _note(self, chore: str, subject: str, run: Run) -> None:
        await self._runs.note(chore, subject, run)
        self._show(chore, subject, run)
        await self._alerts.look()

    def _show(self, chore: str, subject: str, run: Run) -> None:
        when = run.utc_ms / 1000
        self._metrics.record(
            "appliance_chore_timestamp_seconds", when, chore=chore, subject=subject
        )
        if chore == DRILL and run.took_ms:
            took_s = run.took_ms / 1000
            self._metrics.record("appliance_rollback_drill_seconds", took_s, model=subject)

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
                await self._note(DRILL, model, Run(utc_ms=utc_ms(), reason=str(error)))
        await self._runs.note(_DRILLS, "", Run(utc_ms=utc_ms()))

    # --- files ---

    async def _scrub(self) -> None:
        try:
            damages = await self._holding.scrub(self._journal.roots())
        except SyncError as error:
            logs.event("scrub_failed", level=logging.WARNING, reason=str(error))
            return
        for damage in damages:
            is_repaired = damage.failure is None
            outcome = "repaired" if is_repaired else "damaged"
            self._metrics.record("appliance_files_damaged_total", 1, outcome=outcome)
            logs.event(
                "file_repaired" if is_repaired else "file_damaged",
                level=logging.WARNING if is_repaired else logging.ERROR,
                sha256=damage.wanted.blob.sha256,
                damaged_bytes=damage.damaged_bytes,
                reason="" if damage.failure is None else str(damage.failure),
            )
        logs.event("scrubbed", damaged_count=len(damages))
        left = [one.wanted.blob.sha256 for one in damages if one.failure is not None]
        reason = f"{len(left)} files are damaged and can't be repaired: {left[0]}" if left else ""
        await self._note(SCRUB, "", Run(utc_ms=utc_ms(), reason=reason))

    # --- what is hosted ---

    async def _watch(self, watch_s: float) -> None:
        """Tell the agent of every version of a hub whose worker was given up, once."""
        told: set[Digest] = set()
        while True:
            await self._alerts.look()
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


def first_wait_s(interval_s: float, last_utc_ms: int | None, now_utc_ms: int) -> float:
    """Say how long after a start a chore is due: as if there had been no restart."""
    if last_utc_ms is None or last_utc_ms > now_utc_ms:
        return min(interval_s, FIRST_AFTER_S)
    left_s = interval_s - (now_utc_ms - last_utc_ms) / 1000
    return min(interval_s, max(SETTLE_S, left_s))


async def _every(interval_s: float, chore: Callable[[], Awaitable[None]], wait_s: float) -> None:
    """Do a chore again and again, the first time after `wait_s`."""
    while True:
        await asyncio.sleep(wait_s)
        await chore()
        wait_s = interval_s
