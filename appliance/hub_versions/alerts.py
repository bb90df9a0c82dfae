"""Say what stands that a person should look at, since when, and why.

What this room does: holds the last drills, the last scrubbing, the newest deployments and what was
refused against what is as it should be; shows each as a metric too.
What it knows: an alert stands until a later drill, scrubbing or deployment of the same went well.
What it never does: tell anybody: who looks at the metrics or asks for the status does.
"""

from __future__ import annotations

import logging

from appliance import logs
from appliance.api.deployments import Alert
from appliance.clock import utc_ms
from appliance.errors import StoreError
from appliance.hub_versions.runs import Runs
from appliance.observe.metrics import Metrics
from appliance.sync.agent import Agent
from appliance.sync.eligibility import Refusal
from appliance.sync.states import State

HISTORY_LOOKED_AT = 200
DRILL, SCRUB = "rollback_drill", "scrub"
_METRIC = "appliance_alert_standing"
_AS_WISHED = frozenset(
    {
        *(Refusal.ACTIVE, Refusal.PINNED, Refusal.HELD),
        *(Refusal.HALTED, Refusal.NOT_BEFORE, Refusal.TOO_SOON),
    }
)


class Alerts:
    """What stands. `look` now and then; `standing` is what the last look found."""

    def __init__(self, agent: Agent, runs: Runs, metrics: Metrics) -> None:
        """Look at these, and show in `metrics`."""
        self.standing: tuple[Alert, ...] = ()
        self._agent = agent
        self._runs = runs
        self._metrics = metrics
        self._stranded: tuple[Alert, ...] = ()
        self._seen: frozenset[int] | None = None  # deployments that were under way

    async def look(self) -> None:
        """Find what stands now."""
        live = frozenset(one.deployment.id for one in self._agent.conductors.values())
        if live != self._seen:
            self._stranded = await self._find_stranded()
            self._seen = live
        found = (*self._found_by_chores(), *self._stranded, *self._refused())
        since = {(one.kind, one.subject): one.since_utc_ms for one in self.standing}
        for kind, subject in since.keys() - {(one.kind, one.subject) for one in found}:
            self._metrics.record(_METRIC, 0, kind=kind, subject=subject)
        for one in found:
            self._metrics.record(_METRIC, 1, kind=one.kind, subject=one.subject)
        self.standing = tuple(
            Alert(
                kind=one.kind,
                subject=one.subject,
                since_utc_ms=since.get((one.kind, one.subject), one.since_utc_ms),
                reason=one.reason,
            )
            for one in found
        )

    def _found_by_chores(self) -> list[Alert]:
        return [
            Alert(kind=kind, subject=subject, since_utc_ms=run.utc_ms, reason=run.reason)
            for kind in (DRILL, SCRUB)
            for subject, run in sorted(self._runs.latest(kind).items())
            if run.reason
        ]

    async def _find_stranded(self) -> tuple[Alert, ...]:
        """Find the models whose newest deployment left a human to be needed."""
        try:
            history = await self._agent.journal.history(HISTORY_LOOKED_AT)
        except StoreError as error:
            logs.event("stranded_unknown", level=logging.WARNING, reason=error.message)
            return self._stranded
        newest = {one.model: one for one in reversed(history)}
        return tuple(
            Alert(
                kind="stranded",
                subject=one.model,
                since_utc_ms=one.entered_utc_ms,
                reason=f"version {one.version} can't be left: {one.reason}",
            )
            for one in newest.values()
            if one.state is State.STRANDED
        )

    def _refused(self) -> list[Alert]:
        return [
            Alert(
                kind="release_refused",
                subject=model,
                since_utc_ms=utc_ms(),
                reason=f"{one.reason} ({one.refusal.value})",
            )
            for model, one in sorted(self._agent.refusals.items())
            if one.refusal not in _AS_WISHED
        ]
