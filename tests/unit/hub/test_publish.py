"""What a publisher signs is what the files are, and nothing is written before the yes."""

from __future__ import annotations

import shutil
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from securesystemslib.signer import CryptoSigner

from appliance.contract import chunk_map
from appliance.contract.assignment import Assignment
from appliance.contract.document import SCHEMA, decode, encode
from appliance.contract.names import DIRECTOR_ROLE, assignment_path, release_path, standing_path
from appliance.contract.release import FileRole, Release, Strategy
from appliance.contract.standing import Standing
from appliance.errors import PublishRefused
from appliance.gguf import read_head, tokenizer_digest
from appliance.hub import assigning, publish
from appliance.hub.export import export
from appliance.hub.publish import Intent
from tests.unit.hub.published import DAY, Hub, Reader, keys_of, served
from tools.gguf_writer import SHAPES, Lora, Quantisation, byte_vocabulary, write_llama, write_lora

ROLE = "publisher-acme"


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    hub = Hub(tmp_path / "repository")
    hub.found()
    hub.add_publisher("acme", "demo")
    return hub


def model(path: Path, kind: Quantisation = Quantisation.Q8_0, template: str = "{{ 1 }}") -> Path:
    write_llama(path, SHAPES["tiny"], byte_vocabulary(), kind, name="tiny", chat_template=template)
    return path


def published(hub: Hub, version: str, *weights: Path, **changes: object) -> Release:
    intent = Intent(model="demo", version=version, weights=weights)
    intent = msgspec.structs.replace(intent, **changes)
    prepared = publish.prepare(hub.repository, intent, now_utc_ms=hub.now)
    publish.publish(hub.repository, prepared, hub.signers[ROLE], now_utc_ms=hub.now)
    hub.settle()
    return prepared.release


def test_a_release_says_what_the_files_are(hub: Hub, tmp_path: Path) -> None:
    weights = model(tmp_path / "tiny.gguf"), model(tmp_path / "half.gguf", Quantisation.F16)
    write_lora(tmp_path / "tone.gguf", weights[0], Lora(rank=4))
    release = published(hub, "1", *weights, adapters=(tmp_path / "tone.gguf",), notes="first")
    head = read_head(weights[0])
    assert release.quantisations == ("Q8_0", "F16")
    assert release.facts.architecture == "llama"
    assert release.facts.quantisation == "Q8_0"
    assert release.facts.context_train_tokens == 1024
    assert release.facts.licence == "apache-2.0"
    assert release.facts.tokenizer_sha256 == tokenizer_digest(weights[0], head)
    assert release.facts.kv_bytes_per_token == 2 * 2 * 32 * 2
    assert release.facts.memory_bytes == head.file_bytes + 1024 * 256
    assert release.needs.memory_bytes == release.facts.memory_bytes
    assert [file.role for file in release.files] == [
        FileRole.WEIGHTS, FileRole.WEIGHTS, FileRole.ADAPTER
    ]  # fmt: skip
    for file, path in zip(release.files, (*weights, tmp_path / "tone.gguf"), strict=True):
        place = hub.repository.blob_place(file.blob.sha256)
        assert place.read_bytes() == path.read_bytes()
        assert place.stat().st_mode & 0o777 == 0o444
        found = chunk_map.decode(hub.repository.blob_place(file.chunk_map.sha256).read_bytes())
        assert (found.sha256, found.length) == (file.blob.sha256, file.blob.length)
    with served(hub.directory) as address:
        reader = Reader(tmp_path / "reader", address, hub.repository.roots()[0])
        data = reader.read(release_path("demo", "1"))
    assert data is not None
    assert decode(data, Release) == release


def test_nothing_is_written_before_the_yes(hub: Hub, tmp_path: Path) -> None:
    def files() -> set[str]:
        return {str(path) for path in hub.directory.rglob("*")}

    before, path = files(), model(tmp_path / "tiny.gguf")
    intent = Intent(model="demo", version="1", weights=(path,))
    prepared = publish.prepare(hub.repository, intent, now_utc_ms=hub.now)
    assert files() == before
    assert prepared.new_bytes == path.stat().st_size
    with pytest.raises(PublishRefused, match="none of these keys may sign it; may: owner0"):
        publish.publish(hub.repository, prepared, hub.signers["root"], now_utc_ms=hub.now)
    assert files() == before
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(PublishRefused, match="changed while it was published"):
        publish.publish(hub.repository, prepared, hub.signers[ROLE], now_utc_ms=hub.now)
    assert hub.repository.pending() == ()


def test_the_next_version_says_how_much_is_new(hub: Hub, tmp_path: Path) -> None:
    published(hub, "1", model(tmp_path / "one.gguf"))
    intent = Intent(
        model="demo", version="2", weights=(model(tmp_path / "two.gguf", template="{{ 22 }}"),)
    )
    prepared = publish.prepare(hub.repository, intent, now_utc_ms=hub.now)
    assert prepared.known_version == "1"
    assert prepared.release.sequence == 2
    assert 0 < prepared.new_bytes < prepared.release.files[0].blob.length * 0.05


def split(source: Path, directory: Path) -> list[Path]:
    """Write a model as two parts, as llama.cpp's gguf-split does."""
    reader = GGUFReader(source)
    count, half = len(reader.tensors), len(reader.tensors) // 2
    paths = []
    for number, tensors in enumerate((reader.tensors[:half], reader.tensors[half:])):
        path = directory / f"model-{number + 1:05d}-of-00002.gguf"
        writer = GGUFWriter(path, "llama")
        writer.add_key_value("split.no", number, GGUFValueType.UINT16)
        writer.add_key_value("split.count", 2, GGUFValueType.UINT16)
        writer.add_key_value("split.tensors.count", count, GGUFValueType.INT32)
        if not number:
            writer.add_file_type(7)
        for tensor in tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        paths.append(path)
    return paths


def test_a_split_model_is_one_edition(hub: Hub, tmp_path: Path) -> None:
    parts = split(model(tmp_path / "tiny.gguf"), tmp_path)
    release = published(hub, "1", parts[0])
    assert [file.name for file in release.edition("Q8_0")] == [path.name for path in parts]
    assert release.facts.parameters_count > 0
    parts[1].unlink()
    with pytest.raises(PublishRefused, match=r"00002-of-00002.gguf: the file does not exist"):
        published(hub, "2", parts[0])


def forged(path: Path) -> Path:
    content = bytearray(path.read_bytes())
    struct.pack_into("<Q", content, 8, 2**60)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda _: {"weights": ()}, "no file is given"),
        (lambda d: {"weights": (d / "none.gguf",)}, "does not exist"),
        (lambda d: {"weights": (forged(model(d / "a.gguf")),)}, "tensors; the limit is"),
        (lambda d: {"weights": (model(d / "a.gguf"), model(d / "b.gguf"))}, "an edition in Q8_0"),
        (
            lambda d: {
                "weights": (model(d / "a.gguf"), model(d / "b.gguf", Quantisation.F16, "other"))
            },
            "its template_sha256 is another than that of a.gguf",
        ),
        (
            lambda d: {"weights": (model(d / "a.gguf"),), "adapters": (model(d / "b.gguf"),)},
            "is no LoRA adapter",
        ),
        (lambda d: {"model": "else", "weights": (model(d / "a.gguf"),)}, "no publisher may sign"),
        (lambda d: {"weights": (d / "m-00001-of-00099.gguf",)}, "at most 64 parts"),
    ],
)
def test_what_can_not_be_published_is_named(
    hub: Hub, tmp_path: Path, make: Callable[[Path], dict[str, object]], reason: str
) -> None:
    with pytest.raises(PublishRefused, match=reason):
        published(hub, "1", **make(tmp_path))


def test_an_adapter_alone_is_no_model(hub: Hub, tmp_path: Path) -> None:
    write_lora(tmp_path / "tone.gguf", model(tmp_path / "tiny.gguf"), Lora(rank=4))
    with pytest.raises(PublishRefused, match="is it an adapter"):
        published(hub, "1", tmp_path / "tone.gguf")


def test_a_version_is_never_changed(hub: Hub, tmp_path: Path) -> None:
    published(hub, "1", model(tmp_path / "one.gguf"))
    with pytest.raises(PublishRefused, match="a version is never changed"):
        published(hub, "1", model(tmp_path / "two.gguf", Quantisation.F16))


def test_a_withdrawn_version_is_not_assigned_and_lifts_the_floor(hub: Hub, tmp_path: Path) -> None:
    for number, kind in enumerate((Quantisation.Q8_0, Quantisation.F16), start=1):
        published(hub, str(number), model(tmp_path / f"{number}.gguf", kind))
    signers = hub.signers[ROLE]
    done = publish.revoke(
        hub.repository, "demo", "1", signers, now_utc_ms=hub.now, reason="bad", is_floor_raised=True
    )
    assert done.path == standing_path("demo")
    with pytest.raises(PublishRefused, match="is withdrawn: bad"):
        assign(hub, "1")
    assign(hub, "2")
    for version, reason in (("1", "withdrawn already"), ("9", "no such version")):
        with pytest.raises(PublishRefused, match=reason):
            publish.revoke(hub.repository, "demo", version, signers, now_utc_ms=hub.now)
    hub.settle()
    data = hub.repository.document(ROLE, standing_path("demo"))
    assert data is not None
    standing = decode(data, Standing)
    assert (standing.floor_sequence, standing.revoked[0].version) == (2, "1")
    assert publish.next_sequence(hub.repository, "demo") == 3


def assign(hub: Hub, version: str, strategy: Strategy | None = None) -> Assignment:
    done, _ = assigning.assign(
        hub.repository, "shops", "demo", version, hub.online, now_utc_ms=hub.now, strategy=strategy
    )
    return done


def test_an_assignment_names_what_readers_can_see(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(PublishRefused, match="readers can't see such a version yet"):
        assign(hub, "1")
    release = published(hub, "1", model(tmp_path / "one.gguf"))
    first = assign(hub, "1", strategy=Strategy(shadow_share=0))
    assert first.models[0].release_sha256 == hub.repository.documents(ROLE)[
        release_path("demo", release.version)
    ][0]  # fmt: skip
    halted, _ = assigning.halt(hub.repository, "shops", hub.online, now_utc_ms=hub.now)
    assert (halted.sequence, halted.halt, halted.models) == (2, True, first.models)
    assert assigning.cohorts(hub.repository) == ("shops",)
    gone, _ = assigning.unassign(hub.repository, "shops", "demo", hub.online, now_utc_ms=hub.now)
    assert (gone.sequence, gone.models) == (3, ())
    with pytest.raises(PublishRefused, match="is not assigned"):
        assigning.unassign(hub.repository, "shops", "demo", hub.online, now_utc_ms=hub.now)
    with pytest.raises(PublishRefused, match="nothing is assigned"):
        assigning.halt(hub.repository, "none", hub.online, now_utc_ms=hub.now)
    with pytest.raises(PublishRefused, match="director: its key is not here"):
        assigning.assign(hub.repository, "shops", "demo", "1", [], now_utc_ms=hub.now)


def test_a_publishers_machine_signs_and_the_hub_puts_out(hub: Hub, tmp_path: Path) -> None:
    """A copy of the repository is signed elsewhere; only files are carried back."""
    desk = Hub(tmp_path / "desk", signers=hub.signers)
    shutil.copytree(hub.directory, desk.directory)
    intent = Intent(model="demo", version="1", weights=(model(tmp_path / "one.gguf"),))
    prepared = publish.prepare(desk.repository, intent, now_utc_ms=hub.now)
    publish.publish(desk.repository, prepared, hub.signers[ROLE], now_utc_ms=hub.now)
    for folder in ("pending", "targets", "blobs"):
        shutil.copytree(desk.directory / folder, hub.directory / folder, dirs_exist_ok=True)
    assert hub.settle()[ROLE] == 2
    assert hub.repository.document(ROLE, release_path("demo", "1")) is not None


@pytest.mark.parametrize("name", ["stick", "stick.tar"])
def test_a_bundle_is_a_repository_for_one_cohort(hub: Hub, tmp_path: Path, name: str) -> None:
    first = published(hub, "1", model(tmp_path / "one.gguf"))
    assign(hub, "1")
    hub.settle()
    second = published(hub, "2", model(tmp_path / "two.gguf", template="{{ 2 }}"))
    assign(hub, "2")
    hub.settle()
    done = export(hub.repository, "shops", tmp_path / name)
    assert (done.sequence, done.left_out_bytes) == (2, 0)
    directory = tmp_path / name
    if name.endswith(".tar"):
        directory = tmp_path / "unpacked"
        with tarfile.open(tmp_path / name) as tar:
            tar.extractall(directory, filter="data")
    with served(directory) as address:
        reader = Reader(tmp_path / "reader", address, hub.repository.roots()[0])
        assert reader.read(assignment_path("shops")) is not None
        data = reader.read(release_path("demo", "2"))
    assert data is not None
    blobs = {path.name for path in (directory / "blobs").rglob("*") if path.is_file()}
    wanted = {one.sha256 for file in second.files for one in (file.blob, file.chunk_map)}
    assert blobs == wanted
    assert first.files[0].blob.sha256 not in blobs
    with pytest.raises(PublishRefused, match="is there already"):
        export(hub.repository, "shops", tmp_path / name)


def test_a_bundle_leaves_out_what_the_site_has(hub: Hub, tmp_path: Path) -> None:
    release = published(hub, "1", model(tmp_path / "one.gguf"))
    assign(hub, "1")
    hub.settle()
    done = export(hub.repository, "shops", tmp_path / "stick", since=1)
    whole = sum(one.length for file in release.files for one in (file.blob, file.chunk_map))
    assert done.left_out_bytes == whole
    assert not (tmp_path / "stick" / "blobs").exists()
    for cohort, since, reason in (("shops", 7, "no assignment with the sequence 7"),
                                  ("none", 0, "nothing is assigned")):  # fmt: skip
        with pytest.raises(PublishRefused, match=reason):
            export(hub.repository, cohort, tmp_path / "other", since=since)
    with pytest.raises(PublishRefused, match="No such file"):
        export(hub.repository, "shops", tmp_path / "no" / "stick")
    assert hub.repository.documents(DIRECTOR_ROLE)


def plant(hub: Hub, role: str, path: str, document: bytes) -> None:
    """Write a document into the pending version of a role, as whoever holds the hub could."""
    hub.repository.put(role, {path: document}, now_utc_ms=hub.now)


def test_a_publisher_vouches_for_nothing_that_was_planted(hub: Hub, tmp_path: Path) -> None:
    published(hub, "1", model(tmp_path / "one.gguf"))
    path, planted = hub.release("demo", "666", 666)
    plant(hub, ROLE, path, planted)
    with pytest.raises(PublishRefused, match="would also vouch for models/demo/666/release"):
        published(hub, "2", model(tmp_path / "two.gguf", template="{{ 2 }}"))
    assert {one.missing_count for one in hub.repository.pending()} == {1}
    hub.repository.cancel(ROLE)
    published(hub, "2", model(tmp_path / "two.gguf"))
    assert path not in hub.repository.documents(ROLE)


def test_what_is_not_signed_by_the_own_key_is_all_shown(hub: Hub, tmp_path: Path) -> None:
    """The hub's copy of the last version may be forged too: then nothing in it is known."""
    published(hub, "1", model(tmp_path / "one.gguf"))
    path, planted = hub.release("demo", "666", 666)
    own = hub.signers[ROLE]
    hub.signers[ROLE] = [CryptoSigner.generate_ed25519()]
    hub.repository.set_keys(ROLE, keys_of(*hub.signers[ROLE]), now_utc_ms=hub.now)
    plant(hub, ROLE, path, planted)
    for one in ("targets", ROLE):
        hub.sign(one)
    hub.settle()
    hub.repository.redraft(ROLE, now_utc_ms=hub.now)
    subjects = {one.subject for one in hub.repository.changes(ROLE, own)}
    assert {path, release_path("demo", "1")} <= subjects
    assert hub.repository.changes(ROLE, hub.signers[ROLE]) == ()


def test_two_versions_wait_for_the_second_owner(tmp_path: Path) -> None:
    hub = Hub(tmp_path / "repository")
    hub.found()
    hub.signers[ROLE] = [CryptoSigner.generate_ed25519() for _ in range(2)]
    keys = keys_of(*hub.signers[ROLE], threshold=2)
    hub.repository.set_publisher("acme", ["demo"], keys, now_utc_ms=hub.now)
    for one in ("targets", ROLE):
        hub.sign(one)
    hub.settle()
    both, hub.signers[ROLE] = hub.signers[ROLE], hub.signers[ROLE][:1]
    published(hub, "1", model(tmp_path / "one.gguf"))
    published(hub, "2", model(tmp_path / "two.gguf", template="{{ 2 }}"))
    shown = [one.subject for one in hub.repository.changes(ROLE, both[1:])]
    assert shown == [release_path("demo", "1"), release_path("demo", "2")]
    assert hub.repository.sign(ROLE, both[1:]).missing_count == 0
    assert hub.settle()[ROLE] == 2


def test_the_director_signs_nothing_that_a_publisher_carried(hub: Hub, tmp_path: Path) -> None:
    published(hub, "1", model(tmp_path / "one.gguf"))
    planted = Assignment(schema=SCHEMA, cohort="banks", sequence=9, issued_utc_ms=hub.now)
    plant(hub, DIRECTOR_ROLE, assignment_path("banks"), encode(planted))
    hub.repository.refresh(hub.online, now_utc_ms=hub.now)
    assert hub.repository.documents(DIRECTOR_ROLE) == {}
    assign(hub, "1")
    hub.settle()
    assert set(hub.repository.documents(DIRECTOR_ROLE)) == {assignment_path("shops")}
    plant(hub, DIRECTOR_ROLE, assignment_path("banks"), encode(planted))
    hub.repository.refresh(hub.online, now_utc_ms=hub.now + 16 * DAY)
    assert set(hub.repository.documents(DIRECTOR_ROLE)) == {assignment_path("shops")}
