"""A version with no room beside the active one, by the real hub and daemon: only where it may."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import psutil

from appliance.api.proto import deployment_pb2 as pb
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
from tests.integration.rest_calls import Answer, call
from tests.unit.hub.published import served

ASKED = {"model": MODEL, "prompt": "2 + 2 =", "max_tokens": 2}


def publish_large(fleet: Fleet, version: str, weights: Path) -> None:
    """Publish a version that needs, as its publisher says, all the memory of this machine."""
    strategy = fleet.place / "alone.json"
    strategy.write_text(json.dumps({**STRAIGHT, "stop_then_start": True}))
    options = ("--strategy", strategy, "--memory-bytes", psutil.virtual_memory().total)
    said = ("publish", MODEL, version, "--weights", weights, *options)
    fleet.hub_run(*said, "--yes", "--key", fleet.keys / "acme.key")
    fleet.assign(version)


def settled(daemon: RunningDaemon, version: str) -> bool:
    model = Desk(daemon).model()
    return model.active.version == version and not model.HasField("deployment")


def asked_until(daemon: RunningDaemon, done: Callable[[], bool]) -> list[Answer]:
    """Ask over REST, one request after another, until it is done."""
    host, _, port = daemon.rest_address.rpartition(":")
    answers: list[Answer] = []

    def asked() -> bool:
        answers.append(call((host, int(port)), "POST", "/v1/completions", ASKED))
        return answers[-1].status == 200 and done()

    until(asked)
    return answers


def test_a_version_that_fits_only_alone_is_taken_where_the_site_allows_it(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    fleet.publish("1", DEMO_1, STRAIGHT)
    fleet.trust()
    with served(fleet.repository) as url:
        settings = {"versions.cohort": COHORT, "versions.mirrors": f'["{url}"]'}
        with fleet.daemon(**settings) as daemon:
            daemon.ready()
            until(lambda: settled(daemon, "1"))
            publish_large(fleet, "2", DEMO_2)

            async def sync(stub: Desk.Stub) -> pb.SyncNowResponse:
                return await stub.SyncNow(pb.SyncNowRequest())

            Desk(daemon).call(sync)
            until(lambda: Desk(daemon).model().refusal.code == "too_little_memory")
            assert "are available" in Desk(daemon).model().refusal.reason
            assert Desk(daemon).deployments()[0].version == "1"  # nothing was fetched for it
            with Load(daemon, users=1) as load:
                until(lambda: len(load.versions) > 0)
            assert (set(load.versions), load.failures) == ({f"{MODEL}@1"}, [])
        allowed = {"deployments.may_stop_active": "true", "deployments.attempt_wait_s": 1}
        with fleet.daemon(**settings, **allowed) as daemon:
            daemon.ready()
            with Load(daemon, users=1) as load:
                answers = asked_until(daemon, lambda: settled(daemon, "2"))
                until(lambda: load.versions[-1:] == [f"{MODEL}@2"])
            assert load.failures
            assert all("UNAVAILABLE" in failure for failure in load.failures)
            refused = [one for one in answers if one.status != 200]
            assert refused
            assert {one.status for one in refused} == {503}
            assert all(int(one.headers["retry-after"]) > 0 for one in refused)
            status = program("status", "--json", "--address", daemon.address)
            (standby,) = json.loads(status.stdout)["standbys"]
            assert (standby["label"], standby["level"]) == (f"{MODEL}@1", "h1")
            daemon.process.terminate()
            assert daemon.wait() == 0
    with fleet.daemon(**settings) as daemon:  # it has served: it is, whatever room there is
        daemon.ready()
        until(lambda: settled(daemon, "2"))

        async def back(stub: Desk.Stub) -> pb.RollbackResponse:
            return await stub.Rollback(pb.RollbackRequest(model=MODEL))

        assert state_of(Desk(daemon).call(back).deployment) == "ROLLED_BACK"
        until(lambda: settled(daemon, "1"))
        with Load(daemon, users=1) as load:
            until(lambda: len(load.versions) > 0)
        assert (set(load.versions), load.failures) == ({f"{MODEL}@1"}, [])
