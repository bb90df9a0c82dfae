"""Keep the one text process alive, and ask it one thing at a time.

What this room does: a bounded queue of calls; the process's start, and its vocabularies opened
again after each; a timeout on every call; one retry for a call that ended the process.
What it knows: which vocabularies are open, and the frames of the text process.
What it never does: render or tokenise, or let a call that hangs hold up the others for longer
than its timeout.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from pathlib import Path
from typing import TypeAlias

import msgspec

from appliance.config import Engine, Limits
from appliance.errors import (
    ApplianceError,
    InvalidRequest,
    QueueFull,
    RequestUnsafe,
    WorkerLost,
    from_wire,
)
from appliance.runtime import wire
from appliance.runtime.process import CANNOT_START, Child
from appliance.runtime.served import Observer

ATTEMPTS_MAX = 2
_RETRY_AFTER_S = 1.0

Reply: TypeAlias = wire.Opened | wire.Prepared | wire.Detokenized | wire.TextFailed
_Waiting: TypeAlias = "tuple[wire.ToText, asyncio.Future[Reply]]"


class _Lost(Exception):
    """The process ended or was killed during a call."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


class TextProcess:
    """The parent's end of the text process. `run` must be running for calls to be answered."""

    def __init__(self, engine: Engine, limits: Limits, observer: Observer) -> None:
        """Take the bounds; nothing is started before the first call."""
        self._engine = engine
        self._limits = limits
        self._observer = observer
        self._tickets = itertools.count(1)
        self._calls: deque[_Waiting] = deque()
        self._wake = asyncio.Event()
        self._paths: dict[str, str] = {}
        self._child: Child[wire.FromText] | None = None
        self._stderr: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """Name the process; 0 while there is none."""
        return self._child.pid if self._child is not None else 0

    # --- for callers ---

    async def open(self, key: str, path: Path) -> None:
        """Load the vocabulary and template of a file; from now on they survive restarts.

        Raises:
            ModelUnloadable: the file can't be read as a model.
            WorkerLost, RequestUnsafe, QueueFull: as `prepare`.
        """
        await self._call(self._opening(key, str(path)))
        self._paths[key] = str(path)

    async def close(self, key: str) -> None:
        """Free what `open` loaded. Raises as `detokenize`."""
        self._paths.pop(key, None)
        await self._call(wire.CloseVocabulary(ticket=0, key=key))

    async def prepare(self, frame: wire.Prepare, *, again: bool = False) -> wire.Prepared:
        """Turn a prompt into token ids. The frame's ticket is replaced.

        again: the request was let in before, so it waits even beyond the bound.

        Raises:
            InvalidRequest, SchemaUnsupported: what the process says of the prompt.
            RequestUnsafe: the call ended the process, or its timeout passed, twice.
            WorkerLost: the process can't be started.
            QueueFull: too many calls wait.
        """
        reply = await self._call(frame, again=again)
        assert isinstance(reply, wire.Prepared)
        return reply

    async def try_template(self, source: str) -> None:
        """Render a chat with a template that is not served.

        Raises:
            InvalidRequest: it is no template, or fails.
            RequestUnsafe, WorkerLost, QueueFull: as `prepare`.
        """
        chars_max = self._limits.prompt_bytes
        await self._call(wire.TryTemplate(ticket=0, source=source, output_chars_max=chars_max))

    async def detokenize(self, frame: wire.Detokenize) -> str:
        """Turn token ids into text. Raises as `prepare`."""
        reply = await self._call(frame)
        assert isinstance(reply, wire.Detokenized)
        return reply.text

    async def _call(self, frame: wire.ToText, *, again: bool = False) -> Reply:
        """Queue a call and wait for its reply; a caller that goes away is skipped."""
        frame = msgspec.structs.replace(frame, ticket=next(self._tickets))
        _check_unicode(frame)
        if len(self._calls) >= self._limits.queue_requests and not again:
            raise QueueFull(
                bound="queue_requests",
                limit=self._limits.queue_requests,
                retry_after_s=_RETRY_AFTER_S,
            )
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._calls.append((frame, future))
        self._wake.set()
        reply = await future
        if isinstance(reply, wire.TextFailed):
            raise from_wire(reply.failure.code, reply.failure.fields)
        return reply

    # --- the one task that talks to the process ---

    async def run(self) -> None:
        """Answer calls in order until cancelled; then end the process."""
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    await self._wake.wait()
                    self._wake.clear()
                    while self._calls:
                        frame, future = self._calls.popleft()
                        if not future.done():
                            await self._answer(group, frame, future)
        finally:
            for _, future in self._calls:
                _settle(future, WorkerLost(cause="stopped", tokens_sent=0))
            await self._end()

    async def _answer(
        self, group: asyncio.TaskGroup, frame: wire.ToText, future: asyncio.Future[Reply]
    ) -> None:
        outcome: Reply | ApplianceError = WorkerLost(cause="stopped", tokens_sent=0)
        try:
            outcome = await self._attempt(group, frame)
        finally:
            _settle(future, outcome)

    async def _attempt(
        self, group: asyncio.TaskGroup, frame: wire.ToText
    ) -> Reply | ApplianceError:
        for _ in range(ATTEMPTS_MAX):
            try:
                child = await self._ready(group)
            except _Lost as lost:
                return WorkerLost(cause=lost.cause, tokens_sent=0)
            try:
                return await self._exchange(child, frame)
            except _Lost as lost:
                self._observer.worker_lost("", lost.cause)
                self._observer.event("text_process_lost", cause=lost.cause)
        return RequestUnsafe(worker_losses=ATTEMPTS_MAX)

    async def _ready(self, group: asyncio.TaskGroup) -> Child[wire.FromText]:
        """Return the living process, started and filled anew if need be."""
        if self._child is not None and not self._child.ended:
            return self._child
        await self._end()
        try:
            child: Child[wire.FromText] = await Child.start(
                "text-worker",
                wire.FromText,
                stop_wait_s=self._engine.stop_wait_s,
                memory_bytes_max=self._limits.text_process_memory_bytes,
            )
        except OSError as error:
            raise _Lost(CANNOT_START) from error
        self._child = child
        self._stderr = group.create_task(child.log_stderr("text"))
        hello = await self._next(child, self._engine.hello_timeout_s)
        if not isinstance(hello, wire.Hello) or hello.protocol_version != wire.PROTOCOL_VERSION:
            await self._end("protocol")
            raise _Lost("protocol")
        for key, path in self._paths.items():
            await self._exchange(child, self._opening(key, path))
        return child

    async def _exchange(self, child: Child[wire.FromText], frame: wire.ToText) -> Reply:
        child.send(frame)
        timeout_s = self._limits.text_process_timeout_s
        if isinstance(frame, wire.OpenVocabulary):
            timeout_s = self._engine.load_timeout_s
        reply = await self._next(child, timeout_s)
        if isinstance(reply, wire.Hello) or _ticket_of(reply) != frame.ticket:
            await self._end("protocol")
            raise _Lost("protocol")
        return reply

    async def _next(self, child: Child[wire.FromText], timeout_s: float) -> wire.FromText:
        """Wait for one frame.

        Raises:
            _Lost: there is none in time, or the process ended; it is gone then.
        """
        cause = "hung"
        try:
            async with asyncio.timeout(timeout_s):
                while (frames := await child.receive()) is not None:
                    for frame in frames:
                        return frame
                cause = ""
        except TimeoutError:
            pass
        except wire.WireFault:
            cause = "wire_fault"
        raise _Lost(await self._end(cause))

    async def _end(self, cause: str = "") -> str:
        """End the process, if there is one; at once if a cause is given. Returns the cause."""
        child, stderr = self._child, self._stderr
        self._child = self._stderr = None
        if child is None:
            return cause
        if cause:
            child.kill(cause)
        cause = await child.end()
        if stderr is not None:
            await asyncio.wait({stderr}, timeout=self._engine.stop_wait_s)
            stderr.cancel()
        return cause

    def _opening(self, key: str, path: str) -> wire.OpenVocabulary:
        return wire.OpenVocabulary(
            ticket=next(self._tickets),
            key=key,
            path=path,
            prompt_bytes_max=self._limits.prompt_bytes,
            constraint_ms=self._limits.constraint_ms,
        )


def _ticket_of(reply: Reply) -> int:
    return reply.failure.ticket if isinstance(reply, wire.TextFailed) else reply.ticket


def _settle(future: asyncio.Future[Reply], outcome: Reply | ApplianceError) -> None:
    if future.done():
        return
    if isinstance(outcome, ApplianceError):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _check_unicode(frame: wire.ToText) -> None:
    """Refuse a lone surrogate: it can't cross to a process, and is no text."""
    try:
        wire.encode(frame)
    except UnicodeEncodeError as error:
        raise InvalidRequest(field="prompt", reason="is not valid Unicode") from error
    except wire.WireFault as error:
        raise InvalidRequest(field="prompt", reason="is too large") from error
