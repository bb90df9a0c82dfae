"""Metadata that has expired stops learning and nothing else: a start, serving, the way back."""

from __future__ import annotations

from pathlib import Path

from appliance.api.proto import deployment_pb2 as pb
from appliance.clock import utc_ms
from appliance.hub.online import KEYS_DIRECTORY, open_keys
from appliance.hub.signing import Repository, Validity
from tests.integration.daemons import RunningDaemon, program
from tests.integration.fleet import (
    COHORT,
    DEMO_1,
    DEMO_2,
    MODEL,
    STRAIGHT,
    Desk,
    Fleet,
    Load,
    state_of,
)
from tests.integration.hubs import until
from tests.unit.hub.published import DAY, served

LEFT_MS = 10_000


def expire_soon(fleet: Fleet) -> None:
    """Sign a timestamp as its key would have some days ago: it holds for seconds more."""
    then = utc_ms() - Validity().timestamp * DAY + LEFT_MS
    signers = open_keys(fleet.place / "hub" / KEYS_DIRECTORY)
    Repository(fleet.repository).settle(signers, now_utc_ms=then, renew=("timestamp",))


def settled(daemon: RunningDaemon, version: str) -> bool:
    model = Desk(daemon).model()
    return model.active.version == version and not model.HasField("deployment")


async def sync(stub: Desk.Stub) -> pb.SyncNowResponse:
    return await stub.SyncNow(pb.SyncNowRequest())


async def back(stub: Desk.Stub) -> pb.RollbackResponse:
    return await stub.Rollback(pb.RollbackRequest(model=MODEL))


def test_a_restart_with_expired_metadata_serves_goes_back_and_says_so(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    fleet.publish("1", DEMO_1, STRAIGHT)
    fleet.trust()
    with served(fleet.repository) as url:
        settings = {"versions.cohort": COHORT, "versions.mirrors": f'["{url}"]'}
        with fleet.daemon(**settings) as daemon:
            daemon.ready()
            until(lambda: settled(daemon, "1"))
            fleet.publish("2", DEMO_2, STRAIGHT)
            Desk(daemon).call(sync)
            until(lambda: settled(daemon, "2"))
            expire_soon(fleet)
            assert not Desk(daemon).call(sync).sync.is_stale
            until(lambda: Desk(daemon).overview().sync.is_stale)
            assert settled(daemon, "2")
            daemon.process.terminate()
            assert daemon.wait() == 0
        with fleet.daemon(**settings) as daemon:
            daemon.ready()
            assert settled(daemon, "2")
            until(lambda: "expired" in Desk(daemon).overview().sync.fault)
            assert Desk(daemon).overview().sync.is_stale
            assert "STALE: expired" in program("status", "--address", daemon.address).stdout
            with Load(daemon, users=2) as load:
                until(lambda: f"{MODEL}@2" in load.versions)
                assert state_of(Desk(daemon).call(back).deployment) == "ROLLED_BACK"
                until(lambda: load.versions[-1] == f"{MODEL}@1")
            assert load.failures == []
            assert settled(daemon, "1")
