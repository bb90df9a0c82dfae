"""The device's key and what it signs."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import msgspec
import pytest

from appliance.access.identity import Identity
from appliance.domain import Digest, ModelVersion, Origin
from appliance.errors import ConfigError

WAIT_S = 20.0


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    return Identity.open(tmp_path)


@pytest.fixture
def signed(identity: Identity) -> ModelVersion:
    return identity.sign_local("demo", "local-1", Digest("sha256:" + "0" * 64), 7)


def test_the_key_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    first, second = Identity.open(tmp_path), Identity.open(tmp_path)
    assert first.key_id == second.key_id
    assert stat.S_IMODE((tmp_path / "local.key").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["local.key"]


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    Identity.open(tmp_path)
    (tmp_path / "local.key").chmod(0o640)
    with pytest.raises(ConfigError, match="others may read it"):
        Identity.open(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 9000])
def test_a_file_that_is_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "local.key"
    path.touch(0o600)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="not a private key"):
        Identity.open(tmp_path)


def test_a_state_directory_that_is_not_there_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory"):
        Identity.open(tmp_path / "none")


def test_a_signed_version_verifies(identity: Identity, signed: ModelVersion) -> None:
    assert signed.origin is Origin.LOCAL
    assert identity.verify(signed)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"version": "local-2"},
        {"digest": "sha256:" + "1" * 64},
        {"blob_bytes": 8},
        {"origin": Origin.HUB},
        {"key_id": "local:0000000000000000"},
        {"signature": "AAAA"},
        {"signature": "not base64!"},
        {"signature": ""},
    ],
)
def test_any_change_of_a_signed_version_is_noticed(
    identity: Identity, signed: ModelVersion, change: dict[str, object]
) -> None:
    assert not identity.verify(msgspec.structs.replace(signed, **change))


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other@1"},
        {"name": "bob"},
        {"digest": "sha256:" + "1" * 64},
        {"blob_bytes": 8},
        {"scale": 0.5},
        {"origin": Origin.HUB},
        {"key_id": "local:0000000000000000"},
        {"signature": ""},
    ],
)
def test_any_change_of_a_signed_adapter_is_noticed(
    identity: Identity, change: dict[str, object]
) -> None:
    signed = identity.sign_adapter("m@1", "ada", Digest("sha256:" + "0" * 64), 7, 1.0)
    assert identity.verify(signed)
    assert not identity.verify(msgspec.structs.replace(signed, **change))


def test_another_devices_signature_is_refused(signed: ModelVersion, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Identity.open(tmp_path / "other")
    assert not other.verify(signed)
    assert not other.verify(msgspec.structs.replace(signed, key_id=other.key_id))


def test_a_key_is_whole_even_if_two_first_runs_meet(tmp_path: Path) -> None:
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(Identity.open(tmp_path).key_id))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert len(found) == 4
    assert Identity.open(tmp_path).key_id in found
