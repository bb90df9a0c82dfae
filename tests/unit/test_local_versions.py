"""How a file of the operator's own becomes a signed version."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance import local_versions
from appliance.access.identity import Identity
from appliance.config import Adapter, Limits, Model
from appliance.config import Store as StoreSettings
from appliance.domain import ModelVersion, Origin
from appliance.errors import AdapterUnloadable, ModelUnloadable
from appliance.gguf import read_head
from appliance.local_versions import LocalVersions, Reading, embedded_models, hash_file
from appliance.runtime.adapters import file_key
from appliance.store import Store
from tools.gguf_writer import write_lora

DEMO = embedded_models() / "demo" / "demo-2.q8_0.gguf"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "state.db", local_versions.MIGRATIONS, StoreSettings())
    assert opened.wait_open() == ""
    yield opened
    assert opened.close(10)


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    return Identity.open(tmp_path)


def register(
    store: Store, identity: Identity, path: Path, name: str = ""
) -> tuple[ModelVersion, Reading]:
    reading = Reading()
    versions = LocalVersions(store, identity, Limits(), store_wait_s=10)
    _, version = asyncio.run(versions.register(Model(path=str(path), name=name), reading))
    return version, reading


def test_a_file_is_signed_by_the_devices_key_over_its_own_digest(
    store: Store, identity: Identity, tmp_path: Path
) -> None:
    path = tmp_path / "some model.gguf"
    path.write_bytes(DEMO.read_bytes())
    version, _ = register(store, identity, path, "mine")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert version.digest == f"sha256:{digest}"
    assert version.label == f"mine@local-{digest[:12]}"
    assert (version.origin, version.blob_bytes) == (Origin.LOCAL, path.stat().st_size)
    assert identity.verify(version)


def test_the_embedded_model_says_its_own_version(store: Store, identity: Identity) -> None:
    version, _ = register(store, identity, DEMO)
    assert version.version == "2"


def test_a_known_file_is_not_read_again_until_it_changes(
    store: Store, identity: Identity, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(DEMO.read_bytes())
    first, read = register(store, identity, path)
    again, read_again = register(store, identity, path)
    assert (read.done_bytes, read_again.done_bytes) == (path.stat().st_size, 0)
    assert again == first
    times = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as an attacker would
    changed, read_changed = register(store, identity, path)
    assert read_changed.done_bytes == path.stat().st_size
    assert changed.digest != first.digest


def test_without_a_database_a_version_is_signed_all_the_same(
    identity: Identity, tmp_path: Path
) -> None:
    store = Store(tmp_path / "none" / "state.db", local_versions.MIGRATIONS, StoreSettings())
    version, _ = register(store, identity, DEMO)
    assert identity.verify(version)
    store.close(10)


def test_an_adapter_is_signed_for_its_model_and_kept(
    store: Store, identity: Identity, tmp_path: Path
) -> None:
    path = tmp_path / "ada.gguf"
    write_lora(path, DEMO)
    model, _ = register(store, identity, DEMO)
    versions = LocalVersions(store, identity, Limits(), store_wait_s=10)
    settings = Adapter(name="ada", path=str(path), scale=0.5)
    file = asyncio.run(versions.register_adapter(model, DEMO, settings))
    signed = file.version
    assert signed.digest == "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    assert (signed.model, signed.name, signed.scale) == (model.label, "ada", 0.5)
    assert (file.path, file.rank, signed.blob_bytes) == (str(path), 4, path.stat().st_size)
    assert file.file_key == file_key(path.stat())
    assert identity.verify(signed)
    rows = store.read("SELECT model, name, digest, scale, signature FROM local_adapters")
    assert rows == [(model.label, "ada", signed.digest, 0.5, signed.signature)]


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(adapter_rank=3), "its rank is 4; limits.adapter_rank allows 3"),
        (Limits(adapter_bytes=1024), "limits.adapter_bytes allows 1024"),
    ],
)
def test_an_adapter_over_a_bound_is_refused(
    store: Store, identity: Identity, tmp_path: Path, limits: Limits, reason: str
) -> None:
    path = tmp_path / "ada.gguf"
    write_lora(path, DEMO)
    model, _ = register(store, identity, DEMO)
    versions = LocalVersions(store, identity, limits, store_wait_s=10)
    with pytest.raises(AdapterUnloadable, match=reason):
        asyncio.run(versions.register_adapter(model, DEMO, Adapter(name="ada", path=str(path))))


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes(3 * local_versions.CHUNK_BYTES))

    class Meddler(Reading):
        """Write to the file when its first chunk has been read."""

        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if name == "done_bytes" and value == local_versions.CHUNK_BYTES:
                with path.open("r+b") as file:
                    file.write(b"x")

    with pytest.raises(ModelUnloadable, match="changed while it was read"):
        hash_file(path, Meddler())


def test_a_reader_that_is_told_to_stop_stops(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes(3 * local_versions.CHUNK_BYTES))
    reading = Reading()
    reading.stop = True
    hash_file(path, reading)
    assert reading.ratio == 0


def test_a_name_is_made_of_what_clients_can_write() -> None:
    head = read_head(DEMO)
    names = {"": "Demo", "Llama 3.1 8B (chat) @x": "Llama-3.1-8B-chat-x", "你好": "model"}
    for own, expected in names.items():
        head.metadata["general.name"] = own or "Demo"
        assert local_versions.model_name(head, Path("file.gguf")) == expected
    del head.metadata["general.name"]
    assert local_versions.model_name(head, Path("/x/my model.gguf")) == "my-model"
