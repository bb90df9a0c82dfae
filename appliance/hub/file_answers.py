"""Answer with a file of the repository: whole, in part, or only its head.

What this room does: strong ETags, Range and If-Range with one range, If-None-Match, 416; reading on
another thread while the client takes what was read.
What it knows: a blob's name is its digest, so its ETag is too and never changes. Small files are
read whole and hashed, so that a file that is replaced meanwhile is never mixed with its successor.
A slow client is waited for `write_timeout_s` at each write, and no more is read until it took that.
What it never does: choose the file (`served_paths`), compress, or serve several ranges at once:
such a header is passed over, as RFC 9110 allows.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from pathlib import Path

from aiohttp import hdrs, web

from appliance.hub.served_paths import Kind, Served

SMALL_BYTES_MAX = 16 * 1024 * 1024
READ_BYTES = 256 * 1024
_FOREVER = "public, max-age=31536000, immutable"
_ASK_AGAIN = "no-cache"


async def file_answer(
    request: web.Request, repository: Path, served: Served, write_timeout_s: float
) -> web.StreamResponse:
    """Answer GET or HEAD; 404 where there is no such file. A client that is too slow is cut off."""
    try:
        descriptor = await asyncio.to_thread(_opened, repository / served.path)
    except OSError:
        raise web.HTTPNotFound from None
    try:
        size = os.fstat(descriptor).st_size
        if served.kind is not Kind.BLOB:
            return await _small(request, descriptor, size, served)
        return await _blob(request, descriptor, size, served.digest, write_timeout_s)
    finally:
        os.close(descriptor)


async def _small(request: web.Request, descriptor: int, size: int, served: Served) -> web.Response:
    if size > SMALL_BYTES_MAX:
        raise web.HTTPNotFound
    data = await asyncio.to_thread(os.pread, descriptor, SMALL_BYTES_MAX, 0)
    etag = f'"{hashlib.sha256(data).hexdigest()}"'
    headers = {
        hdrs.ETAG: etag,
        hdrs.CACHE_CONTROL: _FOREVER if served.kind is Kind.TARGET else _ASK_AGAIN,
    }
    if request.headers.get(hdrs.IF_NONE_MATCH) == etag:
        return web.Response(status=304, headers=headers)
    return web.Response(body=data, content_type="application/json", headers=headers)


async def _blob(
    request: web.Request, descriptor: int, size: int, digest: str, write_timeout_s: float
) -> web.StreamResponse:
    etag = f'"{digest}"'
    headers = {
        hdrs.ETAG: etag,
        hdrs.ACCEPT_RANGES: "bytes",
        hdrs.CACHE_CONTROL: _FOREVER,
        hdrs.CONTENT_TYPE: "application/octet-stream",
    }
    if request.headers.get(hdrs.IF_NONE_MATCH) == etag:
        return web.Response(status=304, headers=headers)
    asked = _asked(request, etag)
    begin, end = 0, size
    status = 200
    if asked is not None:
        begin, end = asked.indices(size)[:2]
        if begin >= end:
            headers[hdrs.CONTENT_RANGE] = f"bytes */{size}"
            return web.Response(status=416, headers=headers)
        status = 206
        headers[hdrs.CONTENT_RANGE] = f"bytes {begin}-{end - 1}/{size}"
    answer = web.StreamResponse(status=status, headers=headers)
    answer.content_length = end - begin
    await answer.prepare(request)
    if request.method == hdrs.METH_HEAD:
        return answer
    while begin < end:
        data = await asyncio.to_thread(os.pread, descriptor, min(READ_BYTES, end - begin), begin)
        if not data:
            raise ConnectionResetError("the file is shorter than it was")
        async with asyncio.timeout(write_timeout_s):
            await answer.write(data)
        begin += len(data)
    async with asyncio.timeout(write_timeout_s):
        await answer.write_eof()
    return answer


def _asked(request: web.Request, etag: str) -> slice | None:
    """Read the one range that is asked for; None for the whole file."""
    if request.headers.get(hdrs.IF_RANGE, etag) != etag:
        return None
    try:
        asked = request.http_range
    except ValueError:
        return None
    return None if asked.start is None and asked.stop is None else asked


def _opened(path: Path) -> int:
    """Open a plain file, following no link to it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(path)
    return descriptor
