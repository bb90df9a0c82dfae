"""The client of the conformance suite is our real trust; and the suite itself, where it is there.

    TUF_CONFORMANCE_DIR=<a checkout of theupdateframework/tuf-conformance> pytest tests/conformance

It needs the Debian package faketime and takes minutes. The suite is no part of this repository.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.loopback_hub import LoopbackHub, serving
from tests.integration.tuf_repository import Repository

ROOT = Path(__file__).resolve().parents[2]
CLIENT = [sys.executable, str(ROOT / "tests" / "conformance" / "client.py")]
SUITE = os.environ.get("TUF_CONFORMANCE_DIR", "")
SUITE_TIMEOUT_S = 1500
CASES_MIN = 113  # of the suite as of August 2026; none is expected to fail


@pytest.fixture
def repository() -> Repository:
    return Repository({"acme": ["demo"]})


@pytest.fixture
def hub(repository: Repository) -> Iterator[LoopbackHub]:
    with serving(repository.files) as running:
        yield running


@pytest.fixture
def metadata(tmp_path: Path, repository: Repository) -> Path:
    root = tmp_path / "root.json"
    root.write_bytes(repository.bootstrap)
    (tmp_path / "metadata").mkdir()
    assert client("--metadata-dir", tmp_path / "metadata", "init", root) == 0
    return tmp_path / "metadata"


def client(*arguments: object) -> int:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [*CLIENT, *map(str, arguments)]
    return subprocess.run(command, env=environment, timeout=60, check=False).returncode


def test_a_refresh_shows_what_was_served_byte_for_byte(
    metadata: Path, repository: Repository, hub: LoopbackHub
) -> None:
    assert [path.name for path in metadata.glob("*.json")] == ["root.json"]
    assert hub.asked == []
    repository.rotate("targets")
    repository.publish("targets")
    assert (
        client("--metadata-dir", metadata, "--metadata-url", hub.url + "metadata", "refresh") == 0
    )
    shown = {path.name: path.read_bytes() for path in metadata.glob("*.json")}
    assert shown == {
        "root.json": hub.files["metadata/2.root.json"],
        "timestamp.json": hub.files["metadata/timestamp.json"],
        "snapshot.json": hub.files["metadata/2.snapshot.json"],
        "targets.json": hub.files["metadata/2.targets.json"],
    }


def test_targets_are_read_in_order_and_the_first_failure_ends_it(
    metadata: Path, repository: Repository, hub: LoopbackHub, tmp_path: Path
) -> None:
    first, third = "models/demo/1/release.json", "models/demo/3/release.json"
    repository.put("publisher-acme", first, b"one")
    repository.put("publisher-acme", third, b"three")
    (tmp_path / "targets").mkdir()
    options = ("--metadata-dir", metadata, "--metadata-url", hub.url + "metadata")
    places = ("--target-dir", tmp_path / "targets", "--target-base-url", hub.url + "targets")
    names = [part for name in (first, "models/demo/2/x", third) for part in ("--target-name", name)]
    assert client(*options, *names, *places, "download") == 1
    assert [path.read_bytes() for path in (tmp_path / "targets").iterdir()] == [b"one"]
    hub.asked.clear()
    assert client(*options, "--target-name", first, *places, "download") == 0
    assert not any(path.startswith("targets/") for path in hub.asked)


def test_a_rollback_is_refused_across_processes(
    metadata: Path, repository: Repository, hub: LoopbackHub
) -> None:
    options = ("--metadata-dir", metadata, "--metadata-url", hub.url + "metadata", "refresh")
    old = repository.state()[0]["metadata/timestamp.json"]
    repository.publish("targets")
    assert client(*options) == 0
    hub.files["metadata/timestamp.json"] = old
    assert client(*options) == 1


def run_suite(tmp_path: Path) -> None:
    """Run every case of the suite against our client; none is expected to fail."""
    wrapper = tmp_path / "client"
    wrapper.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec {" ".join(CLIENT)} "$@"\n')
    wrapper.chmod(0o755)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tuf_conformance"]
    done = subprocess.run(
        [*command, "--entrypoint", str(wrapper)],
        cwd=SUITE,
        env=os.environ | {"PYTHONPATH": SUITE, "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=SUITE_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert int(done.stdout.splitlines()[-1].split()[0]) >= CASES_MIN, done.stdout[-400:]


if SUITE:

    @pytest.mark.timeout(SUITE_TIMEOUT_S)
    def test_the_suite_passes_every_case(tmp_path: Path) -> None:
        run_suite(tmp_path)
