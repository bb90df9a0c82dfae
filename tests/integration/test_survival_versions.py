"""A deployment that is killed anywhere, its power cut anywhere: a part of the figures' cases.

The judges are judged too: what they are to find is put on a disk, and found.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.survival import hub, power, scenes
from benchmarks.survival.box import ACKNOWLEDGED, STATE
from benchmarks.survival.forks import judged
from benchmarks.survival.replay import LOSSES, Disk, read
from benchmarks.versions.__main__ import run
from benchmarks.versions.survival import KILLS, POWER


# The months without a hub need Debian's faketime, which not every machine has: they are a suite of
# `make figures-versions` alone, with `--short` for a few days.
@pytest.mark.parametrize("suite", [KILLS, POWER])
def test_it_serves_the_old_or_the_new_version_and_leaves_nothing(suite: str) -> None:
    results = run((suite,), short=True)
    assert results.lost == {}
    assert results.notes == []
    assert [verdict.line for verdict in results.verdicts if not verdict.holds] == []


# --- the oracle finds what it should -------------------------------------------------------------


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an appliance that serves version 2, with version 1 on standby."""
    world = tmp_path_factory.mktemp("world")
    scenes.build(world)
    with hub.serving(world) as url:
        scenes.make_disk(world, url, "two")
    return world / "disks" / "two"


def a_blob(place: Path) -> Path:
    return max((place / STATE / "blobs").rglob("*"), key=lambda path: path.stat().st_size)


def flip(place: Path) -> None:
    blob = a_blob(place)
    blob.chmod(0o600)
    data = bytearray(blob.read_bytes())
    data[100] ^= 1
    blob.write_bytes(data)


def lose(place: Path) -> None:
    a_blob(place).unlink()


def damage(place: Path) -> None:
    with (place / STATE / "state.db").open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 8192)


def leave(place: Path) -> None:
    (place / STATE / ".pointer.json.0123456789abcdef").touch()


def acknowledge(one: dict[str, object]) -> Callable[[Path], None]:
    def harm(place: Path) -> None:
        (place / ACKNOWLEDGED).write_text(json.dumps(one) + "\n")

    return harm


@pytest.mark.parametrize(
    ("harm", "found"),
    [
        (flip, "is no blob of that name"),
        (lose, "is not whole"),
        (damage, "state.db"),
        (leave, "was left there"),
        (acknowledge({"command": "approve", "deployment": 9}), "is lost"),
        (
            acknowledge({"command": "wish", "model": "demo", "wish": {"is_held": False}}),
            "is lost",
        ),
    ],
)
def test_the_oracle_finds_what_is_wrong(
    disk: Path, tmp_path: Path, harm: Callable[[Path], None], found: str
) -> None:
    place = tmp_path / "box"
    shutil.copytree(disk, place, symlinks=True)
    assert judged(place, settled=True)["faults"] == []
    harm(place)
    assert found in " ".join(judged(place, settled=True)["faults"])


# --- the model of a disk -------------------------------------------------------------------------

WRITER = """
import os, sys
place = sys.argv[1]
def put(name, data, *, syncs):
    fd = os.open(f"{place}/{name}", os.O_RDWR | os.O_CREAT, 0o600)
    os.write(fd, data[:3])
    os.pwrite(fd, data[3:], 3)
    if syncs:
        os.fsync(fd)
    os.close(fd)
put("kept", b"kept for good", syncs=True)
os.rename(f"{place}/kept", f"{place}/moved")
fd = os.open(place, os.O_RDONLY)
os.fsync(fd)
put("unsynced", b"in the cache", syncs=False)
os.fsync(fd)
put("unnamed", b"without a name", syncs=True)
os.unlink(f"{place}/moved")
"""


def test_a_power_cut_keeps_what_was_synced_and_nothing_else(tmp_path: Path) -> None:
    place, log = tmp_path / "place", tmp_path / "log"
    place.mkdir()
    shim = power.build(tmp_path)
    disk = Disk(place)
    watched = {"LD_PRELOAD": str(shim), "SURVIVAL_BELOW": str(place), "SURVIVAL_LOG": str(log)}
    subprocess.run(
        [sys.executable, "-I", "-S", "-c", WRITER, str(place)], env=os.environ | watched, check=True
    )
    for one in read(log):
        disk.play(one)
    found = {}
    for loss in LOSSES:
        disk.write(tmp_path / loss, loss, 1)
        found[loss] = {path.name: path.read_bytes() for path in (tmp_path / loss).iterdir()}
    assert found["all"] == {"moved": b"kept for good", "unsynced": b""}
    assert found["data"] == {"unsynced": b"", "unnamed": b"without a name"}
    whole = {"moved": b"kept for good", "unsynced": b"in the cache", "unnamed": b"without a name"}
    for name, data in found["some"].items():
        assert all(one in (0, right) for one, right in zip(data, whole[name], strict=False)), name
    assert {path.name for path in place.iterdir()} == {"unsynced", "unnamed"}
