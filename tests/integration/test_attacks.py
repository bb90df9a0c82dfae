"""Attacks that must fail, by name: a real repository, a real server that lies, a thief's real keys.

After each, what was known before still holds, and the truth is learnt when it is told again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from tuf.api.metadata import DelegatedRole, MetaFile
from tuf.ngclient import Updater

from appliance.config import Refresh
from appliance.contract import names
from appliance.contract.document import DOCUMENT_BYTES_MAX, SCHEMA, encode
from appliance.contract.standing import Revoked, Standing
from appliance.errors import DocumentRefused, HubUnreachable, SyncError, Untrusted
from appliance.sync.trust import Trusted
from tests.integration.loopback_hub import Answer, drip, drip_head, endless
from tests.integration.trust_box import Box, boxed, labels
from tests.integration.tuf_repository import Repository, a_release

HASTY = Refresh(deadline_s=2.0, stall_s=0.4, bytes_per_s_min=10_000)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    """Set up an appliance that knows version 2 of its model, and a second edition of everything."""
    with boxed(tmp_path) as made:
        made.repository.publish("targets", "publisher-acme", "publisher-rival", "director")
        made.refresh("demo")
        yield made


def refused(box: Box, expected: type[SyncError] = Untrusted) -> str:
    """Refresh and be refused; what was known holds."""
    floors, assignment = box.remembered.floors(), box.remembered.assignment("shops")
    with pytest.raises(expected) as caught:
        box.refresh("demo")
    now = box.remembered.floors()
    assert all(now[role] >= floor for role, floor in floors.items())
    assert box.remembered.assignment("shops") == assignment
    return str(caught.value)


def recovers(box: Box) -> None:
    assert labels(box.refresh("demo")) == ["demo@2"]


def only_refusal(trusted: Trusted) -> str:
    assert trusted.agreement.genuine == ()
    (refusal,) = trusted.agreement.refusals
    return str(refusal.error)


# --- older than what was seen --------------------------------------------------------------------


def older_snapshot(repository: Repository) -> None:
    """Sign, with the stolen online keys, a newer timestamp for an older snapshot."""
    repository.snapshot().version = 1
    repository.sign("snapshot", repository.keys["snapshot"])
    timestamp = repository.roles["timestamp"].signed
    timestamp.snapshot_meta = MetaFile(1)
    timestamp.version += 1
    repository.sign("timestamp", repository.keys["timestamp"])


def older_edition_of(role: str) -> Callable[[Repository], None]:
    """Sign, with the stolen online keys, a newer snapshot that names an older edition of a role."""

    def attack(repository: Repository) -> None:
        repository.snapshot().meta[f"{role}.json"] = MetaFile(1)
        for online in ("snapshot", "timestamp"):
            signed = repository.roles[online].signed
            signed.version += 1
            if online == "timestamp":
                signed.snapshot_meta = MetaFile(repository.snapshot().version)
            repository.sign(online, repository.keys[online])

    return attack


ROLLBACKS: dict[str, Callable[[Repository], None]] = {
    "snapshot": older_snapshot,
    "targets": older_edition_of("targets"),
    "publisher-acme": older_edition_of("publisher-acme"),
    "director": older_edition_of("director"),
}


@pytest.mark.parametrize("disk", ["whole", "lost"])
@pytest.mark.parametrize("role", ROLLBACKS)
def test_rollback_of_each_role_below_the_timestamp(box: Box, role: str, disk: str) -> None:
    truth = box.repository.state()
    ROLLBACKS[role](box.repository)
    if disk == "lost":
        shutil.rmtree(box.directory / "tuf")
    refused(box)
    box.repository.restore(truth)
    recovers(box)


@pytest.mark.parametrize("disk", ["whole", "lost"])
def test_rollback_of_the_timestamp(box: Box, disk: str) -> None:
    old = box.repository.state()
    box.repository.assign("shops", 2, *assigned(box))
    box.refresh("demo")
    truth = box.repository.state()
    box.hub.files["metadata/timestamp.json"] = old[0]["metadata/timestamp.json"]
    if disk == "lost":
        shutil.rmtree(box.directory / "tuf")
    refused(box)
    box.repository.restore(truth)
    recovers(box)


@pytest.mark.parametrize("disk", ["whole", "lost"])
def test_rollback_of_the_root(box: Box, disk: str) -> None:
    box.repository.rotate("targets")
    box.repository.publish("targets")
    box.refresh("demo")
    truth = box.repository.state()
    if disk == "lost":  # the newer root is hidden, and all that its older keys signed is there
        shutil.rmtree(box.directory / "tuf")
        del box.hub.files["metadata/2.root.json"]
    else:
        box.hub.files["metadata/3.root.json"] = truth[0]["metadata/1.root.json"]
    refused(box)
    box.repository.restore(truth)
    recovers(box)


def assigned(box: Box) -> list[tuple[str, str, str]]:
    known = box.remembered.assignment("shops")
    assert known is not None
    return [(one.model, one.version, one.release_sha256) for one in known.models]


def test_power_cut_that_empties_the_timestamp_and_then_a_rollback(box: Box, tmp_path: Path) -> None:
    old = box.repository.state()
    box.repository.assign("shops", 2, *assigned(box))
    box.refresh("demo")
    truth = box.repository.state()
    for role in ("timestamp", "snapshot"):
        (box.current() / f"{role}.json").write_bytes(b"")
    bare = shutil.copytree(box.current(), tmp_path / "bare", symlinks=True)
    box.hub.files.clear()
    box.hub.files.update(old[0])
    # python-tuf alone takes it: this is what the floors are for
    Updater(str(bare), box.hub.url + "metadata", bootstrap=box.repository.bootstrap).refresh()
    assert "was seen before" in refused(box)
    box.repository.restore(truth)
    recovers(box)


def test_fast_forward_by_a_thief_is_recovered_from_when_the_root_takes_his_keys(box: Box) -> None:
    timestamp = box.repository.roles["timestamp"].signed
    genuine = timestamp.version
    timestamp.version = 2_000_000_000
    box.repository.sign("timestamp", box.repository.keys["timestamp"])
    box.refresh("demo")
    timestamp.version = genuine + 1
    box.repository.sign("timestamp", box.repository.keys["timestamp"])
    refused(box)
    box.repository.rotate("timestamp")
    box.repository.sign("timestamp", box.repository.keys["timestamp"])
    recovers(box)
    assert box.remembered.floors()["timestamp"] == genuine + 1


# --- old, mixed, endless, slow, wrong ------------------------------------------------------------


def test_freeze(box: Box) -> None:
    now = box.clock_ms
    timestamp = box.repository.roles["timestamp"].signed
    box.repository.root().expires = timestamp.expires.replace(year=timestamp.expires.year + 1)
    box.repository.publish("root")
    box.refresh("demo")
    box.clock_ms = int(timestamp.expires.timestamp() * 1000) + 1
    assert "frozen" in refused(box)
    box.clock_ms = now
    recovers(box)


def test_mix_and_match(box: Box) -> None:
    old = box.repository.state()
    box.repository.assign("shops", 2, *assigned(box))
    truth = box.repository.state()
    box.hub.files["metadata/4.director.json"] = old[0]["metadata/3.director.json"]
    assert "Expected director v4, got v3" in refused(box)
    box.repository.restore(truth)
    recovers(box)


@pytest.mark.parametrize("answer", [endless, drip, drip_head])
@pytest.mark.parametrize("at", ["2.root", "timestamp", "snapshot", "director"])
def test_endless_data_and_slow_retrieval_of_metadata(box: Box, at: str, answer: Answer) -> None:
    box.repository.assign("shops", 2, *assigned(box))
    version = {"snapshot": box.repository.snapshot().version, "director": 4}.get(at)
    path = f"metadata/{version}.{at}.json" if version else f"metadata/{at}.json"
    box.hub.answers[path] = answer
    before = box.remembered.assignment("shops")
    with pytest.raises(Untrusted if answer is endless else HubUnreachable, match=f"{at}.json"):
        box.refresh("demo", settings=HASTY)
    assert box.remembered.assignment("shops") == before
    del box.hub.answers[path]
    recovers(box)


@pytest.mark.parametrize("answer", [endless, drip])
def test_endless_data_and_slow_retrieval_of_a_document(box: Box, answer: Answer) -> None:
    release = a_release("demo", "3", 3)
    digest = box.repository.release("acme", release)
    box.repository.assign("shops", 2, ("demo", "3", digest))
    path = f"targets/models/demo/3/{digest}.release.json"
    box.hub.answers[path] = answer
    trusted = box.refresh("demo", settings=HASTY)
    assert "release.json" in only_refusal(trusted)
    del box.hub.answers[path]
    assert labels(box.refresh("demo")) == ["demo@3"]


@pytest.mark.parametrize(
    "lie",
    [
        lambda data: data.replace(b"llama", b"1lama"),
        lambda data: data + b" ",
        lambda data: data[:-1],
        lambda _: b"",
    ],
    ids=["wrong hash", "wrong length, longer", "wrong length, shorter", "empty"],
)
def test_wrong_hash_and_wrong_length(box: Box, lie: Callable[[bytes], bytes]) -> None:
    digest = box.repository.release("acme", a_release("demo", "3", 3))
    box.repository.assign("shops", 2, ("demo", "3", digest))
    path = f"targets/models/demo/3/{digest}.release.json"
    truth = box.hub.files[path]
    box.hub.files[path] = lie(truth)
    assert "not trusted" in only_refusal(box.refresh("demo"))
    box.hub.files[path] = truth
    assert labels(box.refresh("demo")) == ["demo@3"]


def test_a_document_signed_longer_than_any_document_is_not_fetched(box: Box) -> None:
    path = names.standing_path("demo")
    box.repository.put("publisher-acme", path, b" " * (DOCUMENT_BYTES_MAX + 1))
    trusted = box.refresh("demo")
    assert "at most" in only_refusal(trusted)
    assert not any("standing" in asked for asked in box.hub.asked)


# --- signed by whom ------------------------------------------------------------------------------


def test_arbitrary_target(box: Box) -> None:
    data = encode(a_release("demo", "9", 9))
    digest = sha256(data).hexdigest()
    box.hub.files[f"targets/models/demo/9/{digest}.release.json"] = data
    box.repository.assign("shops", 2, ("demo", "9", digest))
    assert "no publisher of this model has signed it" in only_refusal(box.refresh("demo"))


def test_key_below_threshold(tmp_path: Path) -> None:
    with boxed(tmp_path, threshold=2) as box:
        box.refresh("demo")
        truth = box.repository.state()
        timestamp = box.repository.roles["timestamp"].signed
        timestamp.version += 1
        key = box.repository.keys["timestamp"][0]
        box.repository.sign("timestamp", [key])
        assert "signed by 1/2 keys" in refused(box)
        signed = json.loads(box.hub.files["metadata/timestamp.json"])
        signed["signatures"].append(signed["signatures"][0])  # the same key, twice
        box.hub.files["metadata/timestamp.json"] = json.dumps(signed).encode()
        refused(box)
        other = Repository.new_keys(1)[0]
        box.repository.sign("timestamp", [key, other])
        assert "signed by 1/2 keys" in refused(box)
        box.repository.restore(truth)
        recovers(box)


def test_stolen_director_key_cannot_introduce_a_model(box: Box) -> None:
    data = encode(a_release("evil", "1"))
    path = names.release_path("evil", "1")
    box.repository.put("director", path, data)
    box.repository.assign("shops", 2, ("evil", "1", sha256(data).hexdigest()))
    assert "no publisher of this model has signed it" in only_refusal(box.refresh("demo"))


def test_stolen_director_key_cannot_name_other_bytes_than_the_publisher_signed(box: Box) -> None:
    box.repository.assign("shops", 2, ("demo", "2", "0" * 64))
    assert "its digest is" in only_refusal(box.refresh("demo"))


def test_a_director_to_whom_models_were_delegated_by_mistake_signs_none(box: Box) -> None:
    director = box.repository.roles["targets"].signed.delegations.roles["director"]
    assert isinstance(director, DelegatedRole)
    director.paths = ["fleet/*/*", "models/*/*/*"]
    box.repository.publish("targets")
    data = encode(a_release("evil", "1"))
    box.repository.put("director", names.release_path("evil", "1"), data)
    box.repository.assign("shops", 2, ("evil", "1", sha256(data).hexdigest()))
    assert "signed by director" in only_refusal(box.refresh("demo"))


def test_stolen_publisher_key_of_team_a_cannot_publish_team_bs_model(box: Box) -> None:
    release = a_release("demo", "3", 3)
    digest = box.repository.release("rival", release)  # signed, in the thief's own role
    box.repository.assign("shops", 2, ("demo", "3", digest))
    assert "no publisher of this model has signed it" in only_refusal(box.refresh("demo"))


def test_a_release_of_another_model_in_the_place_of_ours(box: Box) -> None:
    data = encode(a_release("other", "1"))
    box.repository.put("publisher-acme", names.release_path("demo", "3"), data)
    box.repository.assign("shops", 2, ("demo", "3", sha256(data).hexdigest()))
    assert "its model is other, not demo" in only_refusal(box.refresh("demo"))
    assert box.remembered.latest_release("demo", "3") is None


def test_a_lower_version_under_a_valid_signature(box: Box) -> None:
    digest = box.repository.release("acme", a_release("demo", "1", 1))
    box.repository.stand("acme", Standing(schema=SCHEMA, model="demo", floor_sequence=2))
    box.repository.assign("shops", 2, ("demo", "1", digest))
    assert "floor is 2" in only_refusal(box.refresh("demo"))


def test_a_revoked_version(box: Box) -> None:
    ((_, _, digest),) = assigned(box)
    revoked = Revoked(version="2", release_sha256=digest, reason="wrong template")
    box.repository.stand("acme", Standing(schema=SCHEMA, model="demo", revoked=(revoked,)))
    assert "has revoked it: wrong template" in only_refusal(box.refresh("demo"))


def test_a_standing_that_is_withheld_stops_what_it_may_revoke(box: Box) -> None:
    """Who can't forge a revocation may hide it, and have an older release assigned again."""
    ((_, _, digest),) = assigned(box)
    box.repository.stand("acme", Standing(schema=SCHEMA, model="demo", floor_sequence=1))
    (path,) = [path for path in box.hub.files if path.endswith(".standing.json")]
    withheld = box.hub.files.pop(path)
    assert "though it is signed" in only_refusal(box.refresh("demo"))
    assert box.remembered.latest_release("demo", "2") is None
    assert box.remembered.release(digest) is not None  # to run, and to roll back to
    box.hub.files[path] = withheld
    recovers(box)
    assert box.remembered.latest_release("demo", "2") is not None


def test_a_standing_that_cannot_be_read_stops_new_versions_of_its_model_alone(box: Box) -> None:
    other = box.repository.release("rival", a_release("other", "1"))
    box.repository.put("publisher-acme", names.standing_path("demo"), b"{")
    box.repository.assign("shops", 2, *assigned(box), ("other", "1", other))
    trusted = box.refresh("demo")
    assert labels(trusted) == ["other@1"]
    (refusal,) = trusted.agreement.refusals
    assert (refusal.model, refusal.version) == ("demo", "")
    assert isinstance(refusal.error, DocumentRefused)


def test_an_assignment_of_another_cohort(box: Box) -> None:
    known = box.remembered.data(names.assignment_path("shops"))
    assert known is not None
    other = known.replace(b'"shops"', b'"labs1"')
    box.repository.put("director", names.assignment_path("shops"), other)
    with pytest.raises(Untrusted, match="its cohort is labs1, not shops"):
        box.refresh("demo")


# --- path tricks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "..", "evil\\", "%2e%2e"])
def test_path_tricks_in_role_names_leave_no_generation(box: Box, name: str) -> None:
    """A publisher's file is named after his role, and who delegates may call him anything."""
    targets = box.repository.roles["targets"].signed
    role = targets.delegations.roles.pop("director")
    targets.delegations.roles[name] = DelegatedRole(
        name, role.keyids, 1, terminating=True, paths=role.paths
    )
    box.repository.publish("targets")
    before = {path for path in box.directory.rglob("*") if "gen-" not in str(path)}
    with pytest.raises(SyncError):
        box.refresh("demo")
    assert {path for path in box.directory.rglob("*") if "gen-" not in str(path)} == before


@pytest.mark.parametrize("name", ["../demo", "/etc/passwd", "a/b", "..", ".", "", "x\u0000", "a b"])
def test_path_tricks_in_target_names(box: Box, name: str) -> None:
    known = box.remembered.data(names.assignment_path("shops"))
    assert known is not None
    for field in ("model", "version"):
        plain = json.loads(known)
        plain["models"][0][field] = name
        box.repository.put("director", names.assignment_path("shops"), json.dumps(plain).encode())
        box.hub.asked.clear()
        with pytest.raises(DocumentRefused, match=f"models.{field}"):
            box.refresh()
        assert all(one.startswith(("metadata/", "targets/fleet/shops/")) for one in box.hub.asked)
