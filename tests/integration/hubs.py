"""Run a real hub as its operators do, and enrol appliances with it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

from appliance.access.device import DeviceIdentity
from appliance.sync import enrolment
from tests.integration.daemons import STOP_TIMEOUT_S, RunningProgram, command, program

TIMEOUT_S = 20.0


class RunningHub(RunningProgram):
    """`appliance hub serve` in a process, on loopback, its directory in `place`."""

    def __init__(
        self, place: Path, *, env: dict[str, str] | None = None, **settings: object
    ) -> None:
        """Start it at any free ports; `settings` are keys of the table `hub`."""
        self.state_dir = place / "hub"
        given = {
            "state_dir": f'"{self.state_dir}"',
            "listen": '"127.0.0.1:0"',
            "push_listen": '"127.0.0.1:0"',
            "status_s": 0,
            "watch_s": 0.05,
            **settings,
        }
        self.options = [
            text for key, value in given.items() for text in ("--set", f"hub.{key}={value}")
        ]
        super().__init__(command("hub", "serve", *self.options), None, **(env or {}))

    @property
    def url(self) -> str:
        """Name its https://HOST:PORT."""
        return f"https://{self._address('hub')}"

    @property
    def push_address(self) -> str:
        """Name its HOST:PORT for hints."""
        return self._address("push")

    def _address(self, plane: str) -> str:
        lines = self.waited(lambda all_: [line for line in all_ if line.get("plane") == plane])
        return str(lines[0]["address"])

    def run(self, *arguments: object) -> str:
        """Run a verb of `appliance hub` on its directory; returns what it printed."""
        done = program("hub", *arguments, *self.options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def token(self, *, cohort: str = "lab", device: str = "", hours: float = 1) -> str:
        """Make a token."""
        words = ("token", "--cohort", cohort, "--hours", hours, "--json")
        named = ("--device", device) if device else ()
        return str(json.loads(self.run(*words, *named))["token"])

    def enrolled(self, place: Path, *, device: str = "box", cohort: str = "lab") -> DeviceIdentity:
        """Enrol an appliance whose state directory is `place`."""
        token = self.token(cohort=cohort, device=device)
        return asyncio.run(enrolment.enrol(self.url, token, place, TIMEOUT_S))

    def stop(self) -> int:
        """Ask it to stop, and wait until it has."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_TIMEOUT_S)

    # --- what lies in its repository ------------------------------------------------------------

    def put(self, path: str, data: bytes) -> None:
        """Put a file into the repository at once, as publishing does."""
        target = self.state_dir / "repository" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_name(f".{target.name}")
        fresh.write_bytes(data)
        fresh.rename(target)

    def put_blob(self, data: bytes) -> str:
        """Put a blob; returns its path."""
        digest = hashlib.sha256(data).hexdigest()
        path = f"blobs/sha256/{digest[:2]}/{digest}"
        self.put(path, data)
        return f"/{path}"

    def publish(self, version: int) -> None:
        """Put a timestamp of this version; unsigned, for a hub says no more than its number."""
        signed = {"_type": "timestamp", "version": version}
        self.put("metadata/timestamp.json", json.dumps({"signed": signed}).encode())


class Answer:
    """What came: status, headers, body."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body


class HubClient:
    """An HTTPS client that shows `tls`'s certificate; an async context manager."""

    def __init__(self, url: str, tls: ssl.SSLContext) -> None:
        self._url = url
        self._tls = tls

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        connector = aiohttp.TCPConnector(ssl=self._tls)
        self.session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.session.close()

    async def ask(
        self, path: str, *, method: str = "GET", body: bytes | None = None, **headers: str
    ) -> Answer:
        """Ask once. Underscores in header names are hyphens."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.request(
            method, f"{self._url}{path}", headers=given, data=body, allow_redirects=False
        ) as answer:
            return Answer(answer.status, answer.headers.copy(), await answer.read())


def asked(
    url: str,
    tls: ssl.SSLContext,
    path: str,
    *,
    method: str = "GET",
    body: bytes | None = None,
    **headers: str,
) -> Answer:
    """Ask once, on a connection of its own."""

    async def once() -> Answer:
        async with HubClient(url, tls) as client:
            return await client.ask(path, method=method, body=body, **headers)

    return asyncio.run(once())


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another process or thread is about to do; blocks."""
    limit_s = time.monotonic() + TIMEOUT_S
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < limit_s
        pause.wait(0.01)


def without_certificate(identity: DeviceIdentity) -> ssl.SSLContext:
    """Trust the hub, and show nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=identity.pems()[0].decode())
    return context
