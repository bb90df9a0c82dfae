"""A signed version, from the hub to users and back: the real hub, daemon and requests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gguf import LlamaFileType

from appliance.api.proto import deployment_pb2 as pb
from appliance.contract.fleet import DEPLOYMENT_STEP
from benchmarks.versions import gate
from benchmarks.versions.damaged import quantised
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
    steps,
)
from tests.integration.hubs import RunningHub, until
from tools.gguf_writer import write_lora

WHOLE_WAY = [
    "fetching",
    "staged",
    "loading",
    "checking",
    "shadowing",
    "shifting",
    "probation",
    "committed",
]


def reported(hub: RunningHub, version: str) -> list[str]:
    """List the states that a version went through, as the hub was told."""
    lines = hub.run("device", "reports", "box", "--count", 1000).splitlines()
    reports = [json.loads(line) for line in reversed(lines)]
    steps = [json.loads(one["body"]) for one in reports if one["kind"] == DEPLOYMENT_STEP]
    return [step["state"] for step in steps if step["version"] == version]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    fleet = Fleet(tmp_path_factory.mktemp("fleet"))
    fleet.publish("1", DEMO_1, STRAIGHT)
    fleet.trust()
    return fleet


def test_a_version_from_a_hub_through_its_whole_life(fleet: Fleet) -> None:
    with fleet.hub() as hub:
        fleet.enrol(hub)
        with fleet.daemon() as daemon:
            desk = Desk(daemon)
            daemon.ready()
            until(lambda: desk.active() == "1")
            until(lambda: not desk.model().HasField("deployment"))  # written down, then put to use
            with Load(daemon) as load:
                until(lambda: f"{MODEL}@1" in load.versions)
                fleet.publish("2", DEMO_2)
                until(lambda: desk.active() == "2")
                until(lambda: "committed" in steps(daemon.lines, "2"))
                assert steps(daemon.lines, "2") == WHOLE_WAY
                until(lambda: load.versions[-1] == f"{MODEL}@2")
                assert daemon.logged("hub_hint")
                assert desk.model().standby.version == "1"

                async def back(stub: Desk.Stub) -> pb.RollbackResponse:
                    return await stub.Rollback(pb.RollbackRequest(model=MODEL))

                done = desk.call(back)
                assert state_of(done.deployment) == "ROLLED_BACK"
                assert done.is_durable
                until(lambda: load.versions[-1] == f"{MODEL}@1")
            assert load.failures == []
            assert desk.active() == "1"
            until(lambda: desk.model().refusal.code == "quarantined")
            told = [*WHOLE_WAY, "rolling_back", "rolled_back"]
            until(lambda: reported(hub, "2") == ["planned", *told])
        assert hub.stop() == 0
    with fleet.daemon() as daemon:
        daemon.ready()
        assert Desk(daemon).active() == "1"
        until(lambda: Desk(daemon).overview().sync.fault != "")
        with Load(daemon, users=1) as load:
            until(lambda: len(load.versions) > 1)
        assert set(load.versions) == {f"{MODEL}@1"}
        assert load.failures == []
        assert daemon.process.poll() is None


@pytest.mark.parametrize(
    ("name", "edition", "wished"),
    [("stick.tar", "Q8_0", []), ("stick", "Q6_K", [f"{MODEL}=Q6_K"])],
    ids=["tar", "directory"],
)
def test_a_stick_brings_the_edition_of_this_machine_and_its_adapters(
    tmp_path: Path, name: str, edition: str, wished: list[str]
) -> None:
    fleet = Fleet(tmp_path)
    write_lora(tmp_path / "polite.gguf", DEMO_2)
    smaller = tmp_path / "smaller.gguf"
    quantised(gate.DEMO.original, smaller, LlamaFileType.MOSTLY_Q6_K)
    files = ("--weights", smaller, "--adapter", tmp_path / "polite.gguf")
    fleet.publish("1", DEMO_2, STRAIGHT, more=files)
    fleet.trust()
    stick = tmp_path / name
    fleet.hub_run("export", "--cohort", COHORT, "--to", stick)
    settings = {"versions.cohort": COHORT, "deployments.quantisations": json.dumps(wished)}
    with fleet.daemon(**settings) as daemon:
        daemon.ready()
        desk = Desk(daemon)
        assert desk.active() == ""

        async def bring(stub: Desk.Stub) -> pb.ImportBundleResponse:
            return await stub.ImportBundle(pb.ImportBundleRequest(path=str(stick)))

        assert desk.call(bring).sync.learnt_utc_ms > 0
        until(lambda: desk.active() == "1")
        until(lambda: steps(daemon.lines, "1")[-1:] == ["committed"])
        with Load(daemon, users=1) as load, Load(daemon, users=1, adapter="polite") as adapted:
            until(lambda: len(load.versions) > 0 and len(adapted.versions) > 0)
        assert load.failures == adapted.failures == []
        assert set(adapted.versions) == {f"{MODEL}@1:polite"}
        assert desk.model().active.quantisation == edition
        assert [one.quantisation for one in desk.deployments()] == [edition]
        here = {path.stat().st_size for path in fleet.state.glob("blobs/sha256/*/*")}
        taken = {"Q8_0": DEMO_2.stat().st_size in here, "Q6_K": smaller.stat().st_size in here}
        assert [one for one, is_here in taken.items() if is_here] == [edition]


def test_trust_and_enrolment_are_found_by_a_daemon_that_runs(fleet: Fleet) -> None:
    other = fleet.beside("late")
    with fleet.hub() as hub, other.daemon() as daemon:
        desk = Desk(daemon)
        daemon.ready()
        assert not desk.overview().sync.is_on
        other.trust()
        until(lambda: desk.overview().sync.is_on)
        assert desk.overview().sync.link_reason == "not enrolled with a hub"
        other.enrol(hub)
        until(lambda: desk.active() != "")
        until(lambda: desk.overview().sync.is_linked)
        assert desk.overview().sync.cohort == COHORT
        assert daemon.logged("versions_taken")
        assert daemon.logged("enrolled")
