"""A process that is killed while it takes a version: the disk says the old or the new one.

The disk is read by the standard library's SQLite, not by the code that wrote it.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
POINTS_EACH = 4
TIMEOUT_S = 60


def take(directory: Path, version: str, kill_at: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.integration.deployment_process",
            str(directory),
            version,
            str(kill_at),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def written(directory: Path) -> tuple[str, list[dict[str, object]]]:
    """Read who serves and what is under way, from the file alone."""
    with sqlite3.connect(directory / "state.db") as connection:
        serving = json.loads(connection.execute("SELECT body FROM serving").fetchone()[0])
        rows = [json.loads(row[0]) for row in connection.execute("SELECT body FROM deployments")]
    connection.close()
    return str(int(serving["active"].removeprefix("sha256:"))), rows


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an appliance that serves version 1."""
    directory = tmp_path_factory.mktemp("first")
    done = take(directory, "1", 0)
    assert done.stdout.split()[1:] == ["1", "-", "0.0", "1"], done.stderr
    return directory


@pytest.mark.parametrize("seed", range(3))
def test_a_kill_at_any_point_leaves_the_old_or_the_new_version(
    first: Path, tmp_path: Path, seed: int
) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(first, whole, symlinks=True)
    done = take(whole, "2", 0)
    points = int(done.stdout.split()[0])
    assert done.stdout.split()[1:] == ["2", "1", "0.0", "2"], done.stderr
    assert points > 30
    for kill_at in sorted(random.Random(seed).sample(range(1, points + 1), POINTS_EACH)):
        directory = tmp_path / str(kill_at)
        shutil.copytree(first, directory, symlinks=True)
        killed = take(directory, "2", kill_at)
        assert killed.returncode == -signal.SIGKILL
        active, rows = written(directory)
        committed = any(row["version"] == "2" and row["state"] == "committed" for row in rows)
        assert active == ("2" if committed else "1"), kill_at
        again = take(directory, "2", 0)
        _, served, _, percent, _ = again.stdout.split()
        active, rows = written(directory)
        assert (served, percent) == (active, "0.0"), again.stderr
        ends = {"committed", "aborted", "rolled_back"}
        assert {str(row["state"]) for row in rows} <= ends, kill_at
