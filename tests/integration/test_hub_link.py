"""The push stream between a real hub process and the appliance's link."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from appliance.access.device import DeviceIdentity
from appliance.clock import monotonic_ms, utc_ms
from appliance.config import Link as Settings
from appliance.config import Store as StoreSettings
from appliance.fleet_proto import fleet_pb2 as pb
from appliance.fleet_proto import fleet_pb2_grpc
from appliance.store import Store
from appliance.sync.link import Link
from appliance.sync.outbox import MIGRATIONS, Outbox
from tests.integration.hubs import TIMEOUT_S, RunningHub

QUICK = Settings(
    heartbeat_s=0.2,
    retry_s_min=0.05,
    retry_s_max=0.2,
    hint_spread_s=0.0,
    dial_timeout_s=5.0,
    outbox_in_flight=4,
)
HINT_MS_MAX = 1000


class Device:
    """An appliance's link and outbox; what was hinted, and when."""

    def __init__(self, identity: DeviceIdentity, place: Path, settings: Settings = QUICK) -> None:
        self.store = Store(place / "state.db", MIGRATIONS, StoreSettings())
        self.outbox = Outbox(self.store, 1000, utc_ms)
        self.hints: list[tuple[int, float]] = []
        self.link = Link(
            identity,
            self.outbox,
            settings,
            program="1.0",
            on_hint=self._hint,
            rng=random.Random(1),
        )

    def _hint(self, version: int) -> None:
        self.hints.append((version, monotonic_ms()))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():  # noqa: ASYNC110 - the link has no event for each of these
                await asyncio.sleep(0.005)

    async def hinted(self, version: int) -> float:
        """Wait for a hint of this version; returns when it came."""
        await self.until(lambda: any(hint == version for hint, _ in self.hints))
        return next(at_ms for hint, at_ms in self.hints if hint == version)

    async def waiting(self) -> list[int]:
        name = await self.outbox.name()
        return [report.seq for report in await self.outbox.after(name, 0, 1000)]

    async def emptied(self) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while await self.waiting():  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def running(
    identity: DeviceIdentity, place: Path, settings: Settings = QUICK
) -> AsyncIterator[Device]:
    device = Device(identity, place, settings)
    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(device.link.run())
            try:
                yield device
            finally:
                task.cancel()
    finally:
        device.store.close(10)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    with RunningHub(tmp_path_factory.mktemp("hub")) as one:
        yield one


def run(body: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(4 * TIMEOUT_S):
            await body

    asyncio.run(bounded())


def test_a_hint_reaches_a_dialled_appliance_within_a_second(
    hub: RunningHub, tmp_path: Path
) -> None:
    identity = hub.enrolled(tmp_path, device="hinted")
    hub.publish(3)

    async def body() -> None:
        async with running(identity, tmp_path) as device:
            await device.hinted(3)  # what it missed, it is told when it comes
            assert device.link.connected
            begun_ms = monotonic_ms()
            hub.publish(4)
            assert await device.hinted(4) - begun_ms < HINT_MS_MAX

    run(body())


def test_reports_reach_the_hub_once_and_in_order(hub: RunningHub, tmp_path: Path) -> None:
    identity = hub.enrolled(tmp_path, device="reporter")

    async def body() -> None:
        async with running(identity, tmp_path) as device:
            for number in range(30):
                await device.outbox.add("state", json.dumps({"n": number}).encode())
            await device.emptied()

    run(body())
    lines = hub.run("device", "reports", "reporter", "--count", 100).splitlines()
    told = [json.loads(json.loads(line)["body"])["n"] for line in reversed(lines)]
    assert told == list(range(30))


def test_an_appliance_comes_back_to_a_hub_that_was_away(tmp_path: Path) -> None:
    with RunningHub(tmp_path) as first:
        identity = first.enrolled(tmp_path / "box")
        listen, push = first.url.removeprefix("https://"), first.push_address

        async def body() -> None:
            async with running(identity, tmp_path) as device:
                await device.until(lambda: device.link.connected)
                assert await asyncio.to_thread(first.stop) == 0
                await device.until(lambda: not device.link.connected)
                await device.outbox.add("state", b"{}")
                again = await asyncio.to_thread(
                    RunningHub, tmp_path, listen=f'"{listen}"', push_listen=f'"{push}"'
                )
                with again:
                    await device.until(lambda: device.link.connected)
                    await device.emptied()
                    again.publish(9)
                    await device.hinted(9)

        run(body())


def test_a_hub_that_hangs_is_noticed_and_dialled_again(tmp_path: Path) -> None:
    with RunningHub(tmp_path) as hub:
        identity = hub.enrolled(tmp_path / "box")

        async def body() -> None:
            async with running(identity, tmp_path) as device:
                await device.until(lambda: device.link.connected)
                hub.process.send_signal(signal.SIGSTOP)
                try:
                    await device.until(lambda: "heartbeats" in device.link.reason)
                finally:
                    hub.process.send_signal(signal.SIGCONT)
                await device.until(lambda: device.link.connected)

        run(body())


def test_a_revoked_appliance_is_cut_off_and_told_why(hub: RunningHub, tmp_path: Path) -> None:
    identity = hub.enrolled(tmp_path, device="traitor")

    async def body() -> None:
        async with running(identity, tmp_path) as device:
            await device.until(lambda: device.link.connected)
            await asyncio.to_thread(hub.run, "device", "revoke", "traitor")
            await device.until(lambda: "PERMISSION_DENIED" in device.link.reason)
            assert "revoked" in device.link.reason

    run(body())


def test_state_that_was_restored_from_a_copy_goes_on_under_a_new_name(
    hub: RunningHub, tmp_path: Path
) -> None:
    identity = hub.enrolled(tmp_path, device="restored")

    async def before() -> None:
        async with running(identity, tmp_path / "a") as device:
            for _ in range(3):
                await device.outbox.add("state", b'{"before": 1}')
            await device.emptied()
            names.append(await device.outbox.name())

    async def after() -> None:
        async with running(identity, tmp_path / "b") as device:
            await device.outbox.add("state", b'{"after": 1}')
            await device.emptied()
            assert await device.outbox.name() != names[0]

    names: list[str] = []
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
    run(before())
    store = Store(tmp_path / "b" / "state.db", MIGRATIONS, StoreSettings())
    named = "INSERT INTO outbox_name (id, name) VALUES (1, ?)"
    store.submit(lambda rows: rows.execute(named, (names[0],))).result(10)
    assert store.close(10)
    run(after())
    lines = hub.run("device", "reports", "restored").splitlines()
    assert [json.loads(line)["body"] for line in lines].count('{"after": 1}') == 1


# --- the protocol itself -------------------------------------------------------------------------

Call = grpc.aio.StreamStreamCall[pb.SessionRequest, pb.SessionResponse]


@contextlib.asynccontextmanager
async def dialled(hub: RunningHub, identity: DeviceIdentity) -> AsyncIterator[Call]:
    ca_pem, key_pem, pem = identity.pems()
    credentials = grpc.ssl_channel_credentials(ca_pem, key_pem, pem)
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.secure_channel(hub.push_address, credentials, options=options) as channel:
        call = fleet_pb2_grpc.FleetServiceStub(channel).Session()
        try:
            yield call
        finally:
            call.cancel()


async def said(call: Call, **up: Any) -> pb.SessionResponse:  # noqa: ANN401 - one message of the oneof
    await call.write(pb.SessionRequest(**up))
    answer = await call.read()
    assert isinstance(answer, pb.SessionResponse)
    return answer


def report(outbox: str, seq: int, body: bytes = b"{}") -> pb.Report:
    return pb.Report(outbox=outbox, seq=seq, utc_ms=1, kind="state", body=body)


def test_a_replayed_report_is_refused(hub: RunningHub, tmp_path: Path) -> None:
    victim = hub.enrolled(tmp_path / "victim", device="victim")
    thief = hub.enrolled(tmp_path / "thief", device="thief")
    mine, other = "a" * 32, "b" * 32

    async def body() -> None:
        async with dialled(hub, victim) as call:
            await said(call, hello=pb.Hello(program="1", outbox=mine))
            answer = await said(call, report=report(mine, 2, b"first"))
            assert answer.acknowledgement.seq == 2
            again = await said(call, report=report(mine, 2, b"first"))
            assert again.acknowledgement.seq == 2  # its acknowledgement may have been lost
            for odd in (report(mine, 2, b"other"), report(mine, 1, b"other"), report(other, 3)):
                answer = await said(call, report=odd)
                assert answer.HasField("refusal")
                assert answer.refusal.seq == odd.seq
            answer = await said(call, report=report("junk", 5))
            assert "outbox" in answer.refusal.reason
        async with dialled(hub, thief) as call:
            await said(call, hello=pb.Hello(program="1", outbox=other))
            answer = await said(call, report=report(mine, 2, b"first"))
            assert answer.HasField("refusal")

    run(body())
    found = [json.loads(line) for line in hub.run("device", "reports", "victim").splitlines()]
    assert [(one["seq"], one["body"]) for one in found] == [(2, "first")]
    assert hub.run("device", "reports", "thief") == ""


def test_hello_comes_first(hub: RunningHub, tmp_path: Path) -> None:
    identity = hub.enrolled(tmp_path, device="rude")

    async def body() -> None:
        async with dialled(hub, identity) as call:
            await call.write(pb.SessionRequest(heartbeat=pb.Heartbeat(number=1)))
            with pytest.raises(grpc.aio.AioRpcError, match="say hello first"):
                await call.read()

    run(body())


def test_an_appliance_that_dials_twice_has_one_session(hub: RunningHub, tmp_path: Path) -> None:
    identity = hub.enrolled(tmp_path, device="twice")

    async def body() -> None:
        async with contextlib.AsyncExitStack() as stack:
            older = await stack.enter_async_context(dialled(hub, identity))
            await said(older, hello=pb.Hello(program="1", outbox="a" * 32))
            newer = await stack.enter_async_context(dialled(hub, identity))
            await said(newer, hello=pb.Hello(program="1", outbox="a" * 32))
            with pytest.raises(grpc.aio.AioRpcError, match="dialled again"):
                await older.read()
            answer = await said(newer, heartbeat=pb.Heartbeat(number=7))
            assert answer.heartbeat.number == 7

    run(body())


def test_without_a_certificate_nobody_dials(hub: RunningHub, tmp_path: Path) -> None:
    identity = hub.enrolled(tmp_path, device="certified")

    async def body() -> None:
        credentials = grpc.ssl_channel_credentials(identity.pems()[0])
        async with grpc.aio.secure_channel(hub.push_address, credentials) as channel:
            call = fleet_pb2_grpc.FleetServiceStub(channel).Session(timeout=TIMEOUT_S)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call.read()
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE

    run(body())


def test_a_session_that_says_nothing_ends(tmp_path: Path) -> None:
    with RunningHub(tmp_path, session_idle_s=0.3) as hub:
        identity = hub.enrolled(tmp_path / "box")

        async def body() -> None:
            async with dialled(hub, identity) as call:
                await said(call, hello=pb.Hello(program="1", outbox="a" * 32))
                with pytest.raises(grpc.aio.AioRpcError, match="nothing was heard"):
                    await call.read()

        run(body())
