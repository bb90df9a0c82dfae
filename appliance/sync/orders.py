"""Do what a person asks of deployments, or say why not, and have it recorded.

What this room does: one method for each thing an operator can ask; a typed refusal otherwise.
What it knows: an order that is acknowledged is written down, or its answer says that it is not.
What it never does: decide who may ask; `access.policy` has, before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import msgspec

from appliance.domain import Value
from appliance.errors import ApplianceError, DeploymentRefused
from appliance.sync.agent import Agent
from appliance.sync.deployment import Deployment, Undo
from appliance.sync.eligibility import Refused, Wish
from appliance.sync.states import Event

Record = Callable[[str, str, str, str], None]  # who, what, of which model, "ok" or an error's code
ROLLBACK_WAIT_S = 60.0
HISTORY_MAX = 1000
_TRIES = 3


class Outlook(Value):
    """What is so of one model.

    waiting_for: what holds its deployment. refused: why what is assigned does not apply.
    """

    model: str
    active: str = ""
    standby: str = ""
    wish: Wish = Wish()
    deployment: Deployment | None = None
    waiting_for: str = ""
    refused: Refused | None = None


class RolledBack(Value):
    """What a rollback came to. is_durable: whether a power cut now would leave it so."""

    deployment: Deployment
    is_durable: bool


class Orders:
    """What operators ask. `by` is who asks, for the record."""

    def __init__(self, agent: Agent, record: Record) -> None:
        """Hand orders to `agent`, and each with its result to `record`, which never fails."""
        self._agent = agent
        self._record = record

    async def rollback(self, by: str, model: str) -> RolledBack:
        """Send users back: out of a trial, or from the active version to its standby.

        Returns when users are back and that is written down, or after ROLLBACK_WAIT_S as it is
        then; the version that was left may still be unloaded.

        Raises:
            DeploymentRefused: there is nothing to go back to.
        """
        with self._recorded(by, "rollback", model):
            reason = f"rolled back by {by}"
            for _ in range(_TRIES):
                live = self._agent.conductors.get(model)
                if live is None:
                    self._check_standby(model)
                    self._agent.undo(model, Undo.OPERATOR, reason)
                    live = self._agent.conductors[model]
                elif not await live.tell(Event.CANCELLED, reason):  # it ends just now
                    await self._agent.ended(model, ROLLBACK_WAIT_S)
                    continue
                await live.over(ROLLBACK_WAIT_S)
                is_durable = self._agent.journal.is_durable
                return RolledBack(deployment=live.deployment, is_durable=is_durable)
            raise DeploymentRefused(
                model=model, action="rollback", reason="another deployment is ending"
            )

    async def approve(self, by: str, model: str) -> None:
        """Let a deployment that waits for it go on.

        Raises:
            DeploymentRefused: none waits.
        """
        with self._recorded(by, "approve", model):
            await self._tell(model, "approve", Event.APPROVED, f"approved by {by}")

    async def cancel(self, by: str, model: str) -> None:
        """End the deployment under way; its version is left alone until it is forgiven.

        Raises:
            DeploymentRefused: none is under way that can be.
        """
        with self._recorded(by, "cancel", model):
            await self._tell(model, "cancel", Event.CANCELLED, f"cancelled by {by}")

    async def pin(self, by: str, model: str, version: str) -> None:
        """Take no other version of a model than this; empty: any again. Raises StoreError."""
        await self._wish(by, "pin", model, pinned=version)

    async def hold(self, by: str, model: str, *, is_held: bool) -> None:
        """Take no new version of a model, or again some. Raises StoreError."""
        await self._wish(by, "hold", model, is_held=is_held)

    async def forgive(self, by: str, model: str, version: str) -> None:
        """Let a version be tried again that is quarantined here, or was tried too often.

        Raises:
            DeploymentRefused: no such version is signed.
            StoreError: it can't be written down.
        """
        with self._recorded(by, "forgive", model):
            offer = self._agent.trust.release(model, version)
            if offer is None:
                raise DeploymentRefused(
                    model=model, action="forgive", reason=f"no version {version} is signed"
                )
            await self._agent.journal.forgive(offer.digest)
            await self._agent.consider()

    async def sync_now(self, by: str) -> None:
        """Look for news now.

        Raises:
            SyncError: there is none to be had, and why.
        """
        with self._recorded(by, "sync", "*"):
            await self._agent.look()

    def outlook(self) -> tuple[Outlook, ...]:
        """Say how each model stands; does not block."""
        memory = self._agent.journal.memory
        live, refusals = self._agent.conductors, self._agent.refusals
        return tuple(
            Outlook(
                model=model,
                active=memory.serving[model].active if model in memory.serving else "",
                standby=memory.serving[model].standby if model in memory.serving else "",
                wish=memory.wishes.get(model, Wish()),
                deployment=live[model].deployment if model in live else None,
                waiting_for=live[model].waiting_for if model in live else "",
                refused=refusals.get(model),
            )
            for model in sorted({*memory.serving, *live, *refusals})
        )

    async def history(self, count: int) -> tuple[Deployment, ...]:
        """Read the newest deployments, at most HISTORY_MAX. Raises StoreError."""
        return await self._agent.journal.history(min(count, HISTORY_MAX))

    async def _wish(self, by: str, action: str, model: str, **changes: object) -> None:
        with self._recorded(by, action, model):
            wish = self._agent.journal.memory.wishes.get(model, Wish())
            await self._agent.journal.wish(model, msgspec.structs.replace(wish, **changes))
            await self._agent.consider()

    async def _tell(self, model: str, action: str, event: Event, reason: str) -> None:
        live = self._agent.conductors.get(model)
        if live is None:
            raise DeploymentRefused(model=model, action=action, reason="nothing is under way")
        if not await live.tell(event, reason):
            raise DeploymentRefused(
                model=model, action=action, reason=f"it is {live.deployment.state.value}"
            )

    def _check_standby(self, model: str) -> None:
        serving = self._agent.journal.memory.serving.get(model)
        reason = ""
        if serving is None or not serving.active:
            reason = "no version of it serves"
        elif not serving.standby:
            reason = "there is no version to go back to"
        if reason:
            raise DeploymentRefused(model=model, action="rollback", reason=reason)

    @contextlib.contextmanager
    def _recorded(self, by: str, action: str, model: str) -> Iterator[None]:
        try:
            yield
        except ApplianceError as error:
            self._record(by, action, model, error.code)
            raise
        self._record(by, action, model, "ok")
