"""See versions and deployments as an operator wants to: put together from who knows what.

What this room does: the values of `api.deployments`, from memory and state.db.
What it knows: only one download runs at a time, so it is that of the deployment that fetches.
What it never does: change anything, or ask the hub.
"""

from __future__ import annotations

import asyncio

from appliance.api.deployments import KnownVersion, ModelOutlook, ShownDeployment, SyncState
from appliance.clock import utc_ms
from appliance.domain import Digest
from appliance.hub_versions.alerts import Alerts
from appliance.hub_versions.contact import Contact
from appliance.sync.agent import Agent
from appliance.sync.beliefs import Beliefs
from appliance.sync.deployment import Deployment, Serving
from appliance.sync.eligibility import Wish
from appliance.sync.holding import Holding
from appliance.sync.orders import HISTORY_MAX
from appliance.sync.remembered import Remembered
from appliance.sync.states import State


class View:
    """What an operator sees."""

    def __init__(
        self,
        agent: Agent,
        beliefs: Beliefs,
        remembered: Remembered,
        holding: Holding,
        contact: Contact,
        alerts: Alerts,
    ) -> None:
        """Look at these."""
        self._agent = agent
        self._beliefs = beliefs
        self._remembered = remembered
        self._holding = holding
        self._contact = contact
        self._alerts = alerts

    async def sync_state(self) -> SyncState:
        """Say what is known, and since when. Raises StoreError."""
        freshness = await asyncio.to_thread(self._remembered.freshness)
        return SyncState(
            is_on=True,
            cohort=self._beliefs.cohort,
            sources=tuple(source.name for source in self._beliefs.sources),
            learnt_utc_ms=freshness.learnt_utc_ms,
            expires_utc_ms=freshness.expires_utc_ms,
            is_stale=bool(freshness.expires_utc_ms) and freshness.expires_utc_ms <= utc_ms(),
            fault=self._agent.news_fault,
            is_linked=self._contact.is_linked,
            link_reason=self._contact.reason,
            alerts=self._alerts.standing,
        )

    async def outlooks(self) -> tuple[ModelOutlook, ...]:
        """Say how each model stands. Raises StoreError."""
        assignment = await asyncio.to_thread(self._beliefs.assignment)
        assigned = {one.model: one.version for one in assignment.models} if assignment else {}
        memory, agent = self._agent.journal.memory, self._agent
        found = []
        for model in sorted({*assigned, *memory.serving, *agent.conductors, *agent.refusals}):
            serving = memory.serving.get(model, Serving(model=model))
            wish = memory.wishes.get(model, Wish())
            live = agent.conductors.get(model)
            found.append(
                ModelOutlook(
                    model=model,
                    active=self._known(serving.active),
                    standby=self._known(serving.standby),
                    assigned=assigned.get(model, ""),
                    pinned=wish.pinned,
                    is_held=wish.is_held,
                    deployment=self._shown(live.deployment) if live is not None else None,
                    refused=agent.refusals.get(model),
                )
            )
        return tuple(found)

    async def deployments(self, model: str, count: int) -> tuple[ShownDeployment, ...]:
        """List the newest deployments, of a model or of all. Raises StoreError."""
        history = await self._agent.journal.history(HISTORY_MAX if model else count)
        chosen = [one for one in history if model in ("", one.model)]
        return tuple(self._shown(one) for one in chosen[:count])

    def _known(self, digest: Digest) -> KnownVersion | None:
        offer = self._agent.journal.memory.offers.get(digest)
        if not digest or offer is None:
            return None
        return KnownVersion(
            version=offer.release.version,
            digest=digest,
            publisher=offer.publisher,
            sequence=offer.release.sequence,
            quantisation=offer.edition,
        )

    def _shown(self, deployment: Deployment) -> ShownDeployment:
        live = self._agent.conductors.get(deployment.model)
        if live is None or live.deployment.id != deployment.id:
            return ShownDeployment(deployment=deployment)
        now = live.deployment
        is_fetching = now.state is State.FETCHING
        return ShownDeployment(
            deployment=now,
            waiting_for=live.waiting_for,
            download=self._holding.progress if is_fetching else None,
        )
