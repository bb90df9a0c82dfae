"""Do what a deployment's state commands, and say what came of it as an event.

What this room does: one method for each `Act`; failures of others as events; why it waits.
What it knows: every act may be cut short, and may be done again.
What it never does: change a deployment, save it, or decide what an event leads to.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from appliance import logs
from appliance.contract.release import Expectation
from appliance.domain import (
    Answer,
    Digest,
    HostedVersion,
    Judgement,
    Loaded,
    NoRoom,
    Traffic,
    Value,
    Verdict,
)
from appliance.errors import (
    ApplianceError,
    BlobCorrupt,
    DocumentRefused,
    ModelUnloadable,
    SyncError,
    WorkerLost,
)
from appliance.sync.deployment import Bounds, Deployment, Happening
from appliance.sync.health import Gate, gate, overrun
from appliance.sync.host import Blobs, Examiner, ModelHost, Offer
from appliance.sync.judge import Bars, Measures, judge, measured
from appliance.sync.states import Act, Event, State

MEMORY_SLACK_BYTES = 1 << 30


class Book(Protocol):
    """Write deployments down; see `journal`."""

    async def save(self, deployment: Deployment, offer: Offer | None = None, *, must: bool) -> bool:
        """Write down a state that was entered, and what follows from it."""
        ...

    async def settle(self) -> bool:
        """Write down what could not be; tells whether all is."""
        ...


class Pace(Value):
    """How often something is looked at, and how often tried. Seconds and counts."""

    measure_s: float = 1.0
    retry_s: float = 5.0
    tries_max: int = 3


async def _nothing_laid_out(_: frozenset[Digest]) -> None:
    """Leave everything as it is."""


async def _unseen(_: Offer) -> None:
    """Look into nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """What deployments work with.

    hosted: lays a version out for its worker. let_go: takes away what was laid out of all versions
    but these; raises SyncError. checked: looks into files that were fetched, before anything native
    does; raises as `Blobs.fetch`. window: says why nothing may be activated now; empty: it may.
    alert: tells a person. sleep: waits for so many seconds. memory_slack_bytes: what a candidate
    may take beyond what its publisher states.
    """

    host: ModelHost
    examiner: Examiner
    blobs: Blobs
    book: Book
    hosted: Callable[[Offer], Awaitable[HostedVersion]]
    let_go: Callable[[frozenset[Digest]], Awaitable[None]] = _nothing_laid_out
    offers: Callable[[Digest], Offer]
    window: Callable[[], str]
    alert: Callable[[Deployment], None]
    utc_ms: Callable[[], int]
    monotonic_ms: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]
    bars: Bars
    bounds: Bounds
    pace: Pace
    memory_slack_bytes: int = MEMORY_SLACK_BYTES
    checked: Callable[[Offer], Awaitable[None]] = _unseen


class Acts:
    """The acts of one deployment.

    waiting_for: what holds the act being done, in words. judgement: the last, while measuring.
    baseline: what was last measured of the previous version, where it was enough to compare with.
    fault: why a committed version could not be switched to, which has to be undone; else empty.
    """

    def __init__(self, site: Site, baseline: Measures) -> None:
        """Begin with what was measured of the previous version before a restart."""
        self.waiting_for = ""
        self.fault = ""
        self.judgement: Judgement | None = None
        self.baseline = baseline
        self._site = site
        self._loaded: Loaded | None = None
        self._acts = {
            Act.START: self._start,
            Act.FETCH: self._fetch,
            Act.AWAIT_WINDOW: self._await_window,
            Act.LOAD: self._load,
            Act.CHECK: self._check,
            Act.DIRECT: self._direct,
            Act.MEASURE: self._measure,
            Act.AWAIT_APPROVAL: self._await_approval,
            Act.SWITCH_OVER: self._switch_over,
            Act.SWITCH_BACK: self._switch_back,
            Act.UNLOAD: self._unload,
            Act.ALERT: self._alert,
        }

    async def perform(self, act: Act, now: Deployment) -> Happening | None:
        """Do one act for a deployment as it stands; None: done, and nothing happened by it."""
        return await self._acts[act](now)

    def happened(self, event: Event, reason: str = "") -> Happening:
        """Say that something happened just now."""
        return Happening(event=event, utc_ms=self._site.utc_ms(), reason=reason)

    # --- acts on the way forward ---

    async def _start(self, _: Deployment) -> Happening:
        return self.happened(Event.STARTED)

    async def _fetch(self, now: Deployment) -> Happening:
        files = self._offer(now).files
        while True:
            try:
                await self._site.blobs.fetch(files, self._progress)
                self.waiting_for = "a look into its files"
                await self._site.checked(self._offer(now))
            except (BlobCorrupt, DocumentRefused) as error:
                return self.happened(Event.BLOB_REFUSED, str(error))
            except SyncError as error:
                self.waiting_for = str(error)
                await self._site.sleep(self._site.pace.retry_s)
            else:
                return self.happened(Event.BLOBS_READY)

    def _progress(self, words: str) -> None:
        self.waiting_for = words

    async def _await_window(self, _: Deployment) -> Happening:
        while closed := self._site.window():
            self.waiting_for = closed
            await self._site.sleep(self._site.pace.measure_s)
        return self.happened(Event.WINDOW_OPEN)

    async def _load(self, now: Deployment) -> Happening:
        if now.previous and not now.is_alone:
            self._note_baseline(now.previous, at_least=1)
        hosted = await self._laid_out(now)
        instead_of = now.previous if now.is_alone else None
        try:
            loaded = await self._site.host.load(hosted, instead_of)
        except WorkerLost as error:
            return self.happened(Event.WORKER_LOST, str(error))
        except (ModelUnloadable, SyncError) as error:
            return self.happened(Event.LOAD_FAILED, str(error))
        if isinstance(loaded, NoRoom):
            reason = f"needs {loaded.needed_bytes} bytes, {loaded.free_bytes} are free"
            return self.happened(Event.NO_ROOM, reason)
        self._loaded = loaded
        return self.happened(Event.LOADED, f"in {loaded.load_ms:.0f} ms")

    async def _laid_out(self, now: Deployment) -> HostedVersion:
        """Lay the version out; a disk that is full or gone is waited for."""
        while True:
            try:
                return await self._site.hosted(self._offer(now))
            except SyncError as error:
                self.waiting_for = str(error)
                await self._site.sleep(self._site.pace.retry_s)

    async def _check(self, now: Deployment) -> Happening:
        release = self._offer(now).release
        pack = release.health
        self.waiting_for = f"answers to {len(pack.prompts)} prompts of its health pack"
        answers = tuple([await self._answer(now.digest, prompt) for prompt in pack.prompts])
        compares = pack.speed_ratio_min > 0 and now.previous and not now.is_alone
        of_active = tuple(
            [await self._answer(now.previous, prompt) for prompt in pack.prompts]
            if compares
            else []
        )
        loaded = self._loaded or Loaded(digest=now.digest, load_ms=0.0, memory_bytes=0)
        if pack.prompts:  # their expressions may take long
            passed = await asyncio.to_thread(gate, pack, release.facts, loaded, answers, of_active)
        else:
            passed = gate(pack, release.facts, loaded, answers, of_active)
        if passed.ok:
            passed = self._within_memory(now, loaded) or passed
        event = Event.CHECKS_PASSED if passed.ok else Event.CHECK_FAILED
        return self.happened(event, passed.reason)

    def _within_memory(self, now: Deployment, loaded: Loaded) -> Gate | None:
        """Hold what it takes against what was signed; None: it is within that."""
        reason = overrun(
            loaded,
            stated_bytes=self._offer(now).needed_bytes,
            slack_bytes=self._site.memory_slack_bytes,
        )
        return Gate(ok=False, reason=reason) if reason else None

    async def _answer(self, digest: Digest, prompt: Expectation) -> Answer | None:
        try:
            return await self._site.examiner.ask(digest, prompt)
        except ApplianceError:
            return None

    async def _direct(self, now: Deployment) -> Happening | None:
        try:
            await self._site.host.direct(now.model, now.traffic)
        except ApplianceError as error:
            return self.happened(Event.WORKER_LOST, str(error))
        return None

    async def _measure(self, now: Deployment) -> Happening:
        site = self._site
        trial, shadow = now.trial, now.state is State.SHADOWING
        assert trial is not None, now.state
        began_ms = site.monotonic_ms()
        while True:
            self._note_baseline(now.previous, at_least=trial.samples_min)
            judgement = judge(
                measured(site.examiner.window(now.digest), shadow=shadow),
                self.baseline,
                trial,
                site.bars,
                elapsed_s=(site.monotonic_ms() - began_ms) / 1000,
                shadow=shadow,
            )
            self.judgement, self.waiting_for = judgement, judgement.reason
            if judgement.verdict is Verdict.PASS:
                return self.happened(Event.VERDICT_PASS, judgement.reason)
            if judgement.verdict is Verdict.FAIL:
                return self.happened(Event.VERDICT_FAIL, judgement.reason)
            await site.sleep(site.pace.measure_s)

    async def _await_approval(self, _: Deployment) -> None:
        self.waiting_for = "a person's approval"
        await asyncio.Event().wait()

    async def _switch_over(self, now: Deployment) -> None:
        """Make the committed version the active one; it is so on disk already."""
        self.fault = await self._insist(
            now, lambda: self._site.host.switch(now.model, now.digest, now.previous or None)
        )

    # --- acts on the way back ---

    async def _switch_back(self, now: Deployment) -> Happening:
        reason = await self._insist(now, lambda: self._send_users_back(now))
        event = Event.ROLLBACK_FAILED if reason else Event.TRAFFIC_BACK
        return self.happened(event, reason or now.reason)

    async def _send_users_back(self, now: Deployment) -> None:
        host = self._site.host
        if now.undo is not None:
            await host.switch(now.model, now.previous, now.digest)
            return
        await host.direct(now.model, Traffic())
        if now.is_alone:
            previous = await self._site.hosted(self._site.offers(now.previous))
            loaded = await host.load(previous, now.digest)
            if isinstance(loaded, NoRoom):
                raise ModelUnloadable(path=previous.version.label, reason="there is no room")

    async def _unload(self, now: Deployment) -> None:
        host = self._site.host
        if now.undo is None:
            await self._insist(now, lambda: host.direct(now.model, Traffic()))
        await self._insist(now, lambda: host.unload(now.digest))

    async def _alert(self, now: Deployment) -> None:
        self._site.alert(now)

    async def _insist(self, now: Deployment, act: Callable[[], Awaitable[object]]) -> str:
        """Do something, trying a few times; returns why it failed the last time, or nothing."""
        reason = ""
        for attempt in range(self._site.pace.tries_max):
            try:
                await act()
            except ApplianceError as error:
                reason = str(error)
                logs.event(
                    "deployment_act_failed",
                    level=logging.WARNING,
                    deployment=now.id,
                    version=now.label,
                    state=now.state.value,
                    attempt=attempt + 1,
                    reason=reason,
                )
                await self._site.sleep(self._site.pace.retry_s)
            else:
                return ""
        return reason

    # --- what is known of it ---

    def _offer(self, now: Deployment) -> Offer:
        return self._site.offers(now.digest)

    def _note_baseline(self, digest: Digest, *, at_least: int) -> None:
        """Keep what is measured of the previous version, where it is enough to compare with."""
        seen = measured(self._site.examiner.window(digest), shadow=False)
        if seen.first_token.count >= at_least:
            self.baseline = seen
