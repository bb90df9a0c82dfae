"""A repository is edited, signed by thresholds and put out, and a reader believes exactly that."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner, Signer
from tuf.api.metadata import Metadata, MetaFile, Snapshot, TargetFile, Targets, Timestamp

from appliance.contract.assignment import Assigned, Assignment
from appliance.contract.document import SCHEMA, encode
from appliance.contract.names import DIRECTOR_ROLE, assignment_path, release_path, standing_path
from appliance.contract.standing import Standing
from appliance.errors import DocumentRefused, PublishRefused
from appliance.hub.signing import Repository, Validity
from tests.unit.hub.published import DAY, ONLINE, Hub, Reader, keys_of, served


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    hub = Hub(tmp_path / "repository")
    hub.found()
    return hub


@pytest.fixture
def reader(hub: Hub, tmp_path: Path) -> Iterator[Reader]:
    with served(hub.directory) as address:
        yield Reader(tmp_path / "reader", address, hub.repository.roots()[0])


def assignment(hub: Hub, *models: Assigned, sequence: int = 1) -> bytes:
    document = Assignment(
        schema=SCHEMA, cohort="shops", sequence=sequence, issued_utc_ms=hub.now, models=models
    )
    return encode(document)


def test_a_reader_gets_what_was_published_and_assigned(hub: Hub, reader: Reader) -> None:
    role = hub.add_publisher("acme", "demo")
    path, release = hub.release("demo", "1")
    hub.repository.put(role, {path: release}, now_utc_ms=hub.now)
    hub.sign(role)
    where = assignment_path("shops")
    given = assignment(hub)
    hub.repository.put(DIRECTOR_ROLE, {where: given}, now_utc_ms=hub.now)
    hub.sign(DIRECTOR_ROLE)
    assert hub.settle() == {"director": 2, role: 2, "snapshot": 3, "timestamp": 3}
    assert reader.read(path) == release
    assert reader.read(where) == given
    assert reader.read(release_path("demo", "2")) is None
    assert hub.repository.document(role, path) == release
    assert hub.repository.pending() == ()


def test_nothing_is_put_out_before_its_threshold_is_met(tmp_path: Path) -> None:
    root = [CryptoSigner.generate_ed25519() for _ in range(3)]
    hub = Hub(tmp_path / "repository", signers={"root": list(root)})
    hub.repository.found(
        {role: keys_of(*hub.signers[role], threshold=2 if role == "root" else 1)
         for role in ("root", "targets", *ONLINE)},
        now_utc_ms=hub.now,
    )  # fmt: skip
    hub.sign("targets")
    hub.sign(DIRECTOR_ROLE)
    state = hub.repository.sign("root", root[:1])
    assert (state.missing_count, len(state.signed), len(state.unsigned)) == (1, 1, 2)
    assert state.unsigned[0].startswith("owner1:")
    assert hub.settle() == {}
    assert hub.repository.roots() == ()
    assert hub.repository.sign("root", root[2:]).missing_count == 0
    assert hub.settle() == {
        "director": 1, "root": 1, "targets": 1, "snapshot": 1, "timestamp": 1
    }  # fmt: skip


def test_a_key_that_may_not_sign_is_refused_with_those_who_may(hub: Hub) -> None:
    role = hub.add_publisher("acme", "demo")
    hub.repository.redraft(role, now_utc_ms=hub.now)
    with pytest.raises(PublishRefused, match="those who may: owner0:"):
        hub.repository.sign(role, [CryptoSigner.generate_ed25519()])
    with pytest.raises(PublishRefused, match="no version of it is being signed"):
        hub.sign("targets")


def test_one_teams_key_cannot_sign_another_teams_model(hub: Hub, reader: Reader) -> None:
    team_a, team_b = hub.add_publisher("a", "apple"), hub.add_publisher("b", "berry")
    good = hub.publish(team_b, "berry", "1")
    path, data = hub.release("berry", "2")
    with pytest.raises(PublishRefused, match="is not among its paths"):
        hub.repository.put(team_a, {path: data}, now_utc_ms=hub.now)
    forge(hub, team_a, path, data)
    assert reader.read(good) is not None
    assert reader.read(path) is None


def test_the_director_cannot_add_a_release(hub: Hub, reader: Reader) -> None:
    hub.add_publisher("acme", "demo")
    path, data = hub.release("demo", "666")
    with pytest.raises(PublishRefused, match="is not among its paths"):
        hub.repository.put(DIRECTOR_ROLE, {path: data}, now_utc_ms=hub.now)
    forge(hub, DIRECTOR_ROLE, path, data)
    assert reader.read(path) is None


def forge(hub: Hub, role: str, path: str, data: bytes) -> None:
    """Put a document where it may not be, with every key that the role and the hub have."""
    from tuf.api.metadata import Metadata  # noqa: PLC0415 - the attacker's

    metadata = hub.directory / "metadata"
    versions = hub.repository.versions()
    target: Metadata[Targets] = Metadata.from_file(str(metadata / f"{versions[role]}.{role}.json"))
    target.signed.version += 1
    target.signed.targets[path] = TargetFile.from_data(path, data, ["sha256"])
    snapshot: Metadata[Snapshot] = Metadata.from_file(
        str(metadata / f"{versions['snapshot']}.snapshot.json")
    )
    snapshot.signed.version += 1
    snapshot.signed.meta[f"{role}.json"] = MetaFile(target.signed.version)
    timestamp: Metadata[Timestamp] = Metadata.from_file(str(metadata / "timestamp.json"))
    timestamp.signed.version += 1
    timestamp.signed.snapshot_meta = MetaFile(snapshot.signed.version)
    forged: dict[str, Metadata[Any]] = {role: target, "snapshot": snapshot, "timestamp": timestamp}
    for name, signed in forged.items():
        signed.sign(hub.signers[name][0])
        number = "" if name == "timestamp" else f"{signed.signed.version}."
        signed.to_file(str(metadata / f"{number}{name}.json"))
    place = hub.directory / "targets" / path
    place.parent.mkdir(parents=True, exist_ok=True)
    digest = target.signed.targets[path].hashes["sha256"]
    place.with_name(f"{digest}.{place.name}").write_bytes(data)


def test_a_model_has_one_publisher(hub: Hub) -> None:
    hub.add_publisher("a", "apple")
    with pytest.raises(PublishRefused, match="is for publisher-a to sign"):
        hub.add_publisher("b", "banana", "apple")


def test_a_dropped_publisher_is_not_believed_any_more(hub: Hub, reader: Reader) -> None:
    role = hub.add_publisher("acme", "demo")
    path = hub.publish(role, "demo", "1")
    assert reader.read(path) is not None
    hub.repository.drop_publisher("acme", now_utc_ms=hub.now)
    hub.sign("targets")
    hub.settle()
    assert reader.read(path) is None
    again = hub.add_publisher("acme", "demo")
    assert hub.repository.versions()[again] > 2
    assert reader.read(path) is not None


def test_a_document_is_what_its_path_says(hub: Hub) -> None:
    role = hub.add_publisher("acme", "demo")
    _, data = hub.release("demo", "1")
    where = release_path("demo", "2")
    standing = encode(Standing(schema=SCHEMA, model="other"))
    with pytest.raises(DocumentRefused, match=r"belongs at models/demo/1/release\.json"):
        hub.repository.put(role, {where: data}, now_utc_ms=hub.now)
    with pytest.raises(DocumentRefused, match=r"belongs at models/other/standing\.json"):
        hub.repository.put(role, {standing_path("demo"): standing}, now_utc_ms=hub.now)
    with pytest.raises(DocumentRefused, match="no document"):
        hub.repository.put(role, {"models/demo/else.json": b"{}"}, now_utc_ms=hub.now)


def test_a_release_waits_for_its_blobs(hub: Hub, reader: Reader) -> None:
    role = hub.add_publisher("acme", "demo")
    path, data = hub.release("demo", "1")
    (blob,) = (one for one in (hub.directory / "blobs").rglob("*") if one.is_file())
    content = blob.read_bytes()
    hub.repository.put(role, {path: data}, now_utc_ms=hub.now)
    hub.sign(role)
    for wrong, reason in ((content + b"!", "another length"), (content[::-1], "is corrupt")):
        blob.write_bytes(wrong)
        with pytest.raises(PublishRefused, match=reason):
            hub.settle()
    shutil.rmtree(hub.directory / "blobs")
    with pytest.raises(PublishRefused, match="is not in the repository"):
        hub.settle()
    assert reader.read(path) is None
    hub.release("demo", "1")
    hub.settle()
    assert reader.read(path) == data


@pytest.mark.parametrize("role", ["snapshot", "timestamp", "targets", "root"])
@pytest.mark.parametrize("is_lost", [False, True])
def test_any_top_level_role_gets_new_keys(
    hub: Hub, reader: Reader, role: str, *, is_lost: bool
) -> None:
    reader.updater()
    old = hub.signers[role]
    new: list[Signer] = [CryptoSigner.generate_ed25519()]
    if role == "root":
        is_lost = False  # without its old key nobody believes a new root
    hub.repository.set_keys(role, keys_of(*new), now_utc_ms=hub.now)
    hub.signers[role] = new if is_lost else [*old, *new]
    hub.sign("root")
    if role == "targets":
        hub.sign("targets")
    assert hub.settle()["root"] == 2
    hub.signers[role] = new
    publisher = hub.add_publisher("acme", "demo")
    path = hub.publish(publisher, "demo", "1")
    assert reader.read(path) is not None
    assert hub.repository.due(hub.now) == ()


def test_a_publisher_and_the_director_get_new_keys(hub: Hub, reader: Reader) -> None:
    role = hub.add_publisher("acme", "demo")
    path = hub.publish(role, "demo", "1")
    for one in (role, DIRECTOR_ROLE):
        hub.signers[one] = list[Signer]([CryptoSigner.generate_ed25519()])
        hub.repository.set_keys(one, keys_of(*hub.signers[one]), now_utc_ms=hub.now)
        hub.sign("targets")
        assert hub.settle() == {}  # it would leave the role without the signature of its new key
        hub.sign(one)
        assert one in hub.settle()
        assert reader.read(path) is not None
    hub.publish(role, "demo", "2", 2)


def test_what_is_incomplete_holds_up_nothing_else(hub: Hub, reader: Reader) -> None:
    team_a, team_b = hub.add_publisher("a", "apple"), hub.add_publisher("b", "berry")
    hub.repository.redraft(team_a, now_utc_ms=hub.now)
    path = hub.publish(team_b, "berry", "1")
    assert reader.read(path) is not None
    assert [one.role for one in hub.repository.pending()] == [team_a]


def test_online_roles_are_signed_again_at_half_of_their_validity(tmp_path: Path) -> None:
    hub = Hub(tmp_path / "repository", validity=Validity(timestamp=4, snapshot=20, director=40))
    hub.found()
    assert hub.repository.due(hub.now) == ()
    assert hub.repository.refresh(hub.online, now_utc_ms=hub.now).versions == {}
    steps = ((2, {"timestamp"}), (10, {"timestamp", "snapshot"}),
             (20, {"timestamp", "snapshot", "director"}))  # fmt: skip
    for days, roles in steps:
        later = hub.now + days * DAY
        assert roles >= {due.role for due in hub.repository.due(later)} >= {"timestamp"}
        done = hub.repository.refresh(hub.online, now_utc_ms=later)
        assert set(done.versions) == roles
        assert hub.repository.due(later) == ()
    offline = {due.role for due in hub.repository.due(hub.now + 310 * DAY) if not due.is_online}
    assert offline == {"root", "targets"}


def test_a_crash_before_the_timestamp_leaves_readers_what_they_had(
    hub: Hub, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    role = hub.add_publisher("acme", "demo")
    first = hub.publish(role, "demo", "1")
    path, data = hub.release("demo", "2", 2)
    hub.repository.put(role, {path: data}, now_utc_ms=hub.now)
    hub.sign(role)
    whole = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if target.name == "timestamp.json":
            raise OSError(5, "the power failed")
        return whole(self, target)

    with monkeypatch.context() as broken:
        broken.setattr(Path, "rename", rename)
        with pytest.raises(PublishRefused, match="the power failed"):
            hub.settle()
    assert reader.read(first) is not None
    assert reader.read(path) is None
    hub.settle()
    assert reader.read(path) == data


def test_one_edits_at_a_time(hub: Hub) -> None:
    with (
        hub.repository._disk.locked(),  # noqa: SLF001 - stands for another process
        pytest.raises(PublishRefused, match="another process is changing it"),
    ):
        Repository(hub.directory, lock_wait_s=0.1).redraft(DIRECTOR_ROLE, now_utc_ms=hub.now)


def test_what_is_no_repository_says_so(tmp_path: Path) -> None:
    empty = Repository(tmp_path / "none")
    assert empty.pending() == ()
    assert empty.due(0) == ()
    with pytest.raises(PublishRefused, match="there is no repository yet"):
        empty.redraft("targets", now_utc_ms=0)


def test_a_damaged_pending_version_is_named(hub: Hub) -> None:
    (hub.directory / "pending" / "targets.json").write_bytes(b"{")
    with pytest.raises(PublishRefused, match="targets: is not metadata"):
        hub.settle()
    (hub.directory / "pending" / "targets.json").write_bytes(b" " * 5_000_001)
    with pytest.raises(PublishRefused, match="larger than 5000000"):
        hub.settle()
    hub.repository.cancel("targets")
    assert hub.settle() == {}


def test_a_reader_in_the_middle_of_a_rotation_believes_what_it_finds(
    hub: Hub, tmp_path: Path
) -> None:
    """Every prefix of the writes of a rotation is read by a client that knows the old root."""
    before = tmp_path / "before"
    shutil.copytree(hub.directory, before)
    new = [CryptoSigner.generate_ed25519()]
    hub.repository.set_keys("timestamp", keys_of(*new), now_utc_ms=hub.now)
    hub.signers["timestamp"] += new
    hub.sign("root")
    hub.settle()
    written = sorted(
        (path for path in (hub.directory / "metadata").iterdir()
         if not (before / "metadata" / path.name).exists() or path.name == "timestamp.json"),
        key=lambda path: path.stat().st_mtime_ns,
    )  # fmt: skip
    assert [path.name for path in written] == ["2.snapshot.json", "timestamp.json", "2.root.json"]
    with served(before) as address:
        for path in written:
            shutil.copy(path, before / "metadata" / path.name)
            Reader(tmp_path / f"at-{path.name}", address, hub.repository.roots()[0]).updater()


def test_a_version_that_somebody_overtook_is_made_again(hub: Hub) -> None:
    """Two desks start from the same version; the second one's work is not put out, nor lost."""
    role = hub.add_publisher("acme", "demo")
    path, data = hub.release("demo", "2")
    hub.repository.put(role, {path: data}, now_utc_ms=hub.now)
    hub.sign(role)
    late = (hub.directory / "pending" / f"{role}.json").read_bytes()
    hub.repository.cancel(role)
    first = hub.publish(role, "demo", "1")
    (hub.directory / "pending" / f"{role}.json").write_bytes(late)
    assert hub.settle() == {}
    assert (hub.repository.stale(), hub.repository.pending()) == ((role,), ())
    with pytest.raises(PublishRefused, match="no version of it is being signed"):
        hub.sign(role)
    hub.repository.put(role, {path: data}, now_utc_ms=hub.now)
    hub.sign(role)
    hub.settle()
    assert set(hub.repository.documents(role)) == {first, path}
    assert hub.repository.stale() == ()


@pytest.mark.parametrize("is_rotation", [False, True])
def test_every_write_may_be_the_last_one_before_the_power_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_rotation: bool
) -> None:
    """Readers see the old or the new version after each write, and settling again ends it."""
    hub = Hub(tmp_path / "repository")
    hub.found()
    role = hub.add_publisher("acme", "demo")
    old = hub.publish(role, "demo", "1")
    path, data = hub.release("demo", "2", 2)
    hub.repository.put(role, {path: data}, now_utc_ms=hub.now)
    hub.sign(role)
    if is_rotation:
        for one in ("snapshot", "timestamp"):
            new = CryptoSigner.generate_ed25519()
            hub.repository.set_keys(one, keys_of(new), now_utc_ms=hub.now)
            hub.signers[one].append(new)
        hub.sign("root")
    whole, left = Path.rename, 0

    def rename(self: Path, target: Path) -> Path:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(5, "the power failed")
        return whole(self, target)

    writes = 0
    with served(hub.directory) as address:
        while True:
            with monkeypatch.context() as failing:
                failing.setattr(Path, "rename", rename)
                left = writes
                with contextlib.suppress(PublishRefused):
                    hub.settle()
            reader = Reader(tmp_path / f"reader-{writes}", address, hub.repository.roots()[0])
            assert reader.read(old) is not None
            seen = reader.read(path)
            assert seen in {None, data}
            if left >= 0:
                break
            writes += 1
    assert seen == data
    assert writes >= (4 if is_rotation else 3)
    assert hub.repository.pending() == ()
    assert hub.repository.due(hub.now) == ()
