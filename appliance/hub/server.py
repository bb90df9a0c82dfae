"""Serve the repository and the enrolment desk over HTTPS.

What this room does: binds; bounds connections, heads, bodies and idle time; who may ask for what;
every refusal as one JSON object.
What it knows: `config.Hub`; aiohttp's settings. Files are opened anew for each request, and whoever
publishes puts them in place at once, so that nothing is cached and nothing has to be reloaded.
What it never does: list a directory, sign anything, or import `hub.publish`.

| path | certificate | what |
|---|---|---|
| `/healthz` | none needed | the hub is here |
| `/ca.pem`, `/enrol`, `/renew` | none needed | `contract.enrolment` |
| `/metadata/…`, `/targets/…`, `/blobs/…` | of an active device | `served_paths` |
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from appliance import logs
from appliance.config import Hub
from appliance.contract import enrolment as desk
from appliance.contract.enrolment import EnrolRequest, RenewRequest
from appliance.errors import (
    ApplianceError,
    BodyTooLarge,
    ConfigError,
    DeadlineExceeded,
    DocumentRefused,
    EnrolmentRefused,
    QueueFull,
    StoreError,
    Unauthenticated,
)
from appliance.hub.admission import Admission
from appliance.hub.enrol import Enrolment
from appliance.hub.file_answers import file_answer
from appliance.hub.served_paths import served

LINGERING_S = 2.0
HEAD_LINE_BYTES_MAX = 8190
HEADERS_MAX = 64
BACKLOG = 512
_BUG = 500

STATUS: dict[type[ApplianceError], int] = {
    BodyTooLarge: 413,
    DeadlineExceeded: 408,
    DocumentRefused: 400,
    EnrolmentRefused: 403,
    QueueFull: 429,
    StoreError: 503,
    Unauthenticated: 401,
}


class HubServer:
    """The listener. `start` once, `stop` once. `port`: where it listens."""

    def __init__(
        self,
        repository: Path,
        enrolment: Enrolment,
        admission: Admission,
        settings: Hub,
        *,
        tls: ssl.SSLContext,
        ca_pem: str,
    ) -> None:
        """Serve the files under `repository` to whom `admission` lets in."""
        self._repository = repository
        self._enrolment = enrolment
        self._admission = admission
        self._settings = settings
        self._tls = tls
        self._ca_pem = ca_pem
        app = web.Application(middlewares=[_refusals], client_max_size=desk.BODY_BYTES_MAX)
        app.add_routes(
            [
                web.get("/healthz", self._health),
                web.get(desk.CA_PATH, self._ca),
                web.post(desk.ENROL_PATH, self._enrol),
                web.post(desk.RENEW_PATH, self._renew),
                web.get("/{path:.*}", self._file),
            ]
        )
        self._runner = web.AppRunner(app, handler_cancellation=True)
        self._listener: asyncio.Server | None = None
        self._open = _Open()
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Bind and begin to answer.

        Raises:
            ConfigError: the address can't be bound.
        """
        await self._runner.setup()
        try:
            self._listener = await asyncio.get_running_loop().create_server(
                self._connection,
                host,
                port,
                ssl=self._tls,
                backlog=BACKLOG,
                ssl_handshake_timeout=self._settings.head_timeout_s,
                ssl_shutdown_timeout=self._settings.write_timeout_s,
            )
        except OSError as error:
            await self._runner.cleanup()
            reason = f"can't listen on {host}:{port}: {error.strerror}"
            raise ConfigError(key="hub.listen", reason=reason) from error
        self.port = self._listener.sockets[0].getsockname()[1]

    async def stop(self, grace_s: float) -> None:
        """Take no more connections, let transfers end for `grace_s`, then cut them off."""
        if self._listener is None:
            return
        self._listener.close()
        self._listener = None
        server = self._runner.server
        assert server is not None
        server.pre_shutdown()
        await server.shutdown(grace_s)
        with contextlib.suppress(TimeoutError):  # what is written may not have left yet
            async with asyncio.timeout(grace_s):
                await self._open.quiet.wait()
        await self._runner.cleanup()

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _ca(self, _: web.Request) -> web.Response:
        return web.Response(text=self._ca_pem, content_type="application/x-pem-file")

    async def _enrol(self, request: web.Request) -> web.Response:
        asked = desk.decode_body(await self._body(request), EnrolRequest)
        enrolled = await self._enrolment.enrol(asked)
        logs.event("device_enrolled", device=enrolled.device, cohort=enrolled.cohort)
        return _json(desk.encode_body(enrolled))

    async def _renew(self, request: web.Request) -> web.Response:
        asked = desk.decode_body(await self._body(request), RenewRequest)
        enrolled = await self._enrolment.renew(asked)
        logs.event("device_renewed", device=enrolled.device, cohort=enrolled.cohort)
        return _json(desk.encode_body(enrolled))

    async def _file(self, request: web.Request) -> web.StreamResponse:
        await self._admission.admit(peer_uris(request.transport))
        found = served(request.raw_path)
        if found is None:
            raise web.HTTPNotFound
        return await file_answer(request, self._repository, found, self._settings.write_timeout_s)

    async def _body(self, request: web.Request) -> bytes:
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                return await request.read()
        except TimeoutError as error:
            raise DeadlineExceeded(phase="reading the body") from error
        except web.HTTPRequestEntityTooLarge as error:
            raise BodyTooLarge(limit_bytes=desk.BODY_BYTES_MAX) from error

    def _connection(self) -> asyncio.Protocol:
        server = self._runner.server
        assert server is not None
        if len(server.connections) >= self._settings.connections_max:
            return _Refusal()
        return _Connection(
            server,
            self._admission,
            self._open,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=self._settings.head_timeout_s,
            lingering_time=LINGERING_S,
            max_line_size=HEAD_LINE_BYTES_MAX,
            max_field_size=HEAD_LINE_BYTES_MAX,
            max_headers=HEADERS_MAX,
            auto_decompress=False,
            access_log=None,
        )


def peer_uris(transport: asyncio.BaseTransport | None) -> tuple[str, ...]:
    """Read the URIs of the certificate that a client showed; none without one."""
    shown = transport.get_extra_info("peercert") if transport is not None else None
    return tuple(value for kind, value in (shown or {}).get("subjectAltName", ()) if kind == "URI")


class _Open:
    """The connections whose last byte has not left. `quiet`: there are none."""

    def __init__(self) -> None:
        self._held: set[asyncio.BaseProtocol] = set()
        self.quiet = asyncio.Event()
        self.quiet.set()

    def add(self, connection: asyncio.BaseProtocol) -> None:
        """Hold one."""
        self._held.add(connection)
        self.quiet.clear()

    def discard(self, connection: asyncio.BaseProtocol) -> None:
        """Hold it no more."""
        self._held.discard(connection)
        if not self._held:
            self.quiet.set()


class _Connection(web.RequestHandler):
    """aiohttp's own, counted for its device, with refusals of ours below the routes."""

    __slots__ = ("_admission", "_device", "_open")

    def __init__(
        self,
        server: web.Server,
        admission: Admission,
        open_: _Open,
        **settings: Any,  # noqa: ANN401 - aiohttp's own
    ) -> None:
        super().__init__(server, **settings)
        self._admission = admission
        self._open = open_
        self._device = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count it; a device that has too many is cut off, for it can't have meant that."""
        super().connection_made(transport)
        self._open.add(self)
        try:
            self._device = self._admission.connected(peer_uris(transport))
        except QueueFull as refusal:
            logs.event("hub_connection_refused", level=logging.WARNING, reason=str(refusal))
            transport.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Count it no more."""
        self._open.discard(self)
        self._admission.gone(self._device)
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = _BUG,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what aiohttp could not parse, or a bug of ours; the connection is closed after."""
        del message  # it quotes the request
        kind = type(exc).__name__ if exc is not None else ""
        level = logging.ERROR if status == _BUG else logging.INFO
        logs.event("http_refused", level=level, status=status, error=kind)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer had begun")
        answer = _refusal(status, "HTTP", "the request could not be served")
        answer.force_close()
        return answer


class _Refusal(asyncio.Protocol):
    """Close a connection beyond the bound."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close at once; the client tries again after a random wait."""
        transport.close()


@web.middleware
async def _refusals(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Say every refusal as one JSON object; what has begun can only be cut off."""
    try:
        return await handler(request)
    except ApplianceError as error:
        status = STATUS.get(type(error), _BUG)
        logs.event("hub_refused", code=error.code, path=request.path[:128], reason=error.message)
        answer = _refusal(status, error.code, error.message)
        if isinstance(error, QueueFull):
            answer.headers["Retry-After"] = f"{error.retry_after_s:.0f}"
        return answer
    except web.HTTPException as error:
        return _refusal(error.status, "HTTP", error.reason)


def _refusal(status: int, code: str, message: str) -> web.Response:
    return web.json_response({"error": {"code": code, "message": message}}, status=status)


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json")
