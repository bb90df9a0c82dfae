"""Host versions for whoever decides about them: load, direct, switch, stand by, ask, measure.

What this room does: each act as one call that may be said twice; memory is looked at before a
version is loaded beside another; the version that was active becomes the standby of a switch.
What it knows: the router, the standbys, and what the configuration says of a model of that name.
What it never does: decide, trust, fetch, or remember anything beyond this process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import msgspec
import psutil

from appliance import gguf
from appliance.clock import monotonic_ms, utc_ms
from appliance.config import Hosting, Limits, Model
from appliance.contract.release import Expectation
from appliance.domain import (
    TOP_LOGPROBS_MAX,
    Answer,
    ChatPrompt,
    Delta,
    Digest,
    DrillReport,
    Final,
    HostedVersion,
    Loaded,
    Message,
    ModelKind,
    NoRoom,
    Priority,
    Prompt,
    RequestId,
    SamplingOptions,
    StandbyLevel,
    StopOptions,
    SwitchReport,
    TextPrompt,
    TokenLogprob,
    Traffic,
    VersionState,
    Window,
)
from appliance.errors import (
    ApplianceError,
    DeploymentRefused,
    ModelNotReady,
    ModelNotServed,
    ModelUnloadable,
    WorkerLost,
)
from appliance.runtime.devices import available_bytes
from appliance.runtime.loadable import Loadable
from appliance.runtime.router import Job, Router, Ticket
from appliance.runtime.served import Served
from appliance.runtime.signed_adapters import signed_adapters
from appliance.runtime.standby import Standbys

_DRILL = RequestId("drill")
_CHECK = RequestId("check")
_DRILL_PROMPT = "Hello"
_ANSWER_S = 120.0  # to one prompt of a health pack, or of a drill
_NO_ROOM = "there is no room beside the active version"
_OWN_BYTES = 256 * 1024 * 1024  # of a worker, where its publisher did not measure it


class Host:
    """The versions of this machine, as whoever deploys them sees it."""

    def __init__(
        self,
        router: Router,
        standbys: Standbys,
        models: tuple[Model, ...],
        settings: Hosting,
        *,
        limits: Limits,
        memory_reserve_bytes: int,
        clock: Callable[[], float] = monotonic_ms,
        read_available: Callable[[], int | None] = available_bytes,
    ) -> None:
        """Load as `models` say of the model of that name."""
        self._read_available = read_available
        self._router = router
        self._standbys = standbys
        self._models = {model.name: model for model in models if model.name}
        self._settings = settings
        self._limits = limits
        self._memory_reserve_bytes = memory_reserve_bytes
        self._clock = clock

    # --- loading ---

    async def load(self, hosted: HostedVersion, instead_of: Digest | None) -> Loaded | NoRoom:
        """Load a version that nobody is sent to yet; instead_of: one that is stopped first.

        Where that is the active version, its file stays in the page cache, and whoever asks for the
        model meanwhile must ask again. Where it is the version itself, no room is asked for.

        Raises:
            ModelUnloadable: the file can't be served; what was stopped stays stopped.
            WorkerLost: its worker ended too often since.
            DeploymentRefused: it is a candidate that clients are sent to.
        """
        began_ms = self._clock()
        served = self._router.served(hosted.digest)
        is_new = served is None
        if served is None:
            loadable = await self._loadable(hosted)
            if instead_of is None:
                room = self._no_room(loadable)
                if room is not None:
                    return room
            elif instead_of != hosted.digest:
                await self._make_room(hosted.version.model, instead_of)
            if self._router.row(hosted.version.model).active == hosted.digest:
                self._standbys.drop(hosted.version.model)  # it was stopped for another, and is back
            served = await self._serve(loadable)
        await served.settled.wait()
        if served.state is VersionState.FAILED:
            raise served.failure or WorkerLost(cause="failed", tokens_sent=0)
        self._router.wake(hosted.digest)
        own_bytes = _own_bytes(served)
        if is_new and instead_of is None:
            room = self._too_little_left(hosted, own_bytes)
            if room is not None:
                await self._router.unload(hosted.digest, drain_s=self._settings.unload_drain_s)
                return room
        return Loaded(
            digest=hosted.digest,
            load_ms=self._clock() - began_ms,
            memory_bytes=own_bytes,
            tokenizer_sha256=await asyncio.to_thread(_tokenizer_sha256, served.path),
        )

    async def unload(self, digest: Digest) -> None:
        """Stop a version that nobody is sent to, when its requests have ended. See `Router`."""
        await self._router.unload(digest, drain_s=self._settings.unload_drain_s)

    # --- traffic ---

    async def direct(self, model: str, traffic: Traffic) -> None:
        """Say who is on trial, from now on. Raises as `Router.direct`.

        Raises:
            ModelNotReady: the candidate is not loaded.
        """
        if traffic.candidate is not None and self._router.served(traffic.candidate) is None:
            raise ModelNotReady(model=model, state="absent", retry_after_s=1.0)
        self._router.direct(model, traffic)

    async def switch(self, model: str, to: Digest, expecting: Digest | None) -> SwitchReport:
        """Make a version active at once, loading it first if it stands by without being loaded.

        Raises:
            DeploymentRefused: another one is active than expected, or `to` is not known here.
            ModelUnloadable, ModelNotReady: `to` can't be loaded; nothing was changed.

        Where there is no room for it beside the active version, that is stopped first: there is no
        other way back.
        """
        if self._router.served(to) is not None:
            return self._switched(model, to, expecting)
        async with self._standbys.undisturbed():  # a look would unload what nobody is sent to yet
            standby, stopped = self._standbys.loadable(to), None
            if standby is not None and self._router.served(to) is None:
                stopped = await self._bring_up(standby, expecting)
            return self._switched(model, to, expecting, stopped)

    def _switched(
        self, model: str, to: Digest, expecting: Digest | None, stopped: Loadable | None = None
    ) -> SwitchReport:
        """Switch, and have who was active stand by; stopped: that one, if it is not loaded."""
        report = self._router.switch(model, to, expecting)
        previous = self._router.loadable(report.previous) or stopped
        if report.previous != to and previous is not None:
            self._standbys.keep(previous, unloaded_for=_NO_ROOM if stopped else "")
        return report

    async def _bring_up(self, standby: Loadable, active: Digest | None) -> Loadable | None:
        """Load a standby; returns the active version if that had to be stopped for it.

        Raises:
            ModelUnloadable: it can't be loaded; who was active is again.
        """
        former = self._router.loadable(active) if active is not None else None
        if former is None or self._no_room(standby) is None:
            await self._serve(standby)
            return None
        digest = former.version.digest
        await self._router.rest(digest, drain_s=self._settings.unload_drain_s)
        try:
            await self._serve(standby)
        except ApplianceError:
            await self._serve(former)
            self._router.wake(digest)
            raise
        return former

    async def stand_by(self, model: str, hosted: HostedVersion | None) -> None:
        """Keep a version, or none, as near to serving as memory allows; does not wait for that."""
        if hosted is None:
            self._standbys.drop(model)
        else:
            loaded = self._router.loadable(hosted.digest)
            self._standbys.keep(loaded or await self._loadable(hosted))

    # --- asking and measuring ---

    async def ask(
        self, digest: Digest, prompt: Expectation, *, has_logprobs: bool = False
    ) -> Answer:
        """Have a loaded version answer one prompt, greedily, whoever it serves.

        The answer has log-probabilities if the prompt compares them, or `has_logprobs`.

        Raises:
            ApplianceError: it could not answer.
        """
        asked: Prompt = TextPrompt(text=prompt.prompt)
        if prompt.is_chat:
            asked = ChatPrompt(messages=(Message(role="user", content=prompt.prompt),))
        served = self._served(digest)
        job = await self._job(served, asked, _CHECK, prompt.max_tokens)
        if prompt.likely or has_logprobs:
            job = msgspec.structs.replace(job, top_logprobs=TOP_LOGPROBS_MAX)
        text, tokens, first_ms, reason = "", 0, None, ""
        logprobs: list[TokenLogprob] = []
        async with asyncio.timeout(_ANSWER_S), aclosing(served.admit(job).events()) as events:
            async for event in events:
                if isinstance(event, Delta):
                    text, tokens = text + event.text, tokens + len(event.token_ids)
                    logprobs += event.logprobs
                    first_ms = self._clock() if first_ms is None else first_ms
                elif isinstance(event, Final):
                    reason = event.finish_reasons[0].value
        decode_ms = 0.0 if first_ms is None else self._clock() - first_ms
        return Answer(
            text=text,
            token_count=tokens,
            decode_ms=decode_ms,
            finish_reason=reason,
            logprobs=tuple(logprobs),
        )

    def window(self, digest: Digest) -> Window:
        """Read what was measured of a version since traffic was directed anew; never blocks."""
        return self._router.window(digest)

    # --- the way back, rehearsed ---

    async def drill(self, model: str) -> DrillReport:
        """Measure the way back to the standby on a request of our own, and put all back.

        No user's request notices, but for the cores a standby takes that has to be loaded for it.
        What goes wrong is the report's reason.

        Raises:
            DeploymentRefused: the model has no standby, or one with no room beside the active.
        """
        async with self._standbys.undisturbed():  # a look would unload what nobody is sent to
            return await self._drilled(model)

    async def _drilled(self, model: str) -> DrillReport:
        standby = self._router.row(model).standby
        loadable = None if standby is None else self._router.loadable(standby)
        was_loaded = loadable is not None
        loadable = loadable or (self._standbys.loadable(standby) if standby is not None else None)
        if loadable is None:
            raise DeploymentRefused(model=model, action="drill", reason="there is no standby")
        if not was_loaded and self._no_room(loadable) is not None:
            raise DeploymentRefused(model=model, action="drill", reason=_NO_ROOM)
        began_ms = self._clock()
        measured: tuple[float, float, float, str] = (0.0, 0.0, 0.0, "")
        try:
            served = self._router.served(loadable.version.digest) or await self._serve(loadable)
            load_ms = 0.0 if was_loaded else self._clock() - began_ms
            measured = (load_ms, *await self._rehearse(model, served), "")
        except (ApplianceError, TimeoutError) as error:
            measured = (0.0, 0.0, 0.0, str(error) or "no answer in time")
        finally:
            if not was_loaded:
                await self._router.unload(loadable.version.digest, drain_s=0.0)
        load_ms, accepted_ms, first_token_ms, reason = measured
        report = DrillReport(
            version=loadable.version.label,
            level=StandbyLevel.LOADED if was_loaded else StandbyLevel.CACHED,
            utc_ms=utc_ms(),
            load_ms=load_ms,
            accepted_ms=accepted_ms,
            first_token_ms=first_token_ms,
            reason=reason,
        )
        self._standbys.drilled(model, report)
        return report

    async def _rehearse(self, model: str, served: Served) -> tuple[float, float]:
        """Measure from the command to the acceptance, and to the first token, in ms."""
        if served.kind is not ModelKind.GENERATE:
            raise DeploymentRefused(model=model, action="drill", reason="it generates no text")
        began_ms = self._clock()
        job = await self._job(served, TextPrompt(text=_DRILL_PROMPT), _DRILL, 1)
        ticket = self._router.rehearse(model, job)
        accepted_ms = self._clock() - began_ms
        await _answered(ticket)
        return accepted_ms, self._clock() - began_ms

    async def _job(
        self, served: Served, prompt: Prompt, request_id: RequestId, max_tokens: int
    ) -> Job:
        prepared = await self._router.prepare(served.version, prompt)
        return Job(
            request_id=request_id,
            prompt_ids=prepared.token_ids,
            seed=0,
            sampling=SamplingOptions(temperature=0.0),
            stop=StopOptions(max_tokens=max_tokens),
            priority=Priority.NORMAL,
            is_check=True,
        )

    async def _serve(self, loadable: Loadable) -> Served:
        await self._router.load(loadable)
        return self._served(loadable.version.digest)

    def _served(self, digest: Digest) -> Served:
        served = self._router.served(digest)
        if served is None:
            raise ModelNotServed(model=digest)
        return served

    async def _loadable(self, hosted: HostedVersion) -> Loadable:
        """Say how a version is to be loaded. Raises ModelUnloadable: an adapter can't be."""
        path = hosted.weights[0]
        known = self._models.get(hosted.version.model)
        settings = Model(path=path) if known is None else msgspec.structs.replace(known, path=path)
        own_bytes = hosted.memory_bytes - hosted.version.blob_bytes
        return Loadable(
            version=hosted.version,
            path=Path(path),
            settings=settings,
            own_bytes=own_bytes if own_bytes > 0 else _OWN_BYTES,
            adapters=await asyncio.to_thread(signed_adapters, hosted, self._limits),
        )

    async def _make_room(self, model: str, digest: Digest) -> None:
        """Stop a version for another of its model; of the active one the file stays near."""
        if digest != self._router.row(model).active:
            await self._router.unload(digest, drain_s=self._settings.unload_drain_s)
            return
        stopped = self._router.loadable(digest)
        await self._router.rest(digest, drain_s=self._settings.unload_drain_s)
        if stopped is not None:
            self._standbys.keep(stopped, unloaded_for=_NO_ROOM)
            await self._standbys.look()

    def _no_room(self, loadable: Loadable) -> NoRoom | None:
        available = self._read_available()
        needed = loadable.version.blob_bytes + loadable.own_bytes
        free = needed if available is None else available - self._memory_reserve_bytes
        return None if needed <= free else NoRoom(needed_bytes=needed, free_bytes=max(0, free))

    def _too_little_left(self, hosted: HostedVersion, own_bytes: int) -> NoRoom | None:
        """Look again once it is loaded: what it takes was an estimate before.

        One that takes as much as its file has its weights copied, and needs the file no longer.
        """
        available, blob_bytes = self._read_available(), hosted.version.blob_bytes
        needed = own_bytes if own_bytes >= blob_bytes else own_bytes + blob_bytes
        free = needed if available is None else available + own_bytes - self._memory_reserve_bytes
        return None if needed <= free else NoRoom(needed_bytes=needed, free_bytes=max(0, free))


async def _answered(ticket: Ticket) -> None:
    async with asyncio.timeout(_ANSWER_S), aclosing(ticket.events()) as events:
        async for _ in events:
            pass


def _tokenizer_sha256(path: Path) -> str:
    """Compute the digest of a file's tokenizer; blocks on the disk.

    Raises:
        ModelUnloadable: the file can't be read any more.
    """
    try:
        return gguf.tokenizer_digest(path, gguf.read_head(path))
    except gguf.GgufFault as fault:
        raise ModelUnloadable(path=str(path), reason=str(fault)) from fault


def _own_bytes(served: Served) -> int:
    """Read what a loaded version takes beyond its files and its cells; 0 if it has gone.

    The pages of mapped files are left out: they lie in the page cache, whoever maps them.
    """
    facts = served.facts
    cells_bytes = facts.kv_cells * facts.kv_bytes_per_token if facts is not None else 0
    try:
        memory = psutil.Process(served.pid).memory_info()
    except psutil.Error:
        return 0
    return max(0, int(memory.rss - memory.shared) - cells_bytes)
