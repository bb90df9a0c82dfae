"""Tell health probes the truth of this moment, per model.

What this room does: grpc.health.v1 Check, List and Watch. "" is the process; the full names of our
services are serving with it; a model's name or name@version is serving only while it is ready.
What it knows: the role table, read anew for each answer, so that no copy of it can be out of date
(the library's own servicer keeps one).
What it never does: authorise: health is public on every listener.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2

from appliance.domain import ModelStatus, Role, VersionState

WATCH_INTERVAL_S = 0.1

_Context = grpc.aio.ServicerContext[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse]
_SERVING: int = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: int = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN: int = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health:
    """The servicer. `stop` makes everything not serving and ends the watches."""

    def __init__(
        self, services: tuple[str, ...], statuses: Callable[[], tuple[ModelStatus, ...]]
    ) -> None:
        """Answer for these services, and for whatever models `statuses` lists."""
        self._services = frozenset({"", *services})
        self._statuses = statuses
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Say from now on that nothing is served."""
        self._stopping.set()

    async def check(
        self, request: health_pb2.HealthCheckRequest, context: _Context
    ) -> health_pb2.HealthCheckResponse:
        """Answer once; NOT_FOUND for what is neither a service nor a model here."""
        status = self._status(request.service)
        if status == _UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service or model")
        return health_pb2.HealthCheckResponse(status=status)

    async def list(
        self, _request: health_pb2.HealthListRequest, _context: object
    ) -> health_pb2.HealthListResponse:
        """Answer for every service, and for every model by its name@version."""
        names = [*self._services, *(status.version.label for status in self._statuses())]
        statuses = {
            name: health_pb2.HealthCheckResponse(status=self._status(name)) for name in names
        }
        return health_pb2.HealthListResponse(statuses=statuses)

    async def watch(self, request: health_pb2.HealthCheckRequest, context: _Context) -> None:
        """Answer now and at every change, until the client leaves or the server stops."""
        told = None
        while True:
            status = self._status(request.service)
            if status != told:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                told = status
            if self._stopping.is_set():
                return
            try:
                async with asyncio.timeout(WATCH_INTERVAL_S):
                    await self._stopping.wait()
            except TimeoutError:
                continue

    def _status(self, name: str) -> int:
        if name in self._services:
            return _NOT_SERVING if self._stopping.is_set() else _SERVING
        states = [
            status.state
            for status in self._statuses()
            if name == status.version.label
            or (name == status.version.model and status.role is Role.ACTIVE)
        ]
        if not states:
            return _UNKNOWN
        ready = VersionState.READY in states and not self._stopping.is_set()
        return _SERVING if ready else _NOT_SERVING
