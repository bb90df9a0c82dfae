"""A private key is for one pair of eyes; its public half is handed around."""

from __future__ import annotations

import stat
from pathlib import Path

import msgspec
import pytest

from appliance.errors import DocumentRefused, PublishRefused
from appliance.hub import key_files, online
from tests.unit.hub.published import Hub

PASSPHRASE = "a long enough one"


@pytest.mark.parametrize("algorithm", list(key_files.ALGORITHMS))
@pytest.mark.parametrize("passphrase", ["", PASSPHRASE])
def test_a_key_comes_back_and_signs(tmp_path: Path, algorithm: str, passphrase: str) -> None:
    made = key_files.make(tmp_path, "alice", algorithm=algorithm, passphrase=passphrase)
    private = tmp_path / "alice.key"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert key_files.is_encrypted(private) == bool(passphrase)
    signature = key_files.open_signer(private, passphrase).sign(b"data")
    public = key_files.read_public(tmp_path / "alice.pub")
    assert public == made
    public.verifier().verify_signature(signature, b"data")


def test_what_can_not_be_a_key_is_refused(tmp_path: Path) -> None:
    key_files.make(tmp_path, "alice", algorithm="ed25519", passphrase=PASSPHRASE)
    private = tmp_path / "alice.key"
    for passphrase, reason in (("", "needs its passphrase"), ("wrong one", "passphrase is wrong")):
        with pytest.raises(PublishRefused, match=reason):
            key_files.open_signer(private, passphrase)
    with pytest.raises(PublishRefused, match="is there already"):
        key_files.make(tmp_path, "alice", algorithm="ed25519", passphrase="")
    with pytest.raises(PublishRefused, match="fewer than 8"):
        key_files.make(tmp_path, "bob", algorithm="ed25519", passphrase="short")
    with pytest.raises(PublishRefused, match="rot13 is not one of ed25519"):
        key_files.make(tmp_path, "bob", algorithm="rot13", passphrase="")
    with pytest.raises(DocumentRefused, match="owner"):
        key_files.make(tmp_path, "../bob", algorithm="ed25519", passphrase="")
    private.chmod(0o640)
    with pytest.raises(PublishRefused, match="others may read it"):
        key_files.open_signer(private, PASSPHRASE)
    private.chmod(0o600)
    private.write_bytes(b"-----BEGIN PRIVATE KEY-----")
    with pytest.raises(PublishRefused, match="is not a private key"):
        key_files.open_signer(private)
    private.write_bytes(b"x" * (key_files.KEY_BYTES_MAX + 1))
    with pytest.raises(PublishRefused, match="is larger than"):
        key_files.open_signer(private)
    private.unlink()
    with pytest.raises(PublishRefused, match="No such file"):
        key_files.open_signer(private)


def test_a_public_key_that_is_none_is_refused(tmp_path: Path) -> None:
    made = key_files.make(tmp_path, "alice", algorithm="ed25519", passphrase="")
    public = tmp_path / "alice.pub"
    with pytest.raises(PublishRefused, match="names no key in hardware"):
        key_files.open_signer(public)
    public.write_bytes(b"{}")
    with pytest.raises(PublishRefused, match="is not a public key"):
        key_files.read_public(public)
    with pytest.raises(PublishRefused, match="is no key"):
        msgspec.structs.replace(made, key={"keytype": "x"}).verifier()
    elsewhere = tmp_path / "alice.pem"
    elsewhere.write_bytes(b"-----BEGIN PUBLIC KEY-----")
    for uri, reason in (("hsm:", "is not a public key in PEM"), ("file2:x", "known are")):
        with pytest.raises(PublishRefused, match=reason):
            key_files.from_hardware("alice", uri, elsewhere)
    absent = msgspec.structs.replace(made, uri="hsm:2?label=none")
    key_files.write_public(public, absent)
    with pytest.raises(PublishRefused, match="hsm:2"):
        key_files.open_signer(public)


def test_online_keys_are_made_once_and_counted(tmp_path: Path) -> None:
    made = online.make_keys(tmp_path, "ed25519")
    assert online.make_keys(tmp_path, "ed25519") == made
    opened = {signer.public_key.keyid for signer in online.open_keys(tmp_path)}
    assert opened == {public.keyid for public in made.values()}
    for n in range(online.KEYS_MAX):
        key_files.make(tmp_path, f"more-{n}", algorithm="ed25519", passphrase="")
    with pytest.raises(PublishRefused, match="more than 16 keys"):
        online.open_keys(tmp_path)
    assert online.open_keys(tmp_path / "none") == ()


def test_a_running_hub_signs_again_and_says_what(tmp_path: Path) -> None:
    keys = tmp_path / "online"
    online.make_keys(keys, "ed25519")
    signers = {one.public_key.keyid: one for one in online.open_keys(keys)}
    by_role = {
        role: [signers[key_files.read_public(keys / f"{role}.pub").keyid]]
        for role in online.ONLINE_ROLES
    }
    hub = Hub(tmp_path / "repository", signers=by_role)
    resign = online.resigner(hub.repository, keys)
    assert resign(hub.now) == ""
    hub.found()
    assert resign(hub.now) == ""
    assert resign(hub.now + 4 * 86_400_000) == "timestamp 2"
    hub.add_publisher("acme", "demo")
    hub.repository.redraft("publisher-acme", now_utc_ms=hub.now)
    hub.sign("publisher-acme")
    assert resign(hub.now) == "publisher-acme 2, snapshot 3, timestamp 4"
    keyless = online.resigner(hub.repository, tmp_path / "none")
    assert keyless(hub.now) == ""
    with pytest.raises(PublishRefused, match="no key here"):
        keyless(hub.now + 10**10)
