"""What goes wrong with a committed version: users are sent back without anybody's order."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc.aio
import pytest

from appliance.api.proto import deployment_pb2 as pb
from appliance.api.proto import model_pb2
from appliance.api.proto.model_pb2_grpc import ModelServiceStub
from tests.integration.daemons import RunningDaemon
from tests.integration.fleet import COHORT, DEMO_1, DEMO_2, MODEL, STRAIGHT, Desk, Fleet, Load
from tests.integration.hubs import until
from tests.unit.hub.published import served

SETTINGS = {"versions.cohort": COHORT, "engine.restarts_max": 0}


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    fleet = Fleet(tmp_path)
    fleet.publish("1", DEMO_1, STRAIGHT)
    fleet.trust()
    return fleet


@pytest.fixture
def url(fleet: Fleet) -> Iterator[str]:
    with served(fleet.repository) as url:
        yield url


def sync(daemon: RunningDaemon) -> None:
    async def work(stub: Desk.Stub) -> pb.SyncNowResponse:
        return await stub.SyncNow(pb.SyncNowRequest())

    Desk(daemon).call(work)


def settled(daemon: RunningDaemon, version: str) -> bool:
    model = Desk(daemon).model()
    return model.active.version == version and not model.HasField("deployment")


def second(fleet: Fleet, daemon: RunningDaemon) -> None:
    """Have the second version take the place of the first."""
    until(lambda: settled(daemon, "1"))
    fleet.publish("2", DEMO_2, STRAIGHT)
    sync(daemon)
    until(lambda: settled(daemon, "2"))


def worker_of(daemon: RunningDaemon, version: str) -> int:
    """Name the process of a version; 0 where it has none."""

    async def listed() -> model_pb2.ListResponse:
        async with grpc.aio.insecure_channel(daemon.address) as channel:
            return await ModelServiceStub(channel).List(model_pb2.ListRequest())

    return next((m.worker_pid for m in asyncio.run(listed()).models if m.version == version), 0)


def test_a_version_that_can_not_be_kept_running_is_left_for_its_standby(
    fleet: Fleet, url: str
) -> None:
    with fleet.daemon(**SETTINGS, **{"versions.mirrors": f'["{url}"]'}) as daemon:
        daemon.ready()
        second(fleet, daemon)
        os.kill(worker_of(daemon, "2"), signal.SIGKILL)
        until(lambda: settled(daemon, "1"))
        last = Desk(daemon).deployments()[0]
        assert last.version == "2"
        assert last.undo in ("crash_loop", "regret")  # whichever sees it first
        with Load(daemon, users=1) as load:
            until(lambda: len(load.versions) > 0)
        assert load.failures == []


def test_a_worker_lost_after_the_daemon_was_killed_is_regretted_and_no_user_notices(
    fleet: Fleet, url: str
) -> None:
    settings = {"versions.cohort": COHORT, "versions.mirrors": f'["{url}"]'}
    with fleet.daemon(**settings) as daemon:
        daemon.ready()
        second(fleet, daemon)
        daemon.process.kill()
    with fleet.daemon(**settings) as daemon:
        daemon.ready()
        until(lambda: settled(daemon, "2"))
        with Load(daemon) as load:
            until(lambda: f"{MODEL}@2" in load.versions)
            os.kill(worker_of(daemon, "2"), signal.SIGKILL)
            until(lambda: settled(daemon, "1"))
            until(lambda: load.versions[-1] == f"{MODEL}@1")
        last = Desk(daemon).deployments()[0]
        assert (last.version, last.undo) == ("2", "regret")
        assert load.failures == []


def test_a_version_that_its_publisher_withdraws_is_left_for_its_standby(
    fleet: Fleet, url: str
) -> None:
    with fleet.daemon(**SETTINGS, **{"versions.mirrors": f'["{url}"]'}) as daemon:
        daemon.ready()
        second(fleet, daemon)
        with Load(daemon, users=2) as load:
            key = fleet.keys / "acme.key"
            fleet.hub_run("revoke", MODEL, "2", "--reason", "it lies", "--yes", "--key", key)
            sync(daemon)
            until(lambda: settled(daemon, "1"))
        last = Desk(daemon).deployments()[0]
        assert (last.version, last.undo) == ("2", "revoked")
        assert load.failures == []
        until(lambda: Desk(daemon).model().refusal.code in ("revoked", "quarantined"))


def test_a_daemon_that_is_killed_goes_on_where_it_was(fleet: Fleet, url: str) -> None:
    settings = {**SETTINGS, "versions.mirrors": f'["{url}"]'}
    with fleet.daemon(**settings) as daemon:
        daemon.ready()
        until(lambda: settled(daemon, "1"))
        fleet.publish("2", DEMO_2, {**STRAIGHT, "needs_approval": True})
        sync(daemon)
        until(lambda: Desk(daemon).model().deployment.waiting_for == "a person's approval")
        daemon.process.kill()
    with fleet.daemon(**settings) as daemon:
        daemon.ready()
        assert Desk(daemon).active() == "1"
        until(lambda: settled(daemon, "1"))
        states = [one.cause for one in Desk(daemon).deployments()]
        assert states[0] == "restarted_dirty"
        until(lambda: Desk(daemon).model().refusal.code == "too_soon")


def test_the_way_back_is_rehearsed_and_flipped_bits_are_mended(fleet: Fleet, url: str) -> None:
    settings = {"versions.drill_s": 0.5, "versions.scrub_s": 0.5, "versions.mirrors": f'["{url}"]'}
    with fleet.daemon(**SETTINGS, **settings) as daemon:
        daemon.ready()
        second(fleet, daemon)
        drill = daemon.logged("rollback_drill")
        assert (drill["model"], drill["reason"]) == (f"{MODEL}@1", "")
        standby = Desk(daemon).model().standby.digest.removeprefix("sha256:")
        (link,) = (fleet.state / "versions" / standby).iterdir()
        blob = link.readlink()
        whole = blob.read_bytes()
        blob.chmod(0o600)
        with blob.open("r+b") as file:
            file.seek(len(whole) // 2)
            file.write(bytes([whole[len(whole) // 2] ^ 1]))
        assert daemon.logged("file_repaired")["sha256"] == blob.name
        assert blob.read_bytes() == whole


def test_former_versions_stay_as_many_as_are_kept(fleet: Fleet, url: str) -> None:
    settings = {"versions.mirrors": f'["{url}"]', "downloads.versions_kept": 3}
    with fleet.daemon(**SETTINGS, **settings) as daemon:
        daemon.ready()
        second(fleet, daemon)
        fleet.publish("3", DEMO_1.with_name("demo-3.q8_0.gguf"), STRAIGHT)
        sync(daemon)
        until(lambda: settled(daemon, "3"))
        model = Desk(daemon).model()
        named = {one.digest.removeprefix("sha256:") for one in (model.active, model.standby)}
        links = fleet.state / "versions"
        until(lambda: {path.name for path in links.iterdir()} == named)
        files = (fleet.state / "blobs" / "sha256").glob("??/*")
        assert sum(path.stat().st_size > 1_000_000 for path in files) == 3
