"""Let a stream outlive its connection for a while, so that its client can go on where it broke.

What this room does: runs the request of a resumable stream apart from its reader; keeps the last
events within bounds; hands them to whoever resumes; ends what nobody came back for.
What it knows: `limits.resume_events` for one stream, `limits.resume_bytes` for all together,
`limits.resume_s` from the loss of a reader. A reader that resumes sends the one before away. The
request below neither knows nor cares: a worker may die and its requests be replayed meanwhile.
What it never does: decide what a frame is (each face writes its own), or hold back the request for
a slow reader: its oldest events go.

| a stream           | goes when                                                               |
|--------------------|-------------------------------------------------------------------------|
| running, read      | never                                                                   |
| running, left      | after limits.resume_s, and its request is cancelled                     |
| ended, read        | never; its reader is about to leave                                     |
| ended, left        | after limits.resume_s, or sooner, oldest first, when memory is wanted   |

When memory is still short, the oldest events of the stream that holds most go.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeAlias

from appliance.api.bugs import log_bug
from appliance.api.held_stream import HeldStream
from appliance.config import Limits
from appliance.domain import Client, RequestId
from appliance.errors import (
    ApplianceError,
    Draining,
    InvalidRequest,
    RequestCancelled,
    StreamNotHeld,
)
from appliance.observe.metrics import Metrics

Put: TypeAlias = Callable[[bytes], None]
Work: TypeAlias = Callable[[Put], Awaitable[None]]
Frames: TypeAlias = AsyncGenerator[tuple[int, bytes], None]

SEQ_MAX = 2**53 - 1


class Streams:
    """Every resumable stream. `run` owns their tasks and must be running."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        """Take the bounds; nothing is held yet."""
        self._limits = limits
        self._metrics = metrics
        self._streams: dict[RequestId, HeldStream] = {}
        self._tasks: dict[RequestId, asyncio.Task[None]] = {}  # of those that have not ended
        self._timers: dict[RequestId, asyncio.TimerHandle] = {}  # of those that were left
        self._bytes = 0
        self._group: asyncio.TaskGroup | None = None
        self._closing = asyncio.Event()
        metrics.follow("appliance_streams_held", lambda: len(self._streams))
        metrics.follow("appliance_streams_held_bytes", lambda: self._bytes)

    def __len__(self) -> int:
        """Count the streams that are held."""
        return len(self._streams)

    async def run(self) -> None:
        """Own every stream's task until `close`, or until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                await self._closing.wait()
                for stream in tuple(self._streams.values()):
                    self._forget(stream)
        finally:
            self._group = None

    def close(self) -> None:
        """Let everything go: requests that still run are cancelled. Idempotent, does not block."""
        self._closing.set()

    # --- reading ---

    async def open(self, client: Client, request_id: RequestId, work: Work) -> Frames:
        """Begin a stream and read it. `work(put)` runs the request and puts its frames.

        Raises:
            InvalidRequest: a stream of that id is held.
            Draining: we are closing.
            ApplianceError: as `work` does, and as `HeldStream.read`.
        """
        stream = self._begin(client, request_id, work)
        async with aclosing(self._read(stream, 0)) as frames:
            async for frame in frames:
                yield frame

    async def resume(self, client: Client, request_id: RequestId, from_seq: int) -> Frames:
        """Read a stream of this client again, from that event on.

        Raises:
            StreamNotHeld: there is none of that id, or it is another client's.
            StreamGone, InvalidRequest: it can't be read from there.
            ApplianceError: as `HeldStream.read`.
        """
        try:
            stream = self._find(client, request_id)
            stream.check(from_seq)
        except ApplianceError as error:
            self._metrics.record("appliance_stream_resumes_total", 1, code=error.code)
            raise
        self._metrics.record("appliance_stream_resumes_total", 1, code="")
        async with aclosing(self._read(stream, from_seq)) as frames:
            async for frame in frames:
                yield frame

    def _find(self, client: Client, request_id: RequestId) -> HeldStream:
        stream = self._streams.get(request_id)
        if stream is None or not client.owns(stream.client):
            raise StreamNotHeld(request_id=request_id)
        return stream

    async def _read(self, stream: HeldStream, from_seq: int) -> Frames:
        timer = self._timers.pop(stream.request_id, None)
        if timer is not None:
            timer.cancel()
        try:
            async with aclosing(stream.read(from_seq)) as frames:
                async for frame in frames:
                    yield frame
        finally:
            self._left(stream)

    # --- the life of a stream ---

    def _begin(self, client: Client, request_id: RequestId, work: Work) -> HeldStream:
        if self._group is None or self._closing.is_set():
            raise Draining
        if request_id in self._streams:
            raise InvalidRequest(field="request_id", reason="is that of a stream that is held")
        stream = self._streams[request_id] = HeldStream(client, request_id)
        self._bytes += stream.bytes
        self._make_room()
        self._tasks[request_id] = self._group.create_task(self._pump(stream, work))
        return stream

    async def _pump(self, stream: HeldStream, work: Work) -> None:
        """Run the request. Whatever it ends in, a bug of ours too, is for the reader to be told."""
        outcome: BaseException | None = RequestCancelled()
        try:
            (outcome,) = await asyncio.gather(
                work(lambda frame: self._put(stream, frame)), return_exceptions=True
            )
        finally:
            if isinstance(outcome, Exception) and not isinstance(outcome, ApplianceError):
                log_bug("resume", outcome)
            elif isinstance(outcome, asyncio.CancelledError):
                outcome = RequestCancelled()
            stream.finish(outcome)
            if self._is_held(stream):
                del self._tasks[stream.request_id]

    def _put(self, stream: HeldStream, frame: bytes) -> None:
        if not self._is_held(stream):
            return
        before = stream.bytes
        stream.put(frame)
        self._bytes += stream.bytes - before
        if len(stream) > self._limits.resume_events:
            self._drop_oldest(stream, "resume_events")
        self._make_room()

    def _left(self, stream: HeldStream) -> None:
        """Give a stream without a reader its time; one that never had an event needs none."""
        if stream.is_read or not self._is_held(stream):
            return
        if stream.ended and not stream.next_seq:
            self._forget(stream)
            return
        loop = asyncio.get_running_loop()
        self._timers[stream.request_id] = loop.call_later(
            self._limits.resume_s, self._forget, stream
        )

    def _forget(self, stream: HeldStream) -> None:
        """Hold a stream no longer; its request, if it still runs, is cancelled."""
        del self._streams[stream.request_id]
        self._bytes -= stream.bytes
        timer = self._timers.pop(stream.request_id, None)
        if timer is not None:
            timer.cancel()
        task = self._tasks.pop(stream.request_id, None)
        if task is not None:
            task.cancel()

    # --- bounds ---

    def _make_room(self) -> None:
        """Let go what the bound on all of them asks for; one event of each stream may stay."""
        while self._bytes > self._limits.resume_bytes:
            ended = next((s for name in self._timers if (s := self._streams[name]).ended), None)
            if ended is not None:  # timers are in the order in which readers left
                self._forget(ended)
                self._count_dropped("resume_bytes", len(ended))
                continue
            largest = max(self._streams.values(), key=lambda stream: stream.bytes)
            if len(largest) <= 1:
                return
            self._drop_oldest(largest, "resume_bytes")

    def _drop_oldest(self, stream: HeldStream, bound: str) -> None:
        before = stream.bytes
        stream.drop_oldest()
        self._bytes -= before - stream.bytes
        self._count_dropped(bound, 1)

    def _count_dropped(self, bound: str, events: int) -> None:
        self._metrics.record("appliance_stream_events_dropped_total", events, bound=bound)

    def _is_held(self, stream: HeldStream) -> bool:
        return self._streams.get(stream.request_id) is stream


def place_of(from_seq: str | None, last_event_id: str | None) -> int:
    """Read where a stream is to go on: from an event, or after the last one that came.

    Raises:
        InvalidRequest: one of them is not a number, or they say different things.
    """
    first = _number("from_seq", from_seq)
    last = _number("last-event-id", last_event_id)
    if first is not None and last is not None and first != last + 1:
        raise InvalidRequest(field="from_seq", reason=f"contradicts Last-Event-ID, which is {last}")
    if first is not None:
        return first
    return 0 if last is None else last + 1


def _number(field: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(SEQ_MAX))):
        raise InvalidRequest(field=field, reason="must be the number of an event")
    return int(text)
