"""Trust begins at a root that was brought by hand, with its digest."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest

from appliance.cli.main import main
from appliance.errors import ConfigError, Untrusted
from appliance.sync import anchor
from appliance.sync.trust import ROOT_BYTES_MAX
from tests.integration.tuf_repository import Repository


@pytest.fixture(scope="module")
def repository() -> Repository:
    return Repository({"acme": ["demo"]}, threshold=2)


def digest(data: bytes) -> str:
    return sha256(data).hexdigest()


def test_a_root_is_installed_once_and_read_back(tmp_path: Path, repository: Repository) -> None:
    root = repository.bootstrap
    with pytest.raises(ConfigError, match="appliance trust"):
        anchor.load(tmp_path / "state")
    for _ in range(2):
        facts = anchor.install(tmp_path / "state", root, digest(root).upper())
        assert (facts.version, facts.keys_count, facts.threshold) == (1, 2, 2)
    assert anchor.load(tmp_path / "state") == root
    other = Repository({}).bootstrap
    with pytest.raises(Untrusted, match="another is in"):
        anchor.install(tmp_path / "state", other, digest(other))
    assert anchor.load(tmp_path / "state") == root


def test_a_root_under_another_digest_is_refused(tmp_path: Path, repository: Repository) -> None:
    with pytest.raises(Untrusted, match="SHA-256"):
        anchor.install(tmp_path, repository.bootstrap, "0" * 64)
    assert not anchor.place(tmp_path).exists()


def test_what_is_no_root_signed_by_its_own_keys_is_refused(
    tmp_path: Path, repository: Repository
) -> None:
    half = json.loads(repository.bootstrap)
    half["signatures"].pop()
    for data, reason in (
        (b"{", "deserialize"),
        (b"", "deserialize"),
        (repository.files["metadata/1.targets.json"], "another role"),
        (json.dumps(half).encode(), "signed by 1/2 keys"),
        (b" " * (ROOT_BYTES_MAX + 1), "longer"),
    ):
        with pytest.raises(Untrusted, match=reason):
            anchor.install(tmp_path, data, digest(data))
    assert not anchor.place(tmp_path).exists()


def test_the_command_says_what_it_trusts(
    tmp_path: Path, repository: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "1.root.json"
    file.write_bytes(repository.bootstrap)
    where = ["--state-dir", str(tmp_path / "state")]
    assert main(["trust", str(file), "--sha256", "0" * 64, *where]) != 0
    assert "SHA-256" in capsys.readouterr().err
    right = ["--sha256", digest(repository.bootstrap), *where]
    assert main(["trust", str(file), *right]) == 0
    assert "2 of 2 keys" in capsys.readouterr().out
    assert main(["trust", str(file), *right, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["threshold"] == 2
