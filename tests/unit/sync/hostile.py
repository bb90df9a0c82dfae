"""A server on a real socket that answers as it is told: well, or in one of many wrong ways."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.config import Downloads
from appliance.contract import chunk_map
from appliance.contract.chunk_map import ChunkMap
from appliance.contract.names import blob_path
from appliance.contract.release import BlobRef
from appliance.sync.blobs import BlobStore, Wanted
from appliance.sync.download import Fetcher
from appliance.sync.http_blobs import HttpBlobs
from appliance.sync.sources import Source
from appliance.sync.throttle import Throttle

CHUNK = 16_384
QUICK = Downloads(
    connections=2,
    request_bytes=8 * CHUNK,
    stall_s=0.25,
    bytes_per_s_min=0,
    failures_max=24,
    retry_s=0.02,
    backoff_ms=1.0,
    backoff_ms_max=4.0,
    retry_after_s_max=0.05,
    record_bytes=4 * CHUNK,
    record_s=0.05,
    free_bytes_min=0,
)


@dataclass(frozen=True)
class Asked:
    """A request: which, for what, and the bytes of the whole file."""

    number: int  # of this path, from 0
    path: str
    start: int
    stop: int
    whole: bytes

    @property
    def part(self) -> bytes:
        return self.whole[self.start : self.stop]

    @property
    def range(self) -> str:
        return f"bytes {self.start}-{self.stop - 1}/{len(self.whole)}"


# What is written, in order; a number is a wait in seconds. The connection closes afterwards.
Answer = Callable[[Asked], Sequence[bytes | float]]


def head(status: int, *lines: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} Said", "Connection: close", *lines, "", ""]).encode()


def honest(asked: Asked) -> Sequence[bytes | float]:
    length = f"Content-Length: {len(asked.part)}"
    return head(206, f"Content-Range: {asked.range}", length), asked.part


class Server:
    """Files by path, and how they are given."""

    def __init__(self, files: dict[str, bytes], answer: Answer = honest) -> None:
        self.files = files
        self.answer = answer
        self.asked: list[Asked] = []
        self.sent_bytes = 0
        self.url = ""
        self._running: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def running(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        port = server.sockets[0].getsockname()[1]
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{port}"
        try:
            yield self
        finally:
            server.close()
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            await self._respond(reader, writer)
        finally:
            self._running.remove(task)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _respond(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            text = (await reader.readuntil(b"\r\n\r\n")).decode()
            path = text.split(" ")[1].lstrip("/").partition("?")[0]
            found = re.search(r"range: bytes=(\d+)-(\d+)", text, re.IGNORECASE)
            whole = self.files.get(path, b"")
            start, last = map(int, found.groups()) if found else (0, len(whole) - 1)
            number = sum(one.path == path for one in self.asked)
            asked = Asked(number, path, start, last + 1, whole)
            self.asked.append(asked)
            answer = self.answer(asked) if path in self.files else [head(404)]
            for part in answer:
                if isinstance(part, bytes):
                    writer.write(part)
                    await writer.drain()
                    self.sent_bytes += len(part)
                else:
                    await asyncio.sleep(part)


def a_file(data: bytes, chunk_bytes: int = CHUNK) -> tuple[Wanted, dict[str, bytes]]:
    """Return what to want, and the files a source has to have for it."""
    cuts = [data[at : at + chunk_bytes] for at in range(0, len(data), chunk_bytes)]
    blob = BlobRef(sha256=hashlib.sha256(data).hexdigest(), length=len(data))
    encoded = chunk_map.encode(
        ChunkMap(
            sha256=blob.sha256,
            length=blob.length,
            lengths=tuple(map(len, cuts)),
            hashes=b"".join(hashlib.sha256(cut).digest() for cut in cuts),
        )
    )
    reference = BlobRef(sha256=hashlib.sha256(encoded).hexdigest(), length=len(encoded))
    files = {blob_path(blob.sha256): data, blob_path(reference.sha256): encoded}
    return Wanted(blob=blob, chunk_map=reference), files


def put(root: Path, files: dict[str, bytes]) -> None:
    """Lay files out as a bundle has them."""
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)


@contextlib.asynccontextmanager
async def fetching(
    root: Path,
    *sources: Source | Server,
    settings: Downloads = QUICK,
    throttle: Throttle | None = None,
) -> AsyncIterator[tuple[Fetcher, BlobStore]]:
    """Give a fetcher of these sources, and its store."""
    store = BlobStore(root)
    known = [
        HttpBlobs(f"server-{number}", one.url, settings) if isinstance(one, Server) else one
        for number, one in enumerate(sources)
    ]
    fetcher = Fetcher(store, known, settings, throttle or Throttle(lambda: None))
    try:
        yield fetcher, store
    finally:
        await fetcher.close()


async def until(is_so: Callable[[], bool]) -> None:
    """Look until it is so, for at most some seconds: what is watched is in another process."""
    async with asyncio.timeout(20):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def flip(path: Path, offset: int) -> None:
    """Change one bit of a file that is read-only."""
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    path.chmod(0o444)


def asked_chunks(asked: Sequence[Asked], path: str) -> set[int]:
    """Name the chunks of a file that were asked for."""
    return {
        number
        for one in asked
        if one.path == path
        for number in range(one.start // CHUNK, (one.stop - 1) // CHUNK + 1)
    }
