"""Dial the hub, so that it can say that there is news, and give it our reports.

What this room does: one session at a time, over mTLS; hints to the agent; the outbox emptied, a few
reports in flight; heartbeats; dialling again after a random wait.
What it knows: the appliance dials out, so that it works behind NAT. A half-open connection shows by
heartbeats that are not answered. A hint is only that: the agent verifies what it then reads, and it
polls anyway.
What it never does: act on a hint, or hold back anything because the hub is away.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from typing import TypeAlias

import grpc
import grpc.aio

from appliance import logs
from appliance.access.device import DeviceIdentity
from appliance.config import Link as Settings
from appliance.contract.fleet import REPORT_BYTES_MAX
from appliance.errors import StoreError
from appliance.fleet_proto import fleet_pb2 as pb
from appliance.fleet_proto import fleet_pb2_grpc
from appliance.sync.enrolment import jittered_s
from appliance.sync.outbox import Outbox

KEEPALIVE_TIMEOUT_MS = 20_000
MESSAGE_BYTES_MAX = 2 * REPORT_BYTES_MAX

_Call: TypeAlias = grpc.aio.StreamStreamCall[pb.SessionRequest, pb.SessionResponse]


class Link:
    """The appliance's end. `connected`: whether the hub knows us now; `reason`: why not, or ""."""

    def __init__(
        self,
        identity: DeviceIdentity,
        outbox: Outbox,
        settings: Settings,
        *,
        program: str,
        on_hint: Callable[[int], None],
        rng: random.Random,
    ) -> None:
        """Prepare; `run` dials.

        on_hint: is told the version of the repository's timestamp, 0 if the hub does not know it,
        after each welcome and whenever it changes. It must not block.
        """
        self._identity = identity
        self._outbox = outbox
        self._settings = settings
        self._program = program
        self._on_hint = on_hint
        self._rng = rng
        self.connected = False
        self.reason = "not dialled yet"

    async def run(self) -> None:
        """Keep a session, dialling again after each end; goes on until cancelled."""
        attempt = 0
        while True:
            self.reason, welcomed = await self._session()
            self.connected = False
            attempt = 1 if welcomed else attempt + 1
            wait_s = jittered_s(self._settings, attempt, self._rng)
            logs.event(
                "hub_link_down", level=logging.INFO, reason=self.reason, wait_s=round(wait_s, 2)
            )
            await asyncio.sleep(wait_s)

    async def _session(self) -> tuple[str, bool]:
        """Dial and stay as long as it lasts; tells why it ended, and whether we were welcome."""
        address = self._settings.push_address or self._identity.hub.push_address
        if not address:
            return "the hub sends no hints", False
        ca_pem, key_pem, pem = self._identity.pems()
        credentials = grpc.ssl_channel_credentials(ca_pem, key_pem, pem)
        async with grpc.aio.secure_channel(
            address, credentials, options=_options(self._settings)
        ) as channel:
            call = fleet_pb2_grpc.FleetServiceStub(channel).Session()
            session = _Session(call, self._outbox, self._settings, self._on_hint, self._rng)
            try:
                name = await self._outbox.name()
                welcome = await session.greet(self._program, name)
                if not await self._outbox.settle(welcome.acked_seq):
                    return "the hub knows later reports than ours: the outbox has a new name", True
                self.connected, self.reason = True, ""
                logs.event("hub_link_up", address=address, acked_seq=welcome.acked_seq)
                self._on_hint(welcome.timestamp_version)
                return await session.last(name, welcome.acked_seq), True
            except grpc.aio.AioRpcError as error:
                return _sentence(error), False
            except TimeoutError:
                return "the hub does not answer in time", False
            except StoreError as error:
                return error.message, False
            finally:
                call.cancel()


class _Session:
    """One session: what was sent and is not answered yet."""

    def __init__(
        self,
        call: _Call,
        outbox: Outbox,
        settings: Settings,
        on_hint: Callable[[int], None],
        rng: random.Random,
    ) -> None:
        self._call = call
        self._outbox = outbox
        self._settings = settings
        self._on_hint = on_hint
        self._rng = rng
        self._unanswered = 0  # heartbeats
        self._sent_seq = 0
        self._in_flight: set[int] = set()
        self._hint = 0
        self._hinted = asyncio.Event()

    async def greet(self, program: str, outbox: str) -> pb.Welcome:
        """Say who we are. Raises AioRpcError or TimeoutError where that fails."""
        hello = pb.SessionRequest(hello=pb.Hello(program=program, outbox=outbox))
        async with asyncio.timeout(self._settings.dial_timeout_s):
            await self._say(hello)
            answer = await self._call.read()
        if isinstance(answer, pb.SessionResponse) and answer.HasField("welcome"):
            return answer.welcome
        raise TimeoutError

    async def last(self, outbox: str, acked_seq: int) -> str:
        """Stay until one side ends it; returns why."""
        self._sent_seq = acked_seq
        async with asyncio.TaskGroup() as group:
            ways = [
                group.create_task(self._ended(way))
                for way in (self._read(), self._write(outbox), self._pass_on())
            ]
            done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
        return next(way.result() for way in ways if way in done)

    async def _ended(self, way: Coroutine[None, None, str]) -> str:
        """Turn what ends one of the ways into the reason."""
        try:
            return await way
        except grpc.aio.AioRpcError as error:
            return _sentence(error)
        except TimeoutError:
            return "the hub does not read"
        except StoreError as error:
            return error.message

    async def _read(self) -> str:
        while True:
            message = await self._call.read()
            if not isinstance(message, pb.SessionResponse):
                return "the hub ended the session"
            if message.HasField("nudge"):
                self._hint = message.nudge.timestamp_version
                self._hinted.set()
            elif message.HasField("heartbeat"):
                self._unanswered = 0
            elif message.HasField("acknowledgement"):
                acked_seq = message.acknowledgement.seq
                self._in_flight = {seq for seq in self._in_flight if seq > acked_seq}
                await self._outbox.settle(acked_seq)
                self._outbox.changed.set()
            elif message.HasField("refusal"):
                refusal = message.refusal
                logs.event(
                    "report_refused",
                    level=logging.WARNING,
                    seq=refusal.seq,
                    reason=refusal.reason[:512],
                )
                self._in_flight.discard(refusal.seq)
                await self._outbox.refused(refusal.seq)
                self._outbox.changed.set()

    async def _write(self, outbox: str) -> str:
        """Send reports as they come and room is, and a heartbeat now and then."""
        loop = asyncio.get_running_loop()
        beat_s = loop.time() + self._settings.heartbeat_s
        while True:
            self._outbox.changed.clear()
            await self._send_reports(outbox)
            try:
                async with asyncio.timeout_at(beat_s):
                    await self._outbox.changed.wait()
            except TimeoutError:
                beat_s = loop.time() + self._settings.heartbeat_s
                if self._unanswered >= self._settings.heartbeats_missed:
                    return f"{self._unanswered} heartbeats were not answered"
                self._unanswered += 1
                await self._say(pb.SessionRequest(heartbeat=pb.Heartbeat(number=int(beat_s))))

    async def _send_reports(self, outbox: str) -> None:
        """Send what is not sent, as long as `link.outbox_in_flight` are not answered at most."""
        room = self._settings.outbox_in_flight - len(self._in_flight)
        if room <= 0:
            return
        for report in await self._outbox.after(outbox, self._sent_seq, room):
            said = pb.Report(
                outbox=report.outbox,
                seq=report.seq,
                utc_ms=report.utc_ms,
                kind=report.kind,
                body=report.body,
            )
            self._in_flight.add(report.seq)
            self._sent_seq = report.seq
            await self._say(pb.SessionRequest(report=said))

    async def _say(self, message: pb.SessionRequest) -> None:
        """Send one message; where the call is over, raise its status."""
        try:
            async with asyncio.timeout(self._settings.dial_timeout_s):
                await self._call.write(message)
        except asyncio.InvalidStateError:  # grpc.aio: "RPC already finished"
            await self._call.read()

    async def _pass_on(self) -> str:
        """Pass hints on after a random wait, so that a fleet does not come at once."""
        while True:
            await self._hinted.wait()
            await asyncio.sleep(self._rng.uniform(0.0, self._settings.hint_spread_s))
            self._hinted.clear()
            self._on_hint(self._hint)


def _options(settings: Settings) -> tuple[tuple[str, int], ...]:
    return (
        ("grpc.keepalive_time_ms", int(settings.keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.enable_retries", 0),
        ("grpc.use_local_subchannel_pool", 1),  # a new session is a new connection
    )


def _sentence(error: grpc.aio.AioRpcError) -> str:
    return f"{error.code().name}: {(error.details() or 'no details')[:512]}"
