"""Stand between a client and a server, and count the bytes that cross.

What this room does: forwards both ways, unread, and counts what the server sends: what a metered
line would charge for, TLS and headers among it.
What it knows: nothing of what it forwards.
What it never does: change a byte.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

_READ_BYTES = 1 << 18


class Relay:
    """What crosses on the way to one server."""

    def __init__(self, address: str) -> None:
        """Lead to the server at SCHEME://HOST:PORT."""
        self.received_bytes = 0
        self._to = urlsplit(address)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Listen at an address of its own, which is given, until the block is left."""
        accepted: list[asyncio.Task[None]] = []
        async with asyncio.TaskGroup() as group:

            def accept(near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
                accepted.append(group.create_task(self._forward(near, back)))

            server = await asyncio.start_server(accept, "127.0.0.1", 0)
            try:
                port = server.sockets[0].getsockname()[1]
                yield f"{self._to.scheme}://127.0.0.1:{port}"
            finally:
                server.close()
                for task in accepted:
                    task.cancel()

    async def _forward(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        far, on = await asyncio.open_connection(self._to.hostname, self._to.port)
        with contextlib.suppress(ConnectionError):
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(near, on, counts=False))
                group.create_task(self._pump(far, back, counts=True))

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counts: bool
    ) -> None:
        try:
            while data := await reader.read(_READ_BYTES):
                self.received_bytes += len(data) if counts else 0
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()
