"""What an operator can ask of versions from a hub, and what is refused, and why."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from appliance.access import audit as audits
from appliance.api.proto import deployment_pb2 as pb
from appliance.api.proto.deployment_pb2_grpc import DeploymentServiceStub
from appliance.config import Store as StoreSettings
from appliance.store import Store
from tests.integration.daemons import RunningDaemon
from tests.integration.fleet import COHORT, DEMO_1, DEMO_2, MODEL, STRAIGHT, Desk, Fleet, state_of
from tests.integration.grpc_calls import failure_of
from tests.integration.hubs import until
from tests.unit.hub.published import served

APPROVED = {**STRAIGHT, "needs_approval": True}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    fleet = Fleet(tmp_path_factory.mktemp("orders"))
    fleet.publish("1", DEMO_1, STRAIGHT)
    fleet.trust()
    return fleet


@pytest.fixture(scope="module")
def daemon(fleet: Fleet) -> Iterator[RunningDaemon]:
    with served(fleet.repository) as url:
        settings = {"versions.cohort": COHORT, "versions.mirrors": f'["{url}"]'}
        with fleet.daemon("--grpc-tcp", "localhost:0", **settings) as daemon:
            daemon.ready()
            until(lambda: Desk(daemon).active() == "1")
            yield daemon


def order(daemon: RunningDaemon, name: str, request: Any) -> Any:  # noqa: ANN401 - any message
    async def work(stub: DeploymentServiceStub) -> object:
        return await getattr(stub, name)(request)

    return Desk(daemon).call(work)


def refusal(daemon: RunningDaemon, name: str, request: object) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        order(daemon, name, request)
    found = failure_of(caught.value)
    return found.reason, found.message


@pytest.mark.parametrize(
    ("name", "request_", "code", "reason"),
    [
        ("Rollback", pb.RollbackRequest(model=MODEL), "DEPLOYMENT_REFUSED", "no version to go"),
        ("Rollback", pb.RollbackRequest(model="none"), "DEPLOYMENT_REFUSED", "no version of it"),
        ("Approve", pb.ApproveRequest(model=MODEL), "DEPLOYMENT_REFUSED", "nothing is under way"),
        ("Cancel", pb.CancelRequest(model=MODEL), "DEPLOYMENT_REFUSED", "nothing is under way"),
        ("Drill", pb.DrillRequest(model=MODEL), "DEPLOYMENT_REFUSED", "there is no standby"),
        ("Pin", pb.PinRequest(model=MODEL), "INVALID_REQUEST", "version"),
        ("Hold", pb.HoldRequest(model="../etc"), "INVALID_REQUEST", "model"),
        ("Forgive", pb.ForgiveRequest(model=MODEL, version="9"), "DEPLOYMENT_REFUSED", "is signed"),
        ("ImportBundle", pb.ImportBundleRequest(path="stick"), "INVALID_REQUEST", "absolute"),
        ("ImportBundle", pb.ImportBundleRequest(path="/no/stick"), "HUB_UNREACHABLE", "/no/stick"),
        ("ListDeployments", pb.ListDeploymentsRequest(count=1001), "INVALID_REQUEST", "count"),
    ],
)
def test_what_is_not_possible_says_why(
    daemon: RunningDaemon, name: str, request_: object, code: str, reason: str
) -> None:
    found, message = refusal(daemon, name, request_)
    assert found == code
    assert reason in message


def test_an_application_may_neither_look_nor_order(daemon: RunningDaemon) -> None:
    rest = daemon.rest_address
    inference = [line["address"] for line in daemon.lines if line.get("plane") == "inference"]
    (tcp,) = [one for one in inference if not one.startswith("unix") and one != rest]

    async def denied(method: str, request: object) -> str:
        async with asyncio.timeout(30), grpc.aio.insecure_channel(tcp) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await getattr(DeploymentServiceStub(channel), method)(request)
            return failure_of(caught.value).reason

    for method, request in (
        ("GetOverview", pb.GetOverviewRequest()),
        ("Rollback", pb.RollbackRequest(model=MODEL)),
        ("SyncNow", pb.SyncNowRequest()),
        ("ImportBundle", pb.ImportBundleRequest(path="/etc")),
    ):
        assert asyncio.run(denied(method, request)) == "PERMISSION_DENIED"


def test_held_released_approved_drilled_and_rolled_back(
    fleet: Fleet, daemon: RunningDaemon
) -> None:
    desk = Desk(daemon)
    order(daemon, "Hold", pb.HoldRequest(model=MODEL))
    fleet.publish("2", DEMO_2, APPROVED)
    order(daemon, "SyncNow", pb.SyncNowRequest())
    held = desk.model()
    assert (held.assigned_version, held.is_held, held.refusal.code) == ("2", True, "held")
    order(daemon, "Pin", pb.PinRequest(model=MODEL, version="1"))
    order(daemon, "Release", pb.ReleaseRequest(model=MODEL))
    assert (desk.model().pinned_version, desk.model().refusal.code) == ("1", "pinned")
    order(daemon, "Unpin", pb.UnpinRequest(model=MODEL))
    until(lambda: state_of(desk.model().deployment) == "AWAITING_APPROVAL")
    assert desk.model().deployment.waiting_for == "a person's approval"
    assert "is under way" in refusal(daemon, "Drill", pb.DrillRequest(model=MODEL))[1]
    order(daemon, "Cancel", pb.CancelRequest(model=MODEL))
    until(lambda: desk.model().refusal.code == "quarantined")
    order(daemon, "Forgive", pb.ForgiveRequest(model=MODEL, version="2"))
    until(lambda: state_of(desk.model().deployment) == "AWAITING_APPROVAL")
    order(daemon, "Approve", pb.ApproveRequest(model=MODEL))
    until(lambda: desk.active() == "2" and not desk.model().HasField("deployment"))
    drill = order(daemon, "Drill", pb.DrillRequest(model=MODEL))
    assert (drill.label, drill.reason) == (f"{MODEL}@1", "")
    assert drill.accepted_ms > 0
    done = order(daemon, "Rollback", pb.RollbackRequest(model=MODEL))
    assert state_of(done.deployment) == "ROLLED_BACK"
    assert done.took_ms > 0
    listed = desk.deployments()
    assert [(one.version, state_of(one)) for one in listed] == [
        ("2", "ROLLED_BACK"),
        ("2", "COMMITTED"),
        ("2", "ABORTED"),
        ("1", "COMMITTED"),
    ]
    verbs = audited(fleet)
    for row in (
        ("hold_model", MODEL, "ok"),
        ("sync", "*", "ok"),
        ("pin_version", MODEL, "ok"),
        ("cancel_deployment", MODEL, "ok"),
        ("forgive_version", MODEL, "ok"),
        ("approve", MODEL, "ok"),
        ("drill", MODEL, "ok"),
        ("rollback", MODEL, "ok"),
    ):
        assert row in verbs


def audited(fleet: Fleet) -> list[tuple[object, ...]]:
    """Read the record that the daemon keeps, as another process may."""
    store = Store(fleet.state / "events.db", audits.MIGRATIONS, StoreSettings())
    try:
        rows = store.read("SELECT verb, object, result FROM audit")
        return [tuple(row) for row in rows]
    finally:
        assert store.close(30.0)


def test_an_appliance_without_a_root_takes_no_orders(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path) as daemon:
        daemon.ready()
        assert Desk(daemon).overview() == pb.GetOverviewResponse(sync=pb.SyncStatus())
        assert Desk(daemon).deployments() == []
        code, message = refusal(daemon, "Rollback", pb.RollbackRequest(model=MODEL))
        assert code == "DEPLOYMENT_REFUSED"
        assert "takes no versions from a hub" in message
