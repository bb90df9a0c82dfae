"""Read small files from a hub or a directory, never longer or slower than was agreed.

What this room does: a source is opened for one refresh and read by path: over HTTP, or from a
directory that somebody brought.
What it knows: one deadline holds for all reads of an opening, name look-up, TLS, headers and proxy
included; a source that drips below the minimum rate is given up before that.
What it never does: trust a byte, follow a redirect or a link, decompress, look into the environment
for a proxy, or write.

| the source says | a read gives |
|---|---|
| 200 | the bytes, if they are no more than asked for |
| 403, 404, no such file | None: "there is none" is an answer; TUF ends its chain of roots there |
| another status, nothing, too little, too late | `HubUnreachable` |
| more bytes than the most there may be | `Untrusted` |
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import ssl
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager
from http import HTTPStatus
from pathlib import Path
from typing import NoReturn, Protocol

import aiohttp
from yarl import URL

from appliance.config import Refresh
from appliance.errors import ConfigError, HubUnreachable, Untrusted

CONNECTIONS_MAX = 2
_NONE_THERE = (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND)
_PART = re.compile(r"[A-Za-z0-9%_-][A-Za-z0-9%._-]{0,254}")


class Reader(Protocol):
    """An open source."""

    def read(self, path: str, bytes_max: int) -> bytes | None:
        """Read the file at `path`, with slashes; None where the source says there is none. Blocks.

        Raises:
            HubUnreachable: no answer, not a whole one, or not in time.
            Untrusted: it is longer than `bytes_max`.
        """
        ...


class MetadataSource(Protocol):
    """Where metadata and documents are read. `name` is for people: a URL or a path."""

    @property
    def name(self) -> str:
        """Name the source."""
        ...

    def opened(self) -> AbstractContextManager[Reader]:
        """Open it for one refresh, whose deadline begins now."""
        ...


# --- over HTTP -----------------------------------------------------------------------------------


class HttpMetadata:
    """A hub or a mirror. Open it from a thread that has no event loop of its own."""

    def __init__(
        self, base_url: str, settings: Refresh, *, tls: ssl.SSLContext | None, proxy: str = ""
    ) -> None:
        """Read below `base_url`; by TLS with the context `tls`, or in the clear where it is None.

        Raises:
            ConfigError: the scheme does not fit `tls`.
        """
        wanted = "http://" if tls is None else "https://"
        if not base_url.startswith(wanted):
            raise ConfigError(key="url", reason=f"{base_url!r} must begin with {wanted}")
        self.name = base_url.rstrip("/") + "/"
        self._settings = settings
        self._tls = tls
        self._proxy = proxy or None

    @contextlib.contextmanager
    def opened(self) -> Iterator[Reader]:
        """Connect as soon as something is read; the connection is kept from read to read."""
        with asyncio.Runner() as runner:
            session = runner.run(self._session())
            try:
                yield _HttpReader(self.name, self._settings, session, runner, self._proxy)
            finally:
                runner.run(session.close())

    async def _session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(limit=CONNECTIONS_MAX, ssl=self._tls or False)
        stall_s = self._settings.stall_s
        return aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept-Encoding": "identity", "User-Agent": "appliance"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=stall_s, sock_read=stall_s),
        )


class _HttpReader:
    def __init__(
        self,
        name: str,
        settings: Refresh,
        session: aiohttp.ClientSession,
        runner: asyncio.Runner,
        proxy: str | None,
    ) -> None:
        self._name = name
        self._settings = settings
        self._session = session
        self._runner = runner
        self._proxy = proxy
        self._deadline = runner.get_loop().time() + settings.deadline_s

    def read(self, path: str, bytes_max: int) -> bytes | None:
        return self._runner.run(self._read(path, bytes_max))

    async def _read(self, path: str, bytes_max: int) -> bytes | None:
        url = URL(self._name + path, encoded=True)  # as it was signed, not as a client tidies it
        try:
            async with (
                asyncio.timeout_at(self._deadline),
                self._session.get(url, allow_redirects=False, proxy=self._proxy) as response,
            ):
                if response.status in _NONE_THERE:
                    return None
                if response.status != HTTPStatus.OK:
                    self._fail(f"answered {response.status} to {path}")
                return await self._body(response, path, bytes_max)
        except aiohttp.ServerTimeoutError as error:
            self._fail(f"sent nothing for {self._settings.stall_s:g} s at {path}", error)
        except TimeoutError as error:
            self._fail(f"was not done within {self._settings.deadline_s:g} s at {path}", error)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            self._fail(f"{error or type(error).__name__} at {path}", error)

    async def _body(self, response: aiohttp.ClientResponse, path: str, bytes_max: int) -> bytes:
        time = asyncio.get_running_loop().time
        began, data = time(), bytearray()
        _check_length(path, response.content_length or 0, bytes_max)
        while chunk := await response.content.readany():
            data += chunk
            _check_length(path, len(data), bytes_max)
            took_s = time() - began
            least = self._settings.bytes_per_s_min * took_s
            if took_s > self._settings.stall_s and len(data) < least:
                self._fail(f"sends less than {self._settings.bytes_per_s_min} bytes/s at {path}")
        return bytes(data)

    def _fail(self, reason: str, cause: BaseException | None = None) -> NoReturn:
        raise HubUnreachable(source=self._name, reason=reason) from cause


def tls_context(ca: Path, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """Trust `ca` alone, and show our certificate; all are PEM files. TLS 1.3 or nothing.

    Raises:
        ConfigError: a file can't be read, or is not what it should be.
    """
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(cafile=ca)
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(key=str(certificate or ca), reason=str(error)) from error
    return context


# --- from a directory ----------------------------------------------------------------------------


class DirectoryMetadata:
    """A directory with the hub's three folders, on a stick or anywhere."""

    def __init__(self, directory: Path) -> None:
        """Read below `directory`."""
        self.name = str(directory)
        self._directory = directory

    @contextlib.contextmanager
    def opened(self) -> Iterator[Reader]:
        """Hold the directory open, so that what is mounted over it later is not read."""
        try:
            descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise HubUnreachable(source=self.name, reason=str(error.strerror)) from error
        try:
            yield _DirectoryReader(self.name, descriptor)
        finally:
            os.close(descriptor)


class _DirectoryReader:
    def __init__(self, name: str, descriptor: int) -> None:
        self._name = name
        self._descriptor = descriptor

    def read(self, path: str, bytes_max: int) -> bytes | None:
        if not all(_PART.fullmatch(part) for part in path.split("/")):
            return None
        try:
            with open_below(self._descriptor, path) as descriptor:
                _check_length(path, os.fstat(descriptor).st_size, bytes_max)
                with os.fdopen(os.dup(descriptor), "rb") as file:
                    return file.read(bytes_max)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise HubUnreachable(
                source=self._name, reason=f"{error.strerror or error} at {path}"
            ) from error


@contextlib.contextmanager
def open_below(directory: int, path: str) -> Iterator[int]:
    """Open a regular file below an open directory; no part of `path` may be a link.

    Raises OSError: it is not there, or is a link, a device, a pipe.
    """
    with contextlib.ExitStack() as opened:
        *parents, name = path.split("/")
        for parent in parents:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            directory = os.open(parent, flags, dir_fd=directory)
            opened.callback(os.close, directory)
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe may not block
        descriptor = os.open(name, flags, dir_fd=directory)
        opened.callback(os.close, descriptor)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("is not a regular file")
        yield descriptor


def _check_length(path: str, size: int, bytes_max: int) -> None:
    if size > bytes_max:
        raise Untrusted(what=path, reason=f"has {size} bytes or more; at most {bytes_max}")
