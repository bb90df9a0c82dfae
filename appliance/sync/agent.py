"""Keep this appliance on the versions that are signed for it: look, decide, carry, and come back.

What this room does: at the start, has served what is written down, and carries on what was under
way; on the calendar, on a hint or on a person's word, learns what is signed and begins or stops
deployments; afterwards looks whether a version is regretted.
What it knows: one deployment of a model at a time; what the operator asks for is in `orders`.
What it never does: need the hub. Without news, without a disk that can be written, what serves goes
on serving.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from appliance import logs
from appliance.config import Deployments as Settings
from appliance.contract.assignment import Assigned, Assignment
from appliance.contract.release import Trial
from appliance.domain import Digest, Verdict
from appliance.errors import ApplianceError, StoreError, SyncError
from appliance.sync.acts import Site
from appliance.sync.boot import serve_recorded, stand_by_recorded
from appliance.sync.conductor import Conductor
from appliance.sync.deployment import Deployment, Serving, Undo, plan, undoing
from appliance.sync.editions import Room
from appliance.sync.eligibility import (
    Eligible,
    Local,
    Refused,
    Wish,
    digest_of,
    eligible,
    withdrawn,
)
from appliance.sync.host import Offer, Trust
from appliance.sync.inbox import Inbox
from appliance.sync.journal import Journal
from appliance.sync.judge import judge, measured
from appliance.sync.schedule import Schedule
from appliance.sync.states import Event, State

_HEX_AFTER = len("sha256:")


def _not_known() -> None:
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Here:
    """What this appliance is. local_names: models that are files of the operator's own.

    free_bytes: reads what a version may take beside what is loaded; None: not known. editions: the
    quantisation that the operator wants, by model.
    """

    appliance_version: str
    memory_bytes: int
    local_names: Callable[[], frozenset[str]]
    free_bytes: Callable[[], int | None] = _not_known
    editions: Mapping[str, str] = field(default_factory=dict)


class Agent:
    """The life of deployments on this appliance. Belongs to one loop.

    refusals: by model, why what is assigned does not apply now. news_fault: why nothing new is
    learnt; empty while it is.
    """

    def __init__(
        self, settings: Settings, site: Site, journal: Journal, trust: Trust, here: Here
    ) -> None:
        """Take what is needed; `run` does the work. The journal is opened there."""
        self.refusals: dict[str, Refused] = {}
        self.news_fault = ""
        self.site = site
        self.journal = journal
        self.trust = trust
        self.conductors: dict[str, Conductor] = {}
        self._settings = settings
        self._here = here
        self._schedule: Schedule | None = None
        self._carried: dict[str, asyncio.Task[None]] = {}
        self._committed: dict[str, Deployment] = {}  # that may still be regretted
        self._stopped = set[Digest]()
        self._looking = asyncio.Lock()
        self._cleaning = asyncio.Lock()
        self._wanted = asyncio.Event()
        self._booted = asyncio.Event()
        self._closing = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None

    # --- life ---

    async def run(self, schedule: Schedule | None = None, inbox: Inbox | None = None) -> None:
        """Serve what is written down, then live until `close`.

        schedule: when to look for news by itself; None: only when told. inbox: where bundles are
        dropped; None: nowhere.

        Raises:
            StoreError: state.db can't be read.
        """
        async with asyncio.TaskGroup() as group:
            self._group = group
            await self._boot()
            self._schedule = schedule
            if schedule is not None:
                schedule.start()
            try:
                looking = [group.create_task(self._tick_on())]
                if inbox is not None:
                    looking.append(group.create_task(self._take_in(inbox)))
                await self._closing.wait()
            finally:
                if schedule is not None:
                    schedule.stop()
            self._group = None
            for task in (*self._carried.values(), *looking):
                task.cancel()
        await self.journal.close()

    def close(self) -> None:
        """End `run`; deployments under way stay as they are saved."""
        self._closing.set()

    def hint(self) -> None:
        """Look for news soon: the hub says there is some."""
        self._wanted.set()

    async def booted(self) -> None:
        """Wait until what is written down is served, as far as it can be."""
        await self._booted.wait()

    async def look(self, learn: Callable[[], Awaitable[None]] | None = None) -> None:
        """Learn what is signed, and act on it; without news, act on what is known.

        Waits for what is written down to be served first. learn: learns it from somewhere else than
        the usual sources.

        Raises:
            SyncError: nothing could be learnt.
        """
        await self._booted.wait()
        async with self._looking:
            try:
                await (learn or self.trust.refresh)()
                self.news_fault = ""
            except (SyncError, StoreError) as error:
                self.news_fault = str(error)
                raise
            finally:
                await self.consider()

    def version_failed(self, digest: Digest, reason: str) -> None:
        """Take note that a version can't be kept running: whoever hosts it has given it up.

        Call only while the agent runs.
        """
        for model, serving in self.journal.memory.serving.items():
            live = self.conductors.get(model)
            if live is not None and live.deployment.digest == digest:
                live.tell(Event.WORKER_LOST, reason)
            elif live is None and serving.active == digest and serving.standby:
                self.undo(model, Undo.CRASH_LOOP, reason)

    async def ended(self, model: str, timeout_s: float) -> None:
        """Wait until the deployment of a model that is under way has ended, but so long at most."""
        task = self._carried.get(model)
        if task is not None:
            await asyncio.wait({task}, timeout=timeout_s)

    def undo(self, model: str, undo: Undo, reason: str) -> None:
        """Begin to leave the active version of a model for its standby; does not block.

        Call only where there is a standby and no deployment under way.
        """
        memory = self.journal.memory
        serving = memory.serving[model]
        assert serving.standby, "there is nothing to go back to"
        assert model not in self.conductors, "one deployment at a time"
        self.refusals.pop(model, None)  # what is assigned is held against it when that is over
        offer = memory.offers[serving.active]
        deployment = undoing(
            model=model,
            version=offer.release.version,
            digest=serving.active,
            to=serving.standby,
            undo=undo,
            utc_ms=self.site.utc_ms(),
            reason=reason,
        )
        deployment = msgspec.structs.replace(
            deployment, id=self.journal.new_id(), quantisation=offer.quantisation
        )
        self._carry(deployment, offer=offer)

    # --- the start ---

    async def _boot(self) -> None:
        memory = await self.journal.open()
        self._committed = dict(memory.committed)
        for serving in list(memory.serving.values()):
            if serving.active:
                await self._serve(serving)
        for deployment in list(memory.under_way.values()):
            if deployment.model not in self.conductors:
                self._carry(deployment, restarted=memory.last_run)
        if memory.serving:  # a run that was killed may not have come to it
            await self._clean()
        self._booted.set()
        await self.consider()

    async def _serve(self, serving: Serving) -> None:
        reason = await serve_recorded(self.site, self.journal.memory, serving)
        if reason:
            self.undo(serving.model, Undo.CRASH_LOOP, reason)

    # --- time ---

    async def _tick_on(self) -> None:
        while True:
            await self.site.sleep(self._settings.tick_s)
            await self.tick()

    async def _take_in(self, inbox: Inbox) -> None:
        while True:
            await self.site.sleep(self._settings.tick_s)
            if await inbox.look():
                await self.consider()

    async def tick(self) -> None:
        """Look at clocks, deadlines, what could not be written, and what is regretted."""
        for conductor in list(self.conductors.values()):
            conductor.tick()
        await self.journal.settle()
        jumped = self._schedule is not None and self._schedule.tick(
            self.site.monotonic_ms(), self.site.utc_ms()
        )
        if jumped or self._wanted.is_set():
            self._wanted.clear()
            try:
                await self.look()
            except (SyncError, StoreError) as error:
                self._log("no_news", reason=str(error))
        elif self._is_due():
            await self.consider()
        await self._regret()

    def _is_due(self) -> bool:
        """Tell whether something that was refused until a moment may be asked again."""
        now = self.site.utc_ms()
        return any(0 < one.retry_utc_ms <= now for one in self.refusals.values())

    async def _regret(self) -> None:
        for model, deployment in list(self._committed.items()):
            age_ms = self.site.utc_ms() - deployment.entered_utc_ms
            serving = self.journal.memory.serving[model]
            is_past = not 0 <= age_ms <= self._settings.regret_s * 1000
            if is_past or serving.active != deployment.digest or not serving.standby:
                self._committed.pop(model)
                continue
            judgement = judge(
                measured(self.site.examiner.window(deployment.digest), shadow=False),
                deployment.baseline,
                deployment.strategy.probation or Trial(),
                self.site.bars,
                elapsed_s=age_ms / 1000,
                shadow=True,  # load has moved on since: times don't count
            )
            if judgement.verdict is Verdict.FAIL and model not in self.conductors:
                self._committed.pop(model)
                self.undo(model, Undo.REGRET, judgement.reason)

    # --- deciding ---

    async def consider(self) -> None:
        """Hold what is signed against what is here: begin, supersede, revoke.

        Does nothing before what is written down is known, and while the agent ends.
        """
        if self._group is None or not self._booted.is_set():
            return
        try:
            assignment = self.trust.assignment()
            assigned = {one.model: one for one in assignment.models} if assignment else {}
            for model in sorted({*assigned, *self.conductors, *self.journal.memory.serving}):
                await self._withdraw(model)
                self._steer(model, assigned.get(model), assignment)
        except StoreError as error:
            self._log("not_considered", reason=str(error))

    async def _withdraw(self, model: str) -> None:
        """Act on what the publisher of a model has withdrawn."""
        standing = self.trust.standing(model)
        if standing is None:
            return
        if standing.floor_sequence:
            await self.journal.raise_floor(model, standing.floor_sequence)
        serving = self.journal.memory.serving.get(model, Serving(model=model))
        live = self.conductors.get(model)
        if live is not None and live.deployment.undo is None:
            gone = self._gone(live.deployment.digest, model)
            if gone is not None:
                live.tell(Event.REVOKED, gone.reason)
        if serving.standby and live is None and self._gone(serving.standby, model) is not None:
            await self.journal.drop_standby(model)
            await self.site.host.stand_by(model, None)
            self._log("standby_revoked", model=model, reason="its publisher withdrew it")
        serving = self.journal.memory.serving.get(model, serving)
        gone = self._gone(serving.active, model) if serving.active else None
        if gone is not None and model not in self.conductors:
            await self._leave_revoked(model, gone.reason)

    def _gone(self, digest: Digest, model: str) -> Refused | None:
        offer = self.journal.memory.offers.get(digest)
        if offer is None:
            return None
        floor = self.journal.memory.serving.get(model, Serving(model=model)).floor_sequence
        standing = self.trust.standing(model)
        return withdrawn(digest[_HEX_AFTER:], offer.release.sequence, standing, floor)

    async def _leave_revoked(self, model: str, reason: str) -> None:
        """Do with a revoked active version what the site's policy says."""
        serving = self.journal.memory.serving[model]
        self._log("active_revoked", model=model, reason=reason)
        if self._settings.revoked_active == "warn":
            return
        if serving.standby:
            self.undo(model, Undo.REVOKED, reason)
        elif self._settings.revoked_active == "stop" and serving.active not in self._stopped:
            self._stopped.add(serving.active)
            try:
                await self.site.host.unload(serving.active)
            except ApplianceError as error:
                self._log("revoked_not_stopped", model=model, reason=str(error))

    def _steer(self, model: str, assigned: Assigned | None, assignment: Assignment | None) -> None:
        """Begin what applies to a model, or stop what does not any more."""
        live = self.conductors.get(model)
        is_halted = assignment is not None and assignment.halt
        if live is not None:
            self._stop_superseded(live, assigned, is_halted=is_halted)
            return
        if assigned is None:
            self.refusals.pop(model, None)
            return
        offer = self.trust.release(model, assigned.version)
        decision = eligible(
            assigned,
            (offer.release, offer.digest) if offer else None,
            self.trust.standing(model),
            self.journal.memory.serving.get(model, Serving(model=model)),
            self.journal.memory.wishes.get(model, Wish()),
            self._local(model),
            is_halted=is_halted,
            utc_ms=self.site.utc_ms(),
        )
        if isinstance(decision, Refused):
            self.refusals[model] = decision
            return
        assert offer is not None, "what is eligible is signed"
        self.refusals.pop(model, None)
        self._begin(decision, offer)

    def _stop_superseded(
        self, live: Conductor, assigned: Assigned | None, *, is_halted: bool
    ) -> None:
        now = live.deployment
        if now.undo is not None:
            return
        if is_halted:
            live.tell(Event.SUPERSEDED, "the director halted it")
        elif assigned is None:
            live.tell(Event.SUPERSEDED, "the director does not assign it any more")
        elif digest_of(assigned.release_sha256) != now.digest:
            live.tell(Event.SUPERSEDED, f"the director assigns version {assigned.version} now")

    def _begin(self, decision: Eligible, offer: Offer) -> None:
        release = decision.release
        known = self.journal.memory.offers.get(decision.digest)  # its files are here already
        edition = known.quantisation if known is not None else decision.quantisation
        offer = msgspec.structs.replace(offer, quantisation=edition)
        serving = self.journal.memory.serving.get(release.model, Serving(model=release.model))
        deployment = plan(
            model=release.model,
            version=release.version,
            digest=decision.digest,
            previous=serving.active,
            strategy=decision.strategy,
            quantisation=edition,
            utc_ms=self.site.utc_ms(),
        )
        self._carry(msgspec.structs.replace(deployment, id=self.journal.new_id()), offer=offer)

    def _room(self, model: str) -> Room:
        memory = self.journal.memory
        serving = memory.serving.get(model, Serving(model=model))
        active = memory.offers.get(serving.active)
        return Room(
            free_bytes=self._here.free_bytes(),
            freed_bytes=active.needed_bytes if active is not None else 0,
            wanted=self._here.editions.get(model, ""),
        )

    def _local(self, model: str) -> Local:
        memory, settings = self.journal.memory, self._settings
        return Local(
            appliance_version=self._here.appliance_version,
            memory_bytes=self._here.memory_bytes,
            quarantined=memory.quarantine,
            attempts=memory.attempts,
            attempts_max=settings.attempts_max,
            retry_s=settings.attempt_wait_s,
            local_names=self._here.local_names(),
            needs_approval=settings.needs_approval,
            may_stop_first=settings.may_stop_active,
            room=self._room(model),
        )

    # --- carrying ---

    def _carry(
        self, deployment: Deployment, *, offer: Offer | None = None, restarted: Event | None = None
    ) -> None:
        assert self._group is not None, "call only while it runs"
        conductor = Conductor(deployment, self.site, offer)
        self.conductors[deployment.model] = conductor
        carrying = self._carry_on(conductor, restarted)
        self._carried[deployment.model] = self._group.create_task(carrying)

    async def _carry_on(self, conductor: Conductor, restarted: Event | None) -> None:
        model = conductor.deployment.model
        try:
            ended = await conductor.run(restarted)
        finally:
            del self.conductors[model]
            self._carried.pop(model, None)
        await self._after(ended, conductor.fault)

    async def _after(self, ended: Deployment, fault: str) -> None:
        """Do what follows from an end."""
        model = ended.model
        if ended.state is State.COMMITTED and fault and ended.previous:
            self.undo(model, Undo.CRASH_LOOP, f"can't be switched to: {fault}")
            return
        if ended.state is State.COMMITTED:
            self._committed[model] = ended
        if ended.state is State.ROLLED_BACK and ended.undo is not None:
            await self.site.host.stand_by(model, None)
        elif ended.state is State.ROLLED_BACK and ended.is_alone:  # its standby made room too
            memory = self.journal.memory
            await stand_by_recorded(self.site, memory, memory.serving[model])
        await self._clean()
        await self.consider()

    async def _clean(self) -> None:
        """Let go of what no version needs that is written down; nothing may be, on a new disk."""
        try:
            async with self._cleaning:  # another would take files away under this one
                await self.site.blobs.prune(self.journal.roots)
                await self.site.let_go(self.journal.memory.named())
        except SyncError as error:
            self._log("not_pruned", reason=str(error))

    @staticmethod
    def _log(name: str, **fields: object) -> None:
        logs.event(name, level=logging.WARNING, **fields)
