"""Write answers to a client that may be slow or gone.

What this room does: whole answers and server-sent events, each write bounded in time; the headers
of a stream go out with its first event, so that an error before it still has its own status.
What it knows: `write_timeout_s`; how OpenAI's clients read a stream (`data:` lines, `[DONE]`).
What it never does: buffer more than aiohttp's own 64 KiB beyond what the socket takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping

from aiohttp import web

from appliance.api.openai_answers import encode
from appliance.domain import JsonObject
from appliance.errors import ClientTooSlow

_DONE = b"data: [DONE]\n\n"


def json_response(
    body: JsonObject, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Make a response; nothing is written yet."""
    return web.Response(
        body=encode(body), status=status, headers=headers, content_type="application/json"
    )


async def deliver(
    request: web.Request, response: web.StreamResponse, write_timeout_s: float
) -> None:
    """Write a whole response; a client that does not take it in time is cut off."""
    try:
        async with asyncio.timeout(write_timeout_s):
            await response.prepare(request)
            await response.write_eof()
    except TimeoutError:
        _cut(request)


class EventStream:
    """One answer of server-sent events."""

    def __init__(
        self, request: web.Request, headers: Mapping[str, str], write_timeout_s: float
    ) -> None:
        """Write nothing yet."""
        self._request = request
        self._write_timeout_s = write_timeout_s
        self._response = web.StreamResponse(
            headers={
                **headers,
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",
            }
        )

    @property
    def response(self) -> web.StreamResponse:
        """The response, for aiohttp."""
        return self._response

    @property
    def opened(self) -> bool:
        """Tell whether the headers have gone out."""
        return self._response.prepared

    async def send_numbered(self, seq: int, data: bytes) -> None:
        """Send one event with its number. Raises as `send`."""
        await self._bounded(self._write(b"id: %d\ndata: %b\n\n" % (seq, data)))

    async def remark(self, text: str) -> None:
        """Send a comment, which clients skip. Raises as `send`."""
        await self._bounded(self._write(f": {text}\n\n".encode()))

    async def send(self, objects: list[JsonObject]) -> None:
        """Send one event per object.

        Raises:
            ClientTooSlow: the client did not take it in time; the connection is cut off.
        """
        if objects:
            data = b"".join(b"data: " + encode(body) + b"\n\n" for body in objects)
            await self._bounded(self._write(data))

    async def end(self, *, done: bool = True) -> None:
        """End a stream that ended well; `done`: with OpenAI's own last event. Raises as `send`."""
        await self._bounded(self._finish(_DONE if done else b""))

    async def fail(self, body: JsonObject) -> None:
        """Send an error as the last event; the stream ends without its [DONE]. Raises as `send`."""
        await self._bounded(self._finish(b"data: " + encode(body) + b"\n\n"))

    async def _open(self) -> None:
        await self._response.prepare(self._request)

    async def _write(self, data: bytes) -> None:
        if not self.opened:
            await self._open()
        await self._response.write(data)

    async def _finish(self, data: bytes) -> None:
        if data:
            await self._write(data)
        await self._response.write_eof()

    async def _bounded(self, write: Coroutine[None, None, None]) -> None:
        try:
            async with asyncio.timeout(self._write_timeout_s):
                await write
        except TimeoutError:
            _cut(self._request)
            raise ClientTooSlow(limit_events=1) from None


def _cut(request: web.Request) -> None:
    """End the connection without waiting for what is still unsent."""
    if request.transport is not None:
        request.transport.abort()
