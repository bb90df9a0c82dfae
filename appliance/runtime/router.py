"""Hold the role table: which versions are served here, and who is let in.

What this room does: starts and stops what is served; finds a version by the name a client uses;
prepares prompts; gives tickets, or refuses now with a reason; drains and closes.
What it knows: every served version and the text process. It is the only writer of roles.
What it never does: look into a prompt, or talk to a worker itself (that is `served`).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path

from appliance import gguf
from appliance.clock import monotonic_ms, utc_ms
from appliance.config import Engine, Limits, Model, Scheduling
from appliance.domain import (
    AdapterStatus,
    ChatPrompt,
    Constraint,
    EmbedResult,
    InfillPrompt,
    Message,
    ModelFacts,
    ModelKind,
    ModelStatus,
    ModelVersion,
    Priority,
    Prompt,
    RankPrompt,
    RequestId,
    StopOptions,
    TextPrompt,
    VersionState,
)
from appliance.errors import Draining, InvalidRequest, ModelNotServed, ModelUnloadable
from appliance.runtime import wire
from appliance.runtime.adapters import AdapterFile
from appliance.runtime.devices import cores_available, divide_threads
from appliance.runtime.draft import DraftLimits
from appliance.runtime.served import Observer, Served
from appliance.runtime.text_process import TextProcess
from appliance.runtime.tickets import EmbedJob, Job, Ticket, TicketEvent

_CONTEXT_TRAIN_TOKENS_MAX = 2**31 - 1  # where a file does not say
_SCHEDULING = Scheduling()

__all__ = ["EmbedJob", "Job", "Observer", "Router", "Ticket", "TicketEvent"]


class Router:
    """The one way from requests to workers.

    `run` owns every task and must be running before `serve` is awaited. `workers_planned`: among
    how many workers the cores are divided.
    """

    def __init__(
        self,
        engine: Engine,
        limits: Limits,
        observer: Observer,
        *,
        scheduling: Scheduling = _SCHEDULING,
        workers_planned: int = 1,
        clock: Callable[[], float] = monotonic_ms,
    ) -> None:
        """Take the bounds; nothing is started yet."""
        self._engine = engine
        self._limits = limits
        self._scheduling = scheduling
        self._observer = observer
        self._clock = clock
        self._threads = divide_threads(engine.threads or cores_available(), max(1, workers_planned))
        self._served: dict[str, Served] = {}  # by digest
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._text = TextProcess(engine, limits, observer)
        self._ticket_ids = itertools.count(1)
        self._group: asyncio.TaskGroup | None = None
        self._running = asyncio.Event()
        self._closing = asyncio.Event()
        self._closed = asyncio.Event()
        self._draining = False

    # --- life ---

    async def run(self) -> None:
        """Own every task of the runtime until `close`, or until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                text = group.create_task(self._text.run())
                self._group = group
                self._running.set()
                await self._closing.wait()
                self._group = None
                for task in (*self._tasks.values(), text):
                    task.cancel()
        finally:
            self._group = None
            self._closed.set()

    async def serve(self, version: ModelVersion, path: Path, settings: Model) -> ModelFacts:
        """Load a version in a worker of its own; return its facts when it answers.

        Progress shows in `models()`. Cancelling takes the version out again.

        Raises:
            ModelUnloadable: the file can't be served, now or ever.
            Draining: the router is closing.
        """
        async with asyncio.timeout(self._engine.hello_timeout_s):
            await self._running.wait()
        head = await asyncio.to_thread(_head, path)
        train_tokens = head.number("context_length", _CONTEXT_TRAIN_TOKENS_MAX)
        context_tokens = settings.context_tokens or min(train_tokens, self._engine.context_tokens)
        if self._group is None or self._draining:
            raise Draining
        assert version.digest not in self._served, "this version is served already"
        served = Served(
            version,
            _engine_options(
                path,
                self._engine,
                self._limits,
                self._scheduling,
                settings,
                kind=_kind(head, settings),
                context_tokens=context_tokens,
                threads=self._threads[min(len(self._served), len(self._threads) - 1)],
            ),
            self._engine,
            self._limits,
            self._observer,
            ticket_ids=self._ticket_ids,
            clock=self._clock,
            created_utc_ms=utc_ms(),
        )
        self._served[version.digest] = served
        self._tasks[version.digest] = self._group.create_task(served.run())
        ready = False
        try:
            await served.settled.wait()
            if served.state is VersionState.FAILED:
                raise served.failure or ModelUnloadable(path=str(path), reason="it failed")
            if served.state is not VersionState.READY:
                raise Draining
            await self._text.open(version.digest, path)
            served.has_vocabulary = ready = True
            await self._pin(served, settings)
        finally:
            if not ready:
                self._tasks.pop(version.digest).cancel()
                del self._served[version.digest]
        assert served.facts is not None, "a version that is ready has facts"
        return served.facts

    async def _pin(self, served: Served, settings: Model) -> None:
        """Have the operator's prompts evaluated, now and after each restart of the worker."""
        prompts: list[Prompt] = [TextPrompt(text=text) for text in settings.pinned_texts]
        prompts += [
            ChatPrompt(messages=(Message(role="system", content=text),))
            for text in settings.pinned_systems
        ]
        for number, prompt in enumerate(prompts):
            prepared = await self.prepare(served.version, prompt)
            served.book.pin(
                Job(
                    request_id=RequestId(f"pin-{number}"),
                    prompt_ids=prepared.token_ids,
                    seed=0,
                    stop=StopOptions(max_tokens=0),
                    priority=Priority.BATCH,
                    is_pin=True,
                )
            )

    def drain(self) -> None:
        """Admit nothing more; what was admitted goes on. Idempotent, does not block."""
        self._draining = True

    async def drained(self, timeout_s: float) -> bool:
        """Wait until no ticket is left, at most timeout_s; tell whether none is."""
        try:
            async with asyncio.timeout(timeout_s):
                for served in tuple(self._served.values()):
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
        if self._running.is_set():
            async with asyncio.timeout(5 * self._engine.stop_wait_s):
                await self._closed.wait()

    # --- reading ---

    def models(self) -> tuple[ModelStatus, ...]:
        """List what is served, in the order of `serve`."""
        return tuple(served.status() for served in self._served.values())

    @property
    def text_process_pid(self) -> int:
        """Name the text process; 0 while there is none."""
        return self._text.pid

    def find(self, name: str, kind: ModelKind = ModelKind.GENERATE) -> ModelVersion:
        """Find the version a client means by 'name', 'name@version', or '' (the only one).

        Raises:
            ModelNotServed: there is none of that name and kind, or '' could mean several.
        """
        matching = [
            served.version
            for served in self._served.values()
            if served.kind is kind and name in ("", served.version.model, served.version.label)
        ]
        if not matching or (name == "" and len(matching) > 1):
            raise ModelNotServed(model=name)
        return matching[-1]

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
    ) -> wire.Prepared:
        """Render, tokenise and check a prompt in the text process.

        with_pieces: it is only to be looked at, so it may be longer than the context, and the bytes
        of each token are wanted.

        Raises:
            InvalidRequest: the prompt is empty, too large, not Unicode, or refused by the template.
            ContextTooLong: it is so large that it can't fit, however it is tokenised.
            SchemaUnsupported: the constraint can't be honoured, or not cheaply enough.
            RequestUnsafe, WorkerLost, QueueFull: the text process was lost or is overloaded.
            ModelNotServed, ModelNotReady, Draining: the version has gone, is not there yet; we go.
        """
        facts = self._answering(version)
        _check_bytes(prompt, self._limits.prompt_bytes)
        return await self._text.prepare(
            wire.Prepare(
                ticket=0,
                key=version.digest,
                prompt=prompt,
                add_bos=add_bos,
                parse_special=parse_special,
                constraint=constraint,
                limit_tokens=0 if with_pieces else facts.context_tokens,
                with_pieces=with_pieces,
            )
        )

    async def detokenize(self, version: ModelVersion, token_ids: tuple[int, ...]) -> str:
        """Turn token ids into text. Raises as `prepare`."""
        self._answering(version)
        return await self._text.detokenize(
            wire.Detokenize(ticket=0, key=version.digest, token_ids=token_ids)
        )

    def admit(self, version: ModelVersion, job: Job) -> Ticket:
        """Give a generation its ticket, or refuse it now; does not block.

        Raises:
            Draining, ModelNotServed, ModelNotReady, AdapterNotLoaded: the model or adapter is not
                there.
            ContextTooLong, InvalidRequest, QueueFull: it does not fit.
        """
        if self._draining:
            raise Draining
        return self._get(version).admit(job)

    # --- adapters ---

    def adapting(self, version: ModelVersion) -> Path:
        """Find the file of a version that may be given adapters now.

        Raises:
            Draining, ModelNotServed, ModelNotReady: as `prepare`.
            InvalidRequest: it generates no text.
        """
        self._answering(version)
        served = self._get(version)
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
        if any(name == served.version.model for served in self._served.values()):
            raise InvalidRequest(field="name", reason=f"'{name}' is the name of a model")
        adapters = self._get(version).adapters
        return await adapters.load(file, is_shelved=is_shelved, utc_ms=utc_ms())

    async def unload_adapter(self, version: ModelVersion, name: str) -> None:
        """Let an adapter go, when no request names it. Raises as `Adapters.unload`."""
        await self._get(version).adapters.unload(name)

    async def embed(self, version: ModelVersion, job: EmbedJob) -> EmbedResult:
        """Embed token lists; cancelling cancels the ticket.

        Raises:
            Draining, ModelNotServed, ModelNotReady, ContextTooLong, InvalidRequest, QueueFull: now.
            DeadlineExceeded, WorkerLost, RequestUnsafe, DecodeFailed: later.
        """
        if self._draining:
            raise Draining
        return await self._get(version).admit_embed(job).result()

    def _answering(self, version: ModelVersion) -> ModelFacts:
        """Find the facts of a version that may be asked now.

        Raises:
            Draining, ModelNotServed, ModelNotReady: it may not.
        """
        if self._closing.is_set():
            raise Draining
        return self._get(version).answering()

    def _get(self, version: ModelVersion) -> Served:
        try:
            return self._served[version.digest]
        except KeyError:
            raise ModelNotServed(model=version.label) from None


def _check_bytes(prompt: Prompt | RankPrompt, bytes_max: int) -> None:
    """Refuse a prompt whose text alone is over the bound; a character has one byte at least."""
    if isinstance(prompt, TextPrompt):
        size = len(prompt.text)
    elif isinstance(prompt, InfillPrompt):
        size = len(prompt.prefix) + len(prompt.suffix)
        size += sum(len(file.text) + len(file.name) for file in prompt.files)
    elif isinstance(prompt, RankPrompt):
        size = len(prompt.query) + len(prompt.document)
    elif isinstance(prompt, ChatPrompt):
        size = sum(
            len(m.content) + sum(len(call.arguments) for call in m.tool_calls)
            for m in prompt.messages
        ) + sum(len(tool.description) + len(tool.parameters) for tool in prompt.tools)
    else:
        size = len(prompt.token_ids)
    if size > bytes_max:
        raise InvalidRequest(field="prompt", reason=f"is larger than {bytes_max} bytes")


def _draft_limits(scheduling: Scheduling) -> DraftLimits | None:
    if scheduling.draft == "off":
        return None
    return DraftLimits(
        tokens_max=scheduling.draft_tokens_max,
        streams_max=scheduling.draft_streams_max,
        lookback_tokens=scheduling.draft_lookback_tokens,
        ngram_min=scheduling.draft_ngram_min,
        ngram_max=scheduling.draft_ngram_max,
        stretch_max=scheduling.draft_stretch_max,
    )


def _engine_options(
    path: Path,
    engine: Engine,
    limits: Limits,
    scheduling: Scheduling,
    settings: Model,
    *,
    kind: ModelKind,
    context_tokens: int,
    threads: int,
) -> wire.EngineOptions:
    """Tell a worker how to load and run; cells_total is what is wanted, memory may allow less."""
    cells_total = settings.cells_total or engine.cells_total
    sequences_max = settings.sequences_max or engine.sequences_max
    caches = kind is ModelKind.GENERATE  # others keep nothing between steps
    return wire.EngineOptions(
        path=str(path),
        context_tokens=context_tokens,
        cells_total=cells_total or 4 * context_tokens,
        cells_min=cells_total or context_tokens,
        sequences_max=sequences_max,
        batch_tokens=engine.batch_tokens,
        threads_decode=threads,
        threads_prefill=threads,
        threads_follow=engine.threads_follow,
        gpu_layers=settings.gpu_layers,
        step_ms_while_streaming=engine.step_ms_while_streaming,
        step_ms_max=engine.step_ms_max,
        queue_requests_max=limits.queue_requests + sequences_max,
        output_reserve_tokens=engine.output_reserve_tokens,
        overtakes_max=engine.overtakes_max,
        prefix_sequences_max=scheduling.prefix_sequences,
        prefix_share=scheduling.prefix_share,
        prefix_tokens_min=scheduling.prefix_tokens_min,
        normal_share=scheduling.normal_share,
        batch_share=scheduling.batch_share,
        ageing_s=scheduling.ageing_s,
        turn_ms=scheduling.turn_ms,
        adapter_turn_steps=scheduling.adapter_turn_steps,
        swap_bytes_max=scheduling.swap_bytes,
        speculation=_draft_limits(scheduling),
        ack_window_steps=engine.ack_window_steps,
        kind=kind,
        stall_factor=engine.stall_factor,
        memory_reserve_bytes=engine.memory_reserve_bytes,
        cache_type_k=(settings.cache_type_k or engine.cache_type_k) if caches else "f16",
        cache_type_v=(settings.cache_type_v or engine.cache_type_v) if caches else "f16",
        flash_attention=engine.flash_attention,
        cache_layout=settings.cache_layout or engine.cache_layout,
    )


def _head(path: Path) -> gguf.GgufHead:
    """Read what the file says of itself; blocks on the disk.

    Raises:
        ModelUnloadable: its head can't be read.
    """
    try:
        return gguf.read_head(path)
    except gguf.GgufFault as fault:
        raise ModelUnloadable(path=str(path), reason=str(fault)) from fault


def _kind(head: gguf.GgufHead, settings: Model) -> ModelKind:
    """Tell what the model is for: a reranker says so itself, an embedding model may also chat."""
    if head.ranks:
        return ModelKind.RERANK
    return ModelKind.EMBED if settings.embedding else ModelKind.GENERATE
