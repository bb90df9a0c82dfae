"""Read files from a hub or a mirror over HTTP: the gate to aiohttp's client.

What this room does: one request with Range for a stretch of a file; checks that the answer is what
was asked for; turns every failure into a sentence.
What it knows: servers lie and lines break. Nothing here is trusted: an answer is refused where its
headers contradict the request, so that bytes are not fetched in vain; whether they are right, a
hash decides. Entity tags decide nothing, for a digest names what is wanted. An answer without Range
(200) is taken as it is: from the beginning.
What it never does: decode a content encoding, keep cookies, follow a redirect to another origin (a
client certificate is meant for one), or retry.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncIterator, Iterator
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import aiohttp
from yarl import URL

from appliance.clock import utc_ms
from appliance.config import Downloads
from appliance.contract.names import blob_path
from appliance.contract.release import BlobRef
from appliance.sync.sources import Body, SourceFailed

_BUFFER_BYTES = 1 << 18
_CONTENT_RANGE = re.compile(r"bytes (\d{1,16})-(\d{1,16})/(\d{1,16})")
_MOVED = {301, 302, 303, 307, 308}
_BUSY = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}


class HttpBlobs:
    """One server that has `blobs/sha256/HH/HEX` below its address."""

    def __init__(
        self,
        name: str,
        url: str,
        settings: Downloads,
        *,
        tls: ssl.SSLContext | None = None,
        proxy: str | None = None,
    ) -> None:
        """Prepare to connect, when first asked. `tls`: whom to believe, and who we are."""
        self.name = name
        self._base = URL(url.rstrip("/") + "/")
        self._settings = settings
        self._tls = tls
        self._proxy = proxy
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    @contextlib.asynccontextmanager
    async def open(self, blob: BlobRef, start: int, stop: int) -> AsyncIterator[Body]:
        """Ask for bytes `start` up to before `stop`; closes the connection if not all are read.

        Raises:
            SourceFailed: no answer in time, or not one to what was asked.
        """
        async with contextlib.AsyncExitStack() as stack:
            response = await self._answer(stack, blob_path(blob.sha256), start, stop)
            yield Body(start=_begin(response, blob, start, stop), pieces=self._pieces(response))

    async def _answer(
        self, stack: contextlib.AsyncExitStack, path: str, start: int, stop: int
    ) -> aiohttp.ClientResponse:
        url = self._base.join(URL(path))
        headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        for _ in range(self._settings.redirects_max + 1):
            with _translated():
                async with asyncio.timeout(self._settings.stall_s):
                    response = await stack.enter_async_context(
                        self._connected().get(
                            url, headers=headers, allow_redirects=False, proxy=self._proxy
                        )
                    )
            if response.status not in _MOVED:
                return response
            url = self._moved(url, response.headers.get("Location", ""))
            response.close()
        raise SourceFailed(f"more than {self._settings.redirects_max} redirects")

    def _moved(self, url: URL, location: str) -> URL:
        try:
            moved = url.join(URL(location))
            is_here = bool(location) and moved.origin() == self._base.origin()
        except ValueError as error:
            raise SourceFailed("a redirect to no address of a server") from error
        if not is_here:
            raise SourceFailed(f"a redirect to another origin: {moved.host}")
        return moved

    async def _pieces(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        while True:
            with _translated():
                async with asyncio.timeout(self._settings.stall_s):
                    piece = await response.content.readany()
            if not piece:
                return
            yield piece

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=self._settings.connections, ssl=self._tls or True
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                read_bufsize=_BUFFER_BYTES,
                timeout=aiohttp.ClientTimeout(total=None),  # each wait has its own
            )
        return self._session


def _begin(response: aiohttp.ClientResponse, blob: BlobRef, start: int, stop: int) -> int:
    """Say where the bytes of an answer begin, if it is one to what was asked."""
    status = response.status
    if status in _BUSY:
        raise SourceFailed(f"answered {status}", retry_after_s=_retry_after_s(response))
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        raise SourceFailed("has a shorter file (416)")
    if status not in {HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT}:
        raise SourceFailed(f"answered {status}")
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise SourceFailed(f"sends the file encoded ({encoding[:32]})")
    expected = (start, stop) if status == HTTPStatus.PARTIAL_CONTENT else (0, blob.length)
    if status == HTTPStatus.PARTIAL_CONTENT:
        given = response.headers.getall("Content-Range", [])
        found = _CONTENT_RANGE.fullmatch(given[0].strip()) if len(given) == 1 else None
        if found is None:
            raise SourceFailed("sends no single Content-Range")
        if tuple(map(int, found.groups())) != (start, stop - 1, blob.length):
            raise SourceFailed(f"sends another range than {start}-{stop - 1}/{blob.length}")
    length = response.content_length
    if length is not None and length != expected[1] - expected[0]:
        raise SourceFailed(f"announces {length} bytes in place of {expected[1] - expected[0]}")
    return expected[0]


def _retry_after_s(response: aiohttp.ClientResponse) -> float | None:
    """Read how long a server asks us to wait: seconds, or a date."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, until.timestamp() - utc_ms() / 1000)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise SourceFailed("sends nothing") from error
    except (aiohttp.ClientError, ValueError, OSError) as error:
        reason = str(error) or type(error).__name__
        raise SourceFailed(" ".join(reason.split())[:200]) from error
