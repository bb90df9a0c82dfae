"""Bring requests to versions: who is asked, who is let in, and who waits for whom.

What this room does: loads and unloads versions under their roles; prepares prompts; gives tickets,
or refuses now with a reason; has the adapters of a version loaded; drains, closes.
What it knows: the table of roles and the loaded versions; `direction` alone changes the one, and
`finding` reads both for a request.
What it never does: look into a prompt, or talk to a worker itself (that is `served`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from appliance.clock import monotonic_ms, utc_ms
from appliance.config import Engine, Limits, Model, Scheduling
from appliance.config import Hosting as HostingSettings
from appliance.domain import (
    AdapterStatus,
    Constraint,
    Digest,
    EmbedResult,
    ModelFacts,
    ModelKind,
    ModelStatus,
    ModelVersion,
    Prompt,
    RankPrompt,
    SwitchReport,
    Traffic,
    Window,
)
from appliance.errors import Draining, InvalidRequest
from appliance.runtime import wire
from appliance.runtime.adapters import AdapterFile
from appliance.runtime.direction import Direction
from appliance.runtime.event_queue import Moved, TicketEvent
from appliance.runtime.finding import find
from appliance.runtime.hosting import Hosting
from appliance.runtime.loadable import Loadable
from appliance.runtime.prompts import check_bytes
from appliance.runtime.roles import Roles, Row
from appliance.runtime.served import Observer, Served
from appliance.runtime.shadow import Copied, Shadow
from appliance.runtime.text_process import TextProcess
from appliance.runtime.tickets import EmbedJob, Job, Ticket

_SCHEDULING = Scheduling()
_HOSTING = HostingSettings(spare_worker=False)  # who serves one version, and no other, needs none

__all__ = ["Copied", "EmbedJob", "Job", "Moved", "Observer", "Router", "Ticket", "TicketEvent"]


class Router:
    """The one way from requests to workers.

    `run` owns every task and must be running before `serve` is awaited. `workers_planned`: among
    how many models the cores are divided.
    """

    def __init__(
        self,
        engine: Engine,
        limits: Limits,
        observer: Observer,
        *,
        scheduling: Scheduling = _SCHEDULING,
        workers_planned: int = 1,
        hosting: HostingSettings = _HOSTING,
        clock: Callable[[], float] = monotonic_ms,
    ) -> None:
        """Take the bounds; nothing is started yet."""
        self._engine = engine
        self._limits = limits
        self._observer = observer
        self._roles = Roles()
        self._text = TextProcess(engine, limits, observer)
        self._hosting = Hosting(
            engine,
            limits,
            scheduling,
            observer,
            self._text,
            settings=hosting,
            models_planned=workers_planned,
            clock=clock,
            on_ready=lambda served: self._direction.take_ready(served),  # noqa: PLW0108 - made below
            on_failed=lambda served: self._direction.take_failure(served),  # noqa: PLW0108
        )
        self._shadow = Shadow(self._hosting, self._text, streams_max=hosting.shadow_streams)
        self._direction = Direction(
            self._roles, self._hosting, observer, clock=clock, on_trial_ended=self._shadow.end
        )
        self._closing = asyncio.Event()
        self._closed = asyncio.Event()
        self._draining = False

    # --- life ---

    async def run(self) -> None:
        """Own every task of the runtime until `close`, or until cancelled."""
        try:
            await self._hosting.run(self._closing, self._shadow.run())
        finally:
            self._closed.set()

    async def serve(
        self, version: ModelVersion, path: Path, settings: Model, *, active: bool = True
    ) -> ModelFacts:
        """Load a version in a worker of its own; see `load`."""
        loadable = Loadable(version=version, path=path, settings=settings)
        return await self.load(loadable, active=active)

    async def load(self, loadable: Loadable, *, active: bool = False) -> ModelFacts:
        """Load a version and its adapters in a worker; return its facts when it answers.

        active: it serves its model, which has no active version yet; else it is a candidate that
        only requests by its label reach. Progress shows in `models()`. Cancelling takes the version
        out again.

        Raises:
            ModelUnloadable: the file, or an adapter, can't be served, now or ever.
            Draining: the router is closing.
        """
        version = loadable.version
        options = await self._hosting.options(version.model, loadable.path, loadable.settings)
        if self._draining:
            raise Draining
        served = self._hosting.start(loadable, options)
        self._direction.add(version, active=active)
        ready = False
        try:
            await self._hosting.ready(served, loadable)
            ready = True
        finally:
            if not ready:
                self._hosting.stop(version)
                self._direction.remove(version.digest)
        assert served.facts is not None, "a version that is ready has facts"
        return served.facts

    async def unload(self, digest: Digest, *, drain_s: float) -> None:
        """Stop a version that nobody is sent to, once its requests have ended, or drain_s is over.

        One that is not loaded is left at that. What has no answer yet moves to the active version.

        Raises:
            DeploymentRefused: clients are sent to it.
        """
        served = self._hosting.get(digest)
        if served is None:
            return
        self._roles.check_removal(digest)
        served.book.move_unanswered()
        await self._emptied(served, drain_s)
        self._roles.check_removal(digest)
        await self._stop(served)

    async def rest(self, digest: Digest, *, drain_s: float) -> None:
        """Stop the active version of a model to make room for another; it stays the active one.

        From now on requests for the model are refused, to be asked again, until it is loaded and
        `wake` says so, or another is switched to. What was let in before has drain_s to end.
        """
        served = self._hosting.get(digest)
        if served is None:
            return
        self._direction.rest(served.version.model)
        await self._emptied(served, drain_s)
        await self._stop(served)

    def wake(self, digest: Digest) -> None:
        """Send requests to a loaded version again, if it is the active one and rests."""
        served = self._hosting.get(digest)
        if served is not None and self._roles.rests(digest):
            self._direction.wake(served.version.model)

    async def _emptied(self, served: Served, drain_s: float) -> None:
        try:
            async with asyncio.timeout(drain_s):
                await served.book.idle.wait()
        except TimeoutError:
            self._observer.event("unloaded_undrained", model=served.version.label)

    async def _stop(self, served: Served) -> None:
        task = self._hosting.stop(served.version)
        self._direction.remove(served.version.digest)
        await asyncio.wait({task})
        await self._hosting.forget(served.version)

    def drain(self) -> None:
        """Admit nothing more; what was admitted goes on. Idempotent, does not block."""
        self._draining = True

    async def drained(self, timeout_s: float) -> bool:
        """Wait until no ticket is left, at most timeout_s; tell whether none is."""
        try:
            async with asyncio.timeout(timeout_s):
                for served in self._hosting:
                    await served.book.idle.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """End every ticket and every process; returns when all are gone. Idempotent.

        Bounded by the kill ladder of each process, which are gone through at the same time.
        """
        self._draining = True
        self._closing.set()
        if self._hosting.has_run:
            async with asyncio.timeout(5 * self._engine.stop_wait_s):
                await self._closed.wait()

    # --- roles ---

    def row(self, model: str) -> Row:
        """Read the roles of a model; of one that is not served, an empty row."""
        return self._roles.row(model)

    def direct(self, model: str, traffic: Traffic) -> None:
        """Say who is on trial, from now on. See `Direction.direct`."""
        self._direction.direct(model, traffic)

    def switch(self, model: str, to: Digest, expecting: Digest | None) -> SwitchReport:
        """Make a loaded version the active one, now. See `Direction.switch`."""
        return self._direction.switch(model, to, expecting)

    def keep_standby(self, model: str, digest: Digest | None) -> None:
        """Name the standby of a model; whether it is loaded is another matter."""
        self._direction.keep_standby(model, digest)

    def rehearse(self, model: str, job: Job) -> Ticket:
        """Switch to the loaded standby, let one request in there, and switch back; never blocks.

        No other request notices: all of it is one call, and nothing is moved.

        Raises:
            ModelNotReady, ModelNotServed, DeploymentRefused: there is no standby that answers.
        """
        with self._direction.rehearsing(model):
            return self.admit(self.find(model), job)

    # --- reading ---

    def served(self, digest: Digest) -> Served | None:
        """Find a loaded version, to look at it."""
        return self._hosting.get(digest)

    def loadable(self, digest: Digest) -> Loadable | None:
        """Find how a loaded version was loaded, and what it takes."""
        return self._hosting.loadable(digest)

    def models(self) -> tuple[ModelStatus, ...]:
        """List what is loaded, in the order of loading."""
        return tuple(served.status(self._roles.role(served.version)) for served in self._hosting)

    @property
    def text_process_pid(self) -> int:
        """Name the text process; 0 while there is none."""
        return self._text.pid

    @property
    def spare_pid(self) -> int:
        """Name the spare worker; 0 while there is none."""
        return self._hosting.spare_pid

    def find(
        self,
        name: str,
        kind: ModelKind = ModelKind.GENERATE,
        *,
        client: str = "",
        adapter: str = "",
    ) -> ModelVersion:
        """Find the version for a request now; does not block. See `finding.find`."""
        return find(self._roles, self._hosting, name, kind, client=client, adapter=adapter)

    # --- requests ---

    async def prepare(
        self,
        version: ModelVersion,
        prompt: Prompt | RankPrompt,
        *,
        add_bos: bool = True,
        parse_special: bool = False,
        constraint: Constraint | None = None,
        with_pieces: bool = False,
        again: bool = False,
    ) -> wire.Prepared:
        """Render, tokenise and check a prompt in the text process.

        with_pieces: it is only to be looked at, so it may be longer than the context, and the bytes
        of each token are wanted. again: for a request that was let in before.

        Raises:
            InvalidRequest: the prompt is empty, too large, not Unicode, or refused by the template.
            ContextTooLong: it is so large that it can't fit, however it is tokenised.
            SchemaUnsupported: the constraint can't be honoured, or not cheaply enough.
            RequestUnsafe, WorkerLost, QueueFull: the text process was lost or is overloaded.
            ModelNotServed, ModelNotReady, Draining: the version has gone, is not there yet; we go.
        """
        facts = self._answering(version)
        check_bytes(prompt, self._limits.prompt_bytes)
        frame = wire.Prepare(
            ticket=0,
            key=version.digest,
            prompt=prompt,
            add_bos=add_bos,
            parse_special=parse_special,
            constraint=constraint,
            limit_tokens=0 if with_pieces else facts.context_tokens,
            with_pieces=with_pieces,
        )
        return await self._text.prepare(frame, again=again)

    async def detokenize(self, version: ModelVersion, token_ids: tuple[int, ...]) -> str:
        """Turn token ids into text. Raises as `prepare`."""
        self._answering(version)
        return await self._text.detokenize(
            wire.Detokenize(ticket=0, key=version.digest, token_ids=token_ids)
        )

    def admit(self, version: ModelVersion, job: Job, *, again: bool = False) -> Ticket:
        """Give a generation its ticket, or refuse it now; does not block.

        again: it was let in before, on another version (see `Moved`).

        Raises:
            Draining, ModelNotServed, ModelNotReady, AdapterNotLoaded: the model or adapter is not
                there.
            ContextTooLong, InvalidRequest, QueueFull: it does not fit.
        """
        if self._draining and not again:
            raise Draining
        return self._hosting.served(version).admit(job, again=again)

    async def embed(
        self, version: ModelVersion, job: EmbedJob, *, again: bool = False
    ) -> EmbedResult:
        """Embed token lists; cancelling cancels the ticket. again: as `admit`.

        Raises:
            Draining, ModelNotServed, ModelNotReady, ContextTooLong, InvalidRequest, QueueFull: now.
            DeadlineExceeded, WorkerLost, RequestUnsafe, DecodeFailed: later.
            Moved: it may move, and another version answers now.
        """
        if self._draining and not again:
            raise Draining
        return await self._hosting.served(version).admit_embed(job, again=again).result()

    def repeat(self, version: ModelVersion, ticket: Ticket, copied: Copied) -> None:
        """Repeat a request on the candidate, if the traffic says so; see `Shadow.offer`."""
        served, row = self._hosting.get(version.digest), self._roles.row(version.model)
        if served is not None:
            self._shadow.offer(served, row, copied, ticket)

    def window(self, digest: Digest) -> Window:
        """Read what was measured of a version since traffic was directed anew; never blocks."""
        served = self._hosting.get(digest)
        return served.book.measure.window() if served is not None else Window()

    def _answering(self, version: ModelVersion) -> ModelFacts:
        """Find the facts of a version that may be asked now.

        Raises:
            Draining, ModelNotServed, ModelNotReady: it may not.
        """
        if self._closing.is_set():
            raise Draining
        return self._hosting.served(version).answering()

    # --- adapters ---

    def adapting(self, version: ModelVersion) -> Path:
        """Find the file of a version that may be given adapters now.

        Raises:
            Draining, ModelNotServed, ModelNotReady: as `prepare`.
            InvalidRequest: it generates no text.
        """
        self._answering(version)
        served = self._hosting.served(version)
        if served.kind is not ModelKind.GENERATE:
            raise InvalidRequest(field="model", reason="generates no text, so it takes no adapters")
        return served.path

    async def load_adapter(
        self, version: ModelVersion, file: AdapterFile, *, is_shelved: bool
    ) -> AdapterStatus:
        """Load a checked and signed adapter; return when requests may name it.

        Raises as `adapting` and `Adapters.load`.
        """
        self.adapting(version)
        name = file.version.name
        if any(name == served.version.model for served in self._hosting):
            raise InvalidRequest(field="name", reason=f"'{name}' is the name of a model")
        adapters = self._hosting.served(version).adapters
        return await adapters.load(file, is_shelved=is_shelved, utc_ms=utc_ms())

    async def unload_adapter(self, version: ModelVersion, name: str) -> None:
        """Let an adapter go, when no request names it. Raises as `Adapters.unload`."""
        await self._hosting.served(version).adapters.unload(name)
