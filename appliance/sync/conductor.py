"""Carry one deployment from state to state: save it, do what is commanded, feed back what comes.

What this room does: one deployment's acts, one after another, each of which may be cut short by an
event from outside; their outcomes as events; waiting, always with a reason that can be read.
What it knows: the order: decide, save, act. A save that fails holds the way forward and is tried
again; the way back goes on without.
What it never does: decide where an event leads (`deployment`), or whether a version is good
(`judge`, `health`); run two acts of one deployment at once.

A restart finds the last state that was saved, and nothing loaded: acts are done again from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine

import msgspec

from appliance import logs
from appliance.domain import Judgement
from appliance.errors import StoreError
from appliance.sync.acts import Acts, Site
from appliance.sync.deployment import Decision, Deployment, Happening, decide
from appliance.sync.host import Offer
from appliance.sync.states import ON_ENTERING, TABLE, Act, Event, State


class Conductor:
    """One deployment under way."""

    def __init__(self, deployment: Deployment, site: Site, offer: Offer | None = None) -> None:
        """Take a deployment that is saved as it stands, or a new one; `run` carries it on.

        offer: what the version of a new one is; it is saved with it.
        """
        self.deployment = deployment
        self._offer = offer
        self._site = site
        self._told = dict[Event, tuple[Happening, asyncio.Future[bool]]]()
        self._doing: asyncio.Task[Happening | None] | None = None
        self._acts = Acts(site, deployment.baseline)
        self._over = asyncio.Event()

    @property
    def waiting_for(self) -> str:
        """Say what holds it, in words for a person; empty while it goes on."""
        return self._acts.waiting_for

    @property
    def judgement(self) -> Judgement | None:
        """Say what measurements say now, while there are any."""
        return self._acts.judgement

    @property
    def fault(self) -> str:
        """Say why a committed version does not serve, so that it must be undone; else empty."""
        return self._acts.fault

    # --- from outside ---

    def tell(self, event: Event, reason: str) -> asyncio.Future[bool]:
        """Say that something happened; cuts the act short that is being done.

        The future says whether it was acted on, once that is saved: False if it means nothing in
        this state, or another event came first.
        """
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if (self.deployment.state, event) not in TABLE:
            future.set_result(False)
            return future
        happening = self._acts.happened(event, reason)
        _, kept = self._told.setdefault(event, (happening, future))
        if self._doing is not None:
            self._doing.cancel()
        return kept

    async def over(self, timeout_s: float) -> None:
        """Wait until an end was entered, but so long at most; what it commands may be under way."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), timeout_s)

    def tick(self) -> None:
        """Look at the deadline."""
        deadline = self.deployment.deadline_utc_ms
        if deadline and self._site.utc_ms() >= deadline:
            self.tell(Event.DEADLINE, f"not done by its deadline: {self.waiting_for}")

    async def run(self, restarted: Event | None = None) -> Deployment:
        """Carry the deployment to its end, and return it so; cancelling leaves it as it is saved.

        restarted: how the last run of this program ended, for one that is found under way.
        """
        if self._offer is not None:
            acts = await self._begin(self._offer)
        else:
            acts = ON_ENTERING[self.deployment.state]
        if restarted is not None:
            acts = await self._enter(self._acts.happened(restarted, "the program was restarted"))
        while not self.deployment.has_ended:
            acts = await self._enter(await self._next(acts))
        self._pass_over()
        self._over.set()
        for act in acts:
            await self._acts.perform(act, self.deployment)
        while not await self._site.book.settle():
            self._acts.waiting_for = "its end can't be written down"
            await self._site.sleep(self._site.pace.retry_s)
        return self.deployment

    async def _begin(self, offer: Offer) -> tuple[Act, ...]:
        """Save a new deployment; one that goes back does not wait for that."""
        acts, book = ON_ENTERING[self.deployment.state], self._site.book
        if self.deployment.undo is not None:
            async with asyncio.TaskGroup() as group:
                group.create_task(book.save(self.deployment, offer, must=False))
                happening = await self._next(acts)
            return await self._enter(happening)
        while True:
            try:
                await book.save(self.deployment, offer, must=True)
            except StoreError as error:
                self._acts.waiting_for = f"can't begin: {error}"
            else:
                return acts
            told = await self._until(self._pause())
            if told is not None:
                return await self._enter(told)

    # --- from state to state ---

    async def _next(self, acts: tuple[Act, ...]) -> Happening:
        """Do the acts of a state until something happens that means something in it."""
        for act in acts:
            happening = await self._until(self._acts.perform(act, self.deployment))
            if happening is not None and self._means(happening.event):
                return happening
        raise AssertionError(f"{self.deployment.state} was left by no event")

    async def _until(self, doing: Coroutine[None, None, Happening | None]) -> Happening | None:
        """Do something until it is done or an event from outside cuts it short."""
        told = self._take()
        if told is not None:
            doing.close()
            return told
        async with asyncio.TaskGroup() as group:
            task = self._doing = group.create_task(doing)
        self._doing = None
        return self._take() if task.cancelled() else task.result()

    async def _enter(self, happening: Happening) -> tuple[Act, ...]:
        """Save what an event makes of the deployment; then it is so."""
        decision = self._decided(happening)
        while not await self._saved(decision):
            told = await self._until(self._pause())
            if told is not None and self._means(told.event):
                happening = told
            decision = self._decided(happening)
        before, self.deployment = self.deployment, decision.deployment
        self._acts.waiting_for, self._acts.judgement = "", None
        self._resolve(happening.event, acted_on=True)
        self._log(before, happening)
        return decision.acts

    def _decided(self, happening: Happening) -> Decision:
        now = msgspec.structs.replace(self.deployment, baseline=self._acts.baseline)
        decision = decide(now, happening, self._site.bounds)
        assert decision is not None, (self.deployment.state, happening.event)
        return decision

    async def _saved(self, decision: Decision) -> bool:
        try:
            await self._site.book.save(decision.deployment, must=decision.must_be_saved)
        except StoreError as error:
            self._acts.waiting_for = f"can't go on to {decision.deployment.state.value}: {error}"
            return False
        return True

    async def _pause(self) -> None:
        await self._site.sleep(self._site.pace.retry_s)

    def _means(self, event: Event) -> bool:
        return (self.deployment.state, event) in TABLE

    def _take(self) -> Happening | None:
        """Take an event that was told and means something now; others stay until they do."""
        for event, (happening, _) in self._told.items():
            if self._means(event):
                return happening
        return None

    def _resolve(self, event: Event, *, acted_on: bool) -> None:
        _, future = self._told.pop(event, (None, None))
        if future is not None and not future.done():
            future.set_result(acted_on)

    def _pass_over(self) -> None:
        for event in list(self._told):
            self._resolve(event, acted_on=False)

    def _log(self, before: Deployment, happening: Happening) -> None:
        now = self.deployment
        logs.event(
            "deployment_step",
            level=logging.WARNING if now.state is State.STRANDED else logging.INFO,
            deployment=now.id,
            version=now.label,
            before=before.state.value,
            state=now.state.value,
            step=now.step,
            because=happening.event.value,
            reason=happening.reason,
            ms=now.entered_utc_ms - before.entered_utc_ms,
        )
