"""Tell appliances that there is news, on a stream that they dial, and take their reports.

What this room does: one session for each device; hints to all of them; reports into the inventory,
each acknowledged once it is durable.
What it knows: the proto of the fleet; grpcio's options. gRPC's own pings are allowed from 10 s on,
or clients behind middleboxes would be sent away. Nothing sent from here changes what an appliance
runs.
What it never does: queue for a device that is not there: it asks when it comes back, and it polls
anyway. A device that dials twice has one session, the newer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import TypeAlias

import grpc
import grpc.aio
import msgspec

from appliance import logs
from appliance.config import Hub
from appliance.contract.fleet import REPORT_BYTES_MAX, Report
from appliance.errors import ApplianceError, ConfigError, DocumentRefused, StoreError
from appliance.fleet_proto import fleet_pb2 as pb
from appliance.hub import inventory
from appliance.hub.admission import Admission
from appliance.hub.inventory import Device, Taken
from appliance.hub.server_certificate import ServerCertificate
from appliance.store import Store

OUTGOING_MAX = 64
PING_INTERVAL_MS_MIN = 10_000
HANDSHAKE_MS_MAX = 10_000
IDLE_CONNECTION_MS = 60_000
MESSAGE_BYTES_MAX = 2 * REPORT_BYTES_MAX
STREAMS_PER_CONNECTION = 4
_SERVICE = pb.DESCRIPTOR.services_by_name["FleetService"]
_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", PING_INTERVAL_MS_MIN),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION),
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS_MAX),
    ("grpc.max_connection_idle_ms", IDLE_CONNECTION_MS),
)

_Requests: TypeAlias = AsyncIterator[pb.SessionRequest]
_Context: TypeAlias = grpc.aio.ServicerContext[pb.SessionRequest, pb.SessionResponse]


class _End(msgspec.Struct, frozen=True):
    """How a session ends; OK is the device's own wish."""

    code: grpc.StatusCode
    reason: str


class _Session:
    """One device that waits for hints: what is to be said to it, and whether it must go."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.ended: asyncio.Future[_End] = asyncio.get_running_loop().create_future()
        self.outgoing: asyncio.Queue[pb.SessionResponse] = asyncio.Queue(OUTGOING_MAX)

    def say(self, message: pb.SessionResponse) -> None:
        """Queue a message; a device that does not read ends its own session."""
        try:
            self.outgoing.put_nowait(message)
        except asyncio.QueueFull:
            self.end(grpc.StatusCode.RESOURCE_EXHAUSTED, "the session was not read")

    def end(self, code: grpc.StatusCode, reason: str) -> None:
        """End it; the first reason counts."""
        if not self.ended.done():
            self.ended.set_result(_End(code, reason))


class PushServer:
    """The listener. `start` once, `stop` once. `port`: where it listens."""

    def __init__(
        self,
        store: Store,
        admission: Admission,
        certificate: ServerCertificate,
        settings: Hub,
        *,
        utc_ms: Callable[[], int],
    ) -> None:
        """Take reports into `store`; let in whom `admission` does."""
        self._store = store
        self._admission = admission
        self._certificate = certificate
        self._settings = settings
        self._utc_ms = utc_ms
        self._sessions: dict[str, _Session] = {}
        self._server: grpc.aio.Server | None = None
        self._version = 0
        self.port = 0

    async def start(self, address: str) -> None:
        """Bind and begin to answer.

        Raises:
            ConfigError: the address can't be bound.
        """
        server = grpc.aio.server(
            maximum_concurrent_rpcs=self._settings.sessions_max, options=_OPTIONS
        )
        handler = grpc.stream_stream_rpc_method_handler(
            self._session,
            request_deserializer=pb.SessionRequest.FromString,
            response_serializer=pb.SessionResponse.SerializeToString,
        )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(_SERVICE.full_name, {"Session": handler}),)
        )
        credentials = grpc.dynamic_ssl_server_credentials(
            self._certified(), self._certified, require_client_authentication=True
        )
        try:
            self.port = server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise ConfigError(key="hub.push_listen", reason=f"can't listen on {address}") from error
        await server.start()
        self._server = server

    async def stop(self, grace_s: float) -> None:
        """End every session, so that its device dials again later, and listen no more."""
        for session in list(self._sessions.values()):
            session.end(grpc.StatusCode.UNAVAILABLE, "the hub is stopping")
        if self._server is not None:
            await self._server.stop(grace_s)
            self._server = None

    def nudge(self, timestamp_version: int) -> int:
        """Tell every device that waits that there is news; tells how many. Does not block."""
        self._version = timestamp_version
        message = pb.SessionResponse(nudge=pb.Nudge(timestamp_version=timestamp_version))
        for session in self._sessions.values():
            session.say(message)
        return len(self._sessions)

    def _certified(self) -> grpc.ServerCertificateConfiguration:
        """Hand gRPC the certificate in use; it asks at each handshake, on a thread of its own."""
        ca_pem, key_pem, pem = self._certificate.pems
        return grpc.ssl_server_certificate_configuration([(key_pem, pem)], root_certificates=ca_pem)

    async def _session(self, requests: _Requests, context: _Context) -> None:
        """Serve one device until it goes, is revoked, dials again, or it is time to dial again."""
        end = await self._served(requests, context)
        if end.code is not grpc.StatusCode.OK:
            await context.abort(end.code, end.reason)

    async def _served(self, requests: _Requests, context: _Context) -> _End:
        try:
            device = await self._admission.admit(_uris(context))
        except ApplianceError as error:
            return _refused(error)
        session = _Session(device)
        older = self._sessions.get(device.device)
        if older is not None:
            older.end(grpc.StatusCode.ABORTED, "the appliance dialled again")
        self._sessions[device.device] = session
        logs.event("session_begun", device=device.device, sessions=len(self._sessions))
        end = _End(grpc.StatusCode.CANCELLED, "the appliance went")
        try:
            end = await self._until_ended(session, requests, context)
        finally:
            if self._sessions.get(device.device) is session:
                del self._sessions[device.device]
            logs.event("session_ended", device=device.device, reason=end.reason)
        return end

    async def _until_ended(self, session: _Session, requests: _Requests, context: _Context) -> _End:
        """Read and write until one of them, the hub or the clock ends it."""
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(self._read(session, requests, context))
            writing = group.create_task(self._write(session, context))
            ways = (reading, writing, session.ended)
            done, _ = await asyncio.wait(
                ways, timeout=self._settings.session_s, return_when=asyncio.FIRST_COMPLETED
            )
            for way in ways:
                way.cancel()
        if not done:
            return _End(grpc.StatusCode.UNAVAILABLE, "it is time to dial again")
        return next(way.result() for way in ways if way in done)

    async def _read(self, session: _Session, requests: _Requests, context: _Context) -> _End:
        """Take what the device says. Never raises an error of ours."""
        greeted = False
        try:
            while True:
                async with asyncio.timeout(self._settings.session_idle_s):
                    message = await anext(requests, None)
                if message is None:
                    return _End(grpc.StatusCode.OK, "the appliance said so")
                await self._admission.admit(_uris(context))
                if not greeted and not message.HasField("hello"):
                    return _End(grpc.StatusCode.INVALID_ARGUMENT, "say hello first")
                greeted = True
                await self._take(session, message)
        except TimeoutError:
            return _End(grpc.StatusCode.DEADLINE_EXCEEDED, "nothing was heard for too long")
        except ApplianceError as error:
            return _refused(error)

    async def _write(self, session: _Session, context: _Context) -> _End:
        try:
            while True:
                message = await session.outgoing.get()
                async with asyncio.timeout(self._settings.write_timeout_s):
                    await context.write(message)
        except TimeoutError:
            return _End(grpc.StatusCode.RESOURCE_EXHAUSTED, "the session was not read")

    async def _take(self, session: _Session, message: pb.SessionRequest) -> None:
        device, now = session.device.device, self._utc_ms()
        if message.HasField("hello"):
            program, outbox = message.hello.program[:64], message.hello.outbox[:64]
            acked = await asyncio.wrap_future(
                self._store.submit(
                    lambda transaction: inventory.greeted(transaction, device, program, outbox, now)
                )
            )
            welcome = pb.Welcome(acked_seq=acked, timestamp_version=self._version)
            session.say(pb.SessionResponse(welcome=welcome))
        elif message.HasField("heartbeat"):
            await asyncio.wrap_future(
                self._store.submit(lambda transaction: inventory.seen(transaction, device, now))
            )
            session.say(pb.SessionResponse(heartbeat=message.heartbeat))
        elif message.HasField("report"):
            session.say(await self._reported(device, message.report, now))

    async def _reported(self, device: str, said: pb.Report, now: int) -> pb.SessionResponse:
        """Keep a report, or say why not."""
        try:
            report = Report(
                outbox=said.outbox,
                seq=said.seq,
                utc_ms=said.utc_ms,
                kind=said.kind,
                body=said.body,
            )
        except DocumentRefused as error:
            return _refusal(said.seq, error.message)
        kept = self._settings.reports_kept
        taken = await asyncio.wrap_future(
            self._store.submit(
                lambda transaction: inventory.take_report(transaction, device, report, now, kept)
            )
        )
        if taken is Taken.REPLAYED:
            logs.event("report_replayed", level=logging.WARNING, device=device, seq=report.seq)
            return _refusal(report.seq, "another report had this number, or it is of another box")
        return pb.SessionResponse(acknowledgement=pb.Acknowledgement(seq=report.seq))


def _uris(context: _Context) -> tuple[str, ...]:
    """Read the URIs of the certificate, which gRPC lists as the peer's."""
    shown = context.auth_context().get("peer_uri", ())
    return tuple(value.decode("ascii", "replace") for value in shown)


def _refusal(seq: int, reason: str) -> pb.SessionResponse:
    return pb.SessionResponse(refusal=pb.Refusal(seq=seq, reason=reason))


def _refused(error: ApplianceError) -> _End:
    """Say an error in gRPC's words: the inventory may come back, a refusal stays one."""
    if isinstance(error, StoreError):
        return _End(grpc.StatusCode.UNAVAILABLE, error.message)
    return _End(grpc.StatusCode.PERMISSION_DENIED, error.message)
