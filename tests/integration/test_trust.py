"""Trust end to end: real TUF, real HTTP on loopback, a real state.db, real directories."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.config import Refresh
from appliance.contract import names
from appliance.contract.document import SCHEMA
from appliance.contract.release import BlobRef
from appliance.contract.standing import Standing
from appliance.errors import ClockUntrusted, HubUnreachable, StoreError, Untrusted
from appliance.sync import host
from appliance.sync.beliefs import Beliefs
from appliance.sync.bundle import import_bundle
from appliance.sync.bundle_source import BundleSource
from appliance.sync.fetcher import HttpMetadata
from appliance.sync.sources import SourceFailed
from tests.integration.trust_box import WAIT_S, Box, boxed, labels
from tests.integration.tuf_repository import DIGEST, ISSUED_UTC_MS, a_release

DAY_MS = 86_400_000


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    with boxed(tmp_path) as made:
        yield made


def test_what_publisher_and_director_agree_on_is_learnt(box: Box) -> None:
    trusted = box.refresh()
    assert labels(trusted) == ["demo@2"]
    assert trusted.agreement.refusals == ()
    assert trusted.freshness.signed_utc_ms == ISSUED_UTC_MS
    assert not trusted.clock_is_behind


def test_what_is_known_is_not_fetched_again(box: Box) -> None:
    box.refresh()
    box.hub.asked.clear()
    assert labels(box.refresh()) == ["demo@2"]
    assert box.hub.asked == ["metadata/2.root.json", "metadata/timestamp.json"]


def test_what_was_learnt_is_read_without_metadata_and_without_a_hub(box: Box) -> None:
    digest = box.refresh("demo").agreement.genuine[0].release_sha256
    box.hub.files.clear()
    for file in (box.directory / "tuf").rglob("*.json"):
        file.unlink()
    box.clock_ms += 3650 * DAY_MS
    release, assignment = box.remembered.release(digest), box.remembered.assignment("shops")
    assert release is not None
    assert release.label == "demo@2"
    assert assignment is not None
    assert assignment.models[0].release_sha256 == digest
    assert box.remembered.latest_release("demo", "2") is not None
    with pytest.raises(HubUnreachable, match="timestamp"):
        box.refresh()


def test_standings_come_for_models_that_are_not_assigned_any_more(box: Box) -> None:
    box.repository.stand("acme", Standing(schema=SCHEMA, model="demo", floor_sequence=3))
    box.repository.assign("shops", 2)
    trusted = box.refresh("demo", "unknown")
    assert [one.model for one in trusted.agreement.standings] == ["demo"]
    assert labels(trusted) == []
    remembered = box.remembered.standing("demo")
    assert remembered is not None
    assert remembered.floor_sequence == 3


def test_a_cohort_without_an_assignment_learns_that_there_is_none(box: Box) -> None:
    source = HttpMetadata(box.hub.url, Refresh(), tls=None)
    assert box.trust.refresh(source, "labs").agreement.assignment is None


def test_what_was_verified_is_kept_where_a_later_step_fails(box: Box) -> None:
    box.refresh()
    box.repository.rotate("timestamp")
    box.repository.publish("targets")
    snapshot = f"metadata/{box.repository.snapshot().version}.snapshot.json"
    taken = box.hub.files.pop(snapshot)
    with pytest.raises(HubUnreachable, match="snapshot"):
        box.refresh()
    assert box.remembered.floors()["root"] == 2
    box.hub.files[snapshot] = taken
    assert labels(box.refresh()) == ["demo@2"]


def test_a_generation_that_was_adopted_is_never_changed_and_old_ones_go(box: Box) -> None:
    box.refresh()
    first = box.current()
    before = {file: file.read_bytes() for file in first.rglob("*.json")}
    for sequence in range(2, 6):
        box.repository.assign("shops", sequence)
        box.refresh()
        if first.exists():
            assert {file: file.read_bytes() for file in first.rglob("*.json")} == before
    assert len(list((box.directory / "tuf").glob("gen-*"))) <= 3


@pytest.mark.parametrize("pointer", ["", "gen-000099", "../tuf", "\x00\xff", "gen-000001/.."])
def test_a_lost_pointer_begins_again_from_the_bootstrap_root(box: Box, pointer: str) -> None:
    box.repository.rotate("targets")
    box.repository.publish("targets")
    box.refresh()
    (box.directory / "tuf" / "current").write_text(pointer)
    assert labels(box.refresh()) == ["demo@2"]


def test_damage_in_any_file_of_a_generation_heals(box: Box) -> None:
    box.repository.rotate("snapshot")
    box.repository.publish("targets")
    box.refresh()
    names = sorted(file.relative_to(box.current()) for file in box.current().rglob("*.json"))
    assert len(names) > 5
    for name in names:
        damaged = box.current() / name
        damaged.unlink()  # the name of the root is a link
        damaged.touch()
        assert labels(box.refresh()) == ["demo@2"], name


def test_two_refreshes_do_not_run_at_once(box: Box) -> None:
    box.refresh()
    with (box.directory / "tuf" / "lock").open("rb+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(HubUnreachable, match="another refresh"):
            box.refresh()
    assert labels(box.refresh()) == ["demo@2"]


def test_floors_that_cannot_be_made_durable_stop_learning_and_lose_nothing(box: Box) -> None:
    box.refresh()
    before = box.current()
    box.repository.assign("shops", 2)
    assert box.store.close(WAIT_S)
    with pytest.raises(StoreError):
        box.refresh()
    assert box.current() == before


def test_a_clock_behind_what_was_signed_is_passed_over(box: Box) -> None:
    box.refresh()
    box.clock_ms = 0  # 1970: an empty battery
    trusted = box.refresh()
    assert trusted.clock_is_behind
    assert trusted.freshness.learnt_utc_ms == ISSUED_UTC_MS


def test_a_clock_ahead_of_everything_is_suspected_and_nothing_is_lost(box: Box) -> None:
    box.refresh()
    now = box.clock_ms
    box.clock_ms += 5 * 365 * DAY_MS
    with pytest.raises(ClockUntrusted, match="even the root has expired"):
        box.refresh()
    assert box.remembered.assignment("shops") is not None
    box.clock_ms = now
    assert labels(box.refresh()) == ["demo@2"]


def test_a_release_dated_beyond_the_life_of_the_root_does_not_move_the_clock(box: Box) -> None:
    far = box.clock_ms + 3650 * DAY_MS
    digest = box.repository.release("acme", a_release("demo", "3", 3, issued_utc_ms=far))
    box.repository.assign("shops", 2, ("demo", "3", digest))
    assert labels(box.refresh()) == ["demo@3"]
    assert box.remembered.freshness().signed_utc_ms == 0


@pytest.mark.parametrize("form", ["directory", "tar"])
def test_a_bundle_goes_through_the_same_checks(box: Box, tmp_path: Path, form: str) -> None:
    weights = b"weights"
    path = box.repository.save(tmp_path / "stick")
    blob = path / names.blob_path(DIGEST)
    blob.parent.mkdir(parents=True)
    blob.write_bytes(weights)
    if form == "tar":
        with tarfile.open(tmp_path / "stick.tar", "w") as tar:
            tar.add(path, arcname=".")
        path = tmp_path / "stick.tar"
    bundle, trusted = import_bundle(path, box.trust, "shops", (), ())
    assert labels(trusted) == ["demo@2"]
    assert box.hub.asked == []
    source = BundleSource(bundle)
    ref = BlobRef(sha256=DIGEST, length=len(weights))
    assert asyncio.run(stretch(source, ref, 2, 5)) == weights[2:5]
    for absent in (BlobRef(sha256="c" * 64, length=7), BlobRef(sha256=DIGEST, length=8)):
        with pytest.raises(SourceFailed, match="has no file"):
            asyncio.run(stretch(source, absent, 0, 1))


async def stretch(source: BundleSource, blob: BlobRef, start: int, stop: int) -> bytes:
    async with source.open(blob, start, stop) as body:
        assert body.start == start
        return b"".join([piece async for piece in body.pieces])


def test_an_old_bundle_after_a_newer_hub_is_refused(box: Box, tmp_path: Path) -> None:
    stick = box.repository.save(tmp_path / "stick")
    box.repository.assign("shops", 2)
    box.refresh()
    with pytest.raises(Untrusted):
        import_bundle(stick, box.trust, "shops", (), ())
    assert box.remembered.assignment("shops") is not None


def test_beliefs_come_from_the_first_source_that_answers(box: Box) -> None:
    silent = HttpMetadata("http://127.0.0.1:1/", Refresh(), tls=None)
    beliefs = Beliefs(box.trust, box.remembered, "shops", models=set, pinned=set)
    with pytest.raises(HubUnreachable, match="no source"):
        asyncio.run(beliefs.refresh())
    beliefs.sources = (silent,)
    with pytest.raises(HubUnreachable, match="Connect call failed"):
        asyncio.run(beliefs.refresh())
    assert beliefs.fault is not None
    assert beliefs.assignment() is None
    beliefs.sources = (silent, HttpMetadata(box.hub.url, Refresh(), tls=None))
    asyncio.run(beliefs.refresh())
    assignment, offer = beliefs.assignment(), beliefs.release("demo", "2")
    assert assignment is not None
    assert offer is not None
    assert offer.digest == f"sha256:{assignment.models[0].release_sha256}"
    assert offer.publisher == "acme"
    assert (beliefs.standing("demo"), beliefs.release("demo", "3")) == (None, None)
    satisfied: host.Trust = beliefs
    assert satisfied is beliefs


def test_a_kill_before_any_act_on_the_disk_leaves_the_old_or_the_new(
    tmp_path: Path,
) -> None:
    with boxed(tmp_path / "box") as box:
        box.refresh()
        box.repository.rotate("timestamp")
        digest = box.repository.release("acme", a_release("demo", "3", 3))
        box.repository.assign("shops", 2, ("demo", "3", digest))
        assert box.store.close(WAIT_S)
        bootstrap = tmp_path / "root.json"
        bootstrap.write_bytes(box.repository.bootstrap)
        script = Path(__file__).with_name("trust_killed.py")
        done = subprocess.run(
            [sys.executable, script, box.directory, box.hub.url, bootstrap, "shops", "demo@3"],
            env=os.environ | {"PYTHONPATH": str(script.parents[2])},
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20, done.stdout
