"""Listen for REST on loopback.

What this room does: binds; bounds connections, heads, bodies and idle time; starts and stops.
What it knows: `config.Rest`; aiohttp's settings. aiohttp closes a connection whose next head is not
complete `keepalive_timeout` after the connection, or the answer before, began to wait for it; that
one setting bounds slow heads and idle connections alike.
What it never does: answer a route (`rest_handlers`), or listen beyond this machine.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from aiohttp import web

from appliance import logs
from appliance.api.adapters import AdapterService
from appliance.api.generate import Service
from appliance.api.listen import loopback_address, shown
from appliance.api.openai_answers import encode
from appliance.api.rest_adapters import AdapterHandlers
from appliance.api.rest_errors import bug_body, http_refusal
from appliance.api.rest_guard import Guard
from appliance.api.rest_handlers import Handlers
from appliance.api.rest_stream import json_response
from appliance.api.resume import Streams
from appliance.config import Rest
from appliance.errors import ConfigError

LINGERING_S = 2.0  # how long the rest of a refused body is read, so that the refusal is seen
HEAD_LINE_BYTES_MAX = 8190
HEADERS_MAX = 64
BACKLOG = 128
_BUG = 500


class RestServer:
    """The listener. `start` once, `stop` once."""

    def __init__(
        self,
        service: Service,
        streams: Streams,
        adapters: AdapterService,
        settings: Rest,
        *,
        utc_ms: Callable[[], int],
    ) -> None:
        """Answer from `service` and `adapters`. `utc_ms` dates the answers."""
        self._settings = settings
        guard = Guard(settings)
        app = web.Application(
            middlewares=[guard.middleware], client_max_size=settings.body_bytes_max
        )
        app.add_routes(Handlers(service, streams, guard, settings, utc_ms).routes())
        app.add_routes(AdapterHandlers(service, adapters, guard).routes())
        self._runner = web.AppRunner(app, handler_cancellation=True)
        self._listener: asyncio.Server | None = None
        self.tcp_address = ""

    async def start(self) -> None:
        """Bind and begin to answer.

        Raises:
            ConfigError: the address is refused or can't be bound.
        """
        host, port = loopback_address("rest.tcp", self._settings.tcp)
        await self._runner.setup()
        try:
            self._listener = await asyncio.get_running_loop().create_server(
                self._connection, host, port, backlog=BACKLOG
            )
        except OSError as error:
            await self._runner.cleanup()
            reason = f"can't listen on {shown(host, port)}: {error.strerror}"
            raise ConfigError(key="rest.tcp", reason=reason) from error
        self.tcp_address = shown(host, self._listener.sockets[0].getsockname()[1])

    async def stop(self, grace_s: float) -> None:
        """Take no more connections, let requests end for `grace_s`, then cut them off."""
        if self._listener is None:
            return
        self._listener.close()
        self._listener = None
        server = self._runner.server
        assert server is not None
        server.pre_shutdown()
        await server.shutdown(grace_s)
        await self._runner.cleanup()

    def _connection(self) -> asyncio.Protocol:
        """Make the protocol of a new connection; beyond the bound, one that only refuses."""
        server = self._runner.server
        assert server is not None
        if len(server.connections) >= self._settings.connections_max:
            return _Refusal()
        return _Connection(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=self._settings.head_timeout_s,
            lingering_time=LINGERING_S,
            max_line_size=HEAD_LINE_BYTES_MAX,
            max_field_size=HEAD_LINE_BYTES_MAX,
            max_headers=HEADERS_MAX,
            auto_decompress=False,
            access_log=None,  # type: ignore[arg-type]  # aiohttp's own way to have none
        )


class _Connection(web.RequestHandler):
    """aiohttp's own, with errors below the routes in OpenAI's words and no request in the log."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = _BUG,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what aiohttp could not parse; the connection is closed after it."""
        del message  # it quotes the request
        kind = type(exc).__name__ if exc is not None else ""
        logs.event("http_refused", level=logging.INFO, status=status, error=kind)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer had begun")
        body = bug_body()
        if status != _BUG:
            body = http_refusal("the request is not well-formed HTTP", "http_error")
        response = json_response(body, status=status)
        response.force_close()
        return response


class _Refusal(asyncio.Protocol):
    """Tell a client that there are too many connections, and close."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Answer before anything is read."""
        assert isinstance(transport, asyncio.Transport)
        body = encode(http_refusal("too many connections", "too_many_connections"))
        head = (
            "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"
        )
        transport.write(head.encode("ascii") + body)
        transport.close()
