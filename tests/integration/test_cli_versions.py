"""The commands about versions, against a real daemon that takes them from a real hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.cli import exits
from appliance.cli.main import main
from tests.integration.daemons import RunningDaemon
from tests.integration.fleet import COHORT, DEMO_1, DEMO_2, MODEL, STRAIGHT, Fleet
from tests.integration.hubs import RunningHub, until

BY_HAND = {**STRAIGHT, "needs_approval": True}
WAIT = ("--wait", "90")

Run = Callable[..., tuple[int, str, str]]


class Place:
    """A hub with version 1, and an appliance that runs it."""

    def __init__(self, fleet: Fleet, hub: RunningHub, daemon: RunningDaemon) -> None:
        self.fleet = fleet
        self.hub = hub
        self.daemon = daemon


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    fleet = Fleet(tmp_path_factory.mktemp("fleet"))
    fleet.publish("1", DEMO_1, STRAIGHT)
    fleet.trust()
    with fleet.hub() as hub:
        fleet.enrol(hub)
        with fleet.daemon("--grpc-tcp", "localhost:0") as daemon:
            daemon.logged("listening")
            yield Place(fleet, hub, daemon)


@pytest.fixture
def run(place: Place, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process against the daemon; returns code, stdout, stderr."""

    def command(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([*words, "--address", place.daemon.address])
        out = capsys.readouterr()
        return code, out.out, out.err

    return command


def read(run: Run, *words: str) -> Any:  # noqa: ANN401 - JSON
    code, out, err = run(*words, "--json")
    assert code == 0, err
    return json.loads(out.splitlines()[-1])


def outlook(run: Run) -> Any:  # noqa: ANN401 - JSON
    (model,) = read(run, "models")["overview"]["models"]
    return model


def test_an_operator_follows_orders_refuses_and_goes_back(place: Place, run: Run) -> None:
    # 1. The first version comes, and is shown.
    assert run("sync", "now")[0] == 0
    code, out, err = run("deployments", *WAIT)
    assert (code, err) == (0, "")
    assert f"{MODEL}@1 committed" in out
    _, out, _ = run("models")
    assert f"{MODEL}: version 1 serves" in out
    assert f"hub: cohort {COHORT}, learnt " in out
    _, out, _ = run("status")
    assert "active (hub)" in out
    assert f"hub: cohort {COHORT}" in out

    # 2. What can't be followed is said, and is wrong usage.
    for words, reason in (
        (("rollback", MODEL), "there is no version to go back to"),
        (("approve", MODEL), "nothing is under way"),
        (("cancel", MODEL), "nothing is under way"),
        (("forgive", MODEL, "9"), "no version 9 is signed"),
    ):
        code, out, err = run(*words)
        assert (code, out) == (exits.USAGE, ""), words
        assert reason in err
        assert len(err.splitlines()) == 1

    # 3. A wish keeps a version out, with the reason and what to do.
    assert "held" in run("hold", MODEL)[1]
    place.fleet.publish("2", DEMO_2, BY_HAND)
    assert read(run, "sync", "now")["sync"]["is_on"]
    assert outlook(run)["refusal"]["code"] == "held"
    assert f"what to do: 'appliance release {MODEL}'" in run("status")[1]
    assert read(run, "pin", MODEL, "1")["model"]["pinned_version"] == "1"
    assert run("release", MODEL)[0] == 0
    assert outlook(run)["refusal"]["code"] == "pinned"
    assert read(run, "unpin", MODEL)["model"]["pinned_version"] == ""

    # 4. It waits for a person, who lets it in; a rehearsal, and back.
    code, out, _ = run("deployments", MODEL, *WAIT)
    assert code == 0
    assert f"{MODEL}@2 awaiting approval" in out
    assert run("approve", MODEL)[0] == 0
    assert run("deployments", *WAIT)[0] == 0
    newest = read(run, "deployments", "--count", "1")["deployments"][0]
    assert (newest["version"], newest["state"]) == ("2", "committed")
    assert newest["quantisation"] == outlook(run)["active"]["quantisation"] == "Q8_0"
    drill = read(run, "drill", MODEL)
    assert (drill["label"], drill["reason"]) == (f"{MODEL}@1", "")
    assert drill["accepted_ms"] > 0
    assert f"{MODEL}@1: " in run("drill", MODEL)[1]
    done = read(run, "rollback", MODEL)
    assert (done["deployment"]["state"], done["is_durable"]) == ("rolled_back", True)
    until(lambda: outlook(run)["refusal"] is not None)
    shown = outlook(run)
    assert (shown["active"]["version"], shown["standby"]) == ("1", None)
    assert shown["refusal"]["code"] == "quarantined"

    # 5. It is forgiven, comes again, and is cancelled instead.
    assert run("forgive", MODEL, "2")[0] == 0
    assert run("deployments", *WAIT)[0] == 0
    assert f"under way: {MODEL}@2 awaiting approval" in run("models")[1]
    assert run("cancel", MODEL)[0] == 0
    assert run("deployments", *WAIT)[0] == 0
    _, out, _ = run("deployments")
    assert out.splitlines()[0].split() == ["ID", "VERSION", "EDITION", "STATE", "SINCE", "WHY"]
    assert "cancelled by" in out


def test_a_bundle_that_is_none_is_refused_with_its_path(run: Run, tmp_path: Path) -> None:
    code, out, err = run("import", str(tmp_path / "nothing.tar"))
    assert code != 0
    assert out == ""
    assert "nothing.tar" in err


def test_without_a_hub_orders_are_refused_and_listings_are_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunningDaemon(tmp_path) as daemon:
        daemon.ready()
        at = ("--address", daemon.address)
        assert main(["rollback", "demo", *at]) == exits.USAGE
        assert "takes no versions from a hub" in capsys.readouterr().err
        assert main(["deployments", "--json", *at]) == 0
        assert json.loads(capsys.readouterr().out) == {"deployments": []}
        assert main(["models", *at]) == 0
        shown = capsys.readouterr().out
    assert "local" in shown
    assert "hub:" not in shown


def test_nobody_answering_is_worth_trying_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    for words in (["models"], ["deployments"], ["rollback", "demo"], ["sync", "now"]):
        assert main([*words, "--runtime-dir", str(tmp_path / "run")]) == exits.RETRY
        assert "no appliance answers" in capsys.readouterr().err


def test_status_over_tcp_shows_what_anybody_may_see(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = place.daemon.waited(
        lambda all_: [line for line in all_ if line.get("plane") == "inference"][1:2]
    )
    codes = [main(["status", "--json", "--address", str(lines[0]["address"])])]
    shown = capsys.readouterr()
    assert codes == [0], shown.err
    assert json.loads(shown.out)["overview"] is None
