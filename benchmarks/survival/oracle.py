"""Say what a disk holds, without the code that wrote it. Standard library alone.

What this program does: reads the state directory of an appliance: the database as a copy, every
blob by its hash, the mirror, what lies around; says who serves and everything that is wrong.
What it knows: the layout of the directory, and the fields of the documents that it asks for.
What it never does: write there, or import anything of the appliance.

Usage: python -I -S oracle.py DIRECTORY ACKNOWLEDGED [--settled]; prints a line of JSON.
ACKNOWLEDGED: a file with a line of JSON for each command that was acknowledged; it may be missing.
--settled: everything under way has ended, so that nothing may lie around that nobody names.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

GENERATIONS_MAX = 3  # of metadata: the current one, the one before, one that was cut short
_DIGEST = re.compile(r"[0-9a-f]{64}")
_BEYOND_APPROVAL = ("shifting", "probation", "committed")
_SQL = {
    "serving": "SELECT body FROM serving",
    "offers": "SELECT body FROM offers",
    "deployments": "SELECT body FROM deployments ORDER BY id",
    "wishes": "SELECT model, body FROM wishes",
    "documents": "SELECT sha256, data FROM trust_documents",
}


class Disk:
    """A state directory, read once."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.faults: list[str] = []
        rows = self._rows()
        self.serving = {one["model"]: one for one in _bodies(rows.get("serving", []))}
        self.offers = {one["digest"]: one for one in _bodies(rows.get("offers", []))}
        self.deployments = _bodies(rows.get("deployments", []))
        self.wishes = {model: json.loads(body) for model, body in rows.get("wishes", [])}
        self.documents = dict(rows.get("documents", []))

    def _rows(self) -> dict[str, list[tuple[Any, ...]]]:
        """Read the tables from a copy, for opening a database may mend it."""
        if not (self.directory / "state.db").exists():
            return {}
        with tempfile.TemporaryDirectory() as scratch:
            for name in ("state.db", "state.db-wal"):
                if (self.directory / name).exists():
                    shutil.copyfile(self.directory / name, Path(scratch, name))
            connection = sqlite3.connect(Path(scratch, "state.db"))
            try:
                found = connection.execute("PRAGMA integrity_check").fetchall()
                if found != [("ok",)]:
                    self.faults.append(f"state.db is damaged: {found[:3]}")
                known = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
                return {
                    name: connection.execute(sql).fetchall()
                    for name, sql in _SQL.items()
                    if {name, f"trust_{name}"} & known
                }
            except sqlite3.DatabaseError as error:
                self.faults.append(f"state.db can't be read: {error}")
                return {}
            finally:
                connection.close()

    def named(self) -> set[str]:
        """List the versions that serve, stand by, or are under way."""
        digests = {d for one in self.serving.values() for d in (_active(one), _standby(one))}
        for one in self.under_way():
            digests |= {one["digest"], one.get("previous", "")}
        return {digest for digest in digests if digest}

    def under_way(self) -> list[dict[str, Any]]:
        """List the deployments that have not ended."""
        ends = ("committed", "rolled_back", "aborted", "stranded")
        return [one for one in self.deployments if one.get("state", "planned") not in ends]

    def files_of(self, digest: str) -> Iterator[dict[str, Any]]:
        """Go through the references to blobs of a version's preferred edition."""
        files = self.offers[digest]["release"]["files"]
        weights = [file for file in files if file["role"] == "weights"]
        edition = weights[0].get("quantisation", "")
        for file in files:
            if file["role"] == "adapter" or file.get("quantisation", "") == edition:
                yield file["blob"]
                yield file["chunk_map"]

    def path_of(self, sha256: str) -> Path:
        """Say where a blob lies."""
        return self.directory / "blobs" / "sha256" / sha256[:2] / sha256


def faults_of(disk: Disk, acknowledged: list[dict[str, Any]], *, settled: bool) -> Iterator[str]:
    """Say everything that is wrong."""
    yield from disk.faults
    yield from _versions(disk)
    yield from _blobs(disk)
    yield from _commands(disk, acknowledged)
    mirror = _mirror(disk)
    if isinstance(mirror, str):
        yield mirror
    if settled:
        yield from _around(disk)
        if isinstance(mirror, dict) and mirror != _truth(disk):
            yield f"the mirror says {mirror}, the database {_truth(disk)}"


def _versions(disk: Disk) -> Iterator[str]:
    """Find what serves or stands by and is not signed, not known, or not all there."""
    for model, one in disk.serving.items():
        for role, digest in (("active", _active(one)), ("standby", _standby(one))):
            if not digest:
                continue
            if digest not in disk.offers:
                yield f"{model}: nothing says what the {role} {digest} is made of"
                continue
            document = disk.documents.get(digest.removeprefix("sha256:"))
            if document is None or _sha256(document) != digest.removeprefix("sha256:"):
                yield f"{model}: the {role} {digest} was never verified"
            elif json.loads(document)["files"] != disk.offers[digest]["release"]["files"]:
                yield f"{model}: the {role} {digest} has other files than were signed"
            for blob in disk.files_of(digest):
                if not _is_whole(disk.path_of(blob["sha256"]), blob):
                    yield f"{model}: {blob['sha256']} of the {role} is not whole"
    models = [one["model"] for one in disk.under_way()]
    if len(set(models)) != len(models):
        yield "two deployments of one model are under way"


def _blobs(disk: Disk) -> Iterator[str]:
    """Find what has a blob's name and is not that blob."""
    for path in (disk.directory / "blobs").rglob("*"):
        if not path.is_file():
            continue
        if not _DIGEST.fullmatch(path.name) or _sha256(path.read_bytes()) != path.name:
            yield f"{path.name} is no blob of that name"


def _commands(disk: Disk, acknowledged: list[dict[str, Any]]) -> Iterator[str]:
    """Find what was acknowledged and is not written down."""
    rows = {one["id"]: one for one in disk.deployments}
    wanted: dict[tuple[str, str], list[Any]] = {}  # the last value, and what was asked for since
    for one in acknowledged:
        if one["command"] == "wish":
            wanted |= {(one["model"], name): [value] for name, value in one["wish"].items()}
        elif one["command"] == "asking":
            for name, value in one["wish"].items():
                wanted.get((one["model"], name), []).append(value)
        elif not _is_kept(one["command"], rows.get(one["deployment"], {})):
            yield f"{one['command']} of deployment {one['deployment']} is lost"
    for (model, name), values in wanted.items():
        if disk.wishes.get(model, {}).get(name) not in values:
            yield f"the wish {name}={values} for {model} is lost"


def _is_kept(command: str, deployment: dict[str, Any]) -> bool:
    """Tell whether a deployment has come as far as was acknowledged."""
    state = deployment.get("state")
    if command == "approve":
        return bool(deployment.get("is_approved")) or state in _BEYOND_APPROVAL
    return bool({"rollback": "rolled_back", "committed": "committed"}[command] == state)


def _around(disk: Disk) -> Iterator[str]:
    """Find what lies around and is named by nobody."""
    named = {digest for digest in disk.named() if digest in disk.offers}
    needed = {blob["sha256"] for digest in named for blob in disk.files_of(digest)}
    for path in sorted(disk.directory.rglob("*")):
        place = path.relative_to(disk.directory)
        top, is_file = place.parts[0], path.is_file() or path.is_symlink()
        is_left = {
            "blobs": is_file and path.name not in needed,
            "staging": is_file,
            "trash": is_file,
            "versions": len(place.parts) > 1 and f"sha256:{place.parts[1]}" not in named,
        }
        if is_left.get(top) or path.name.startswith("."):
            yield f"{place} was left there"
    generations = list((disk.directory / "tuf").glob("gen-*"))
    if len(generations) > GENERATIONS_MAX:
        yield f"{len(generations)} generations of metadata"
    for one in disk.under_way():
        yield f"deployment {one['id']} is {one.get('state')} still"


def _mirror(disk: Disk) -> dict[str, Any] | str:
    """Read the mirror: who serves, or what is wrong with it."""
    path = disk.directory / "pointer.json"
    if not path.exists():
        return {}
    try:
        mirror = json.loads(path.read_bytes())
        return {one["model"]: (_active(one), _standby(one)) for one in mirror["serving"]}
    except (ValueError, KeyError) as error:
        return f"pointer.json can't be read: {error}"


def _truth(disk: Disk) -> dict[str, Any]:
    return {model: (_active(one), _standby(one)) for model, one in disk.serving.items()}


def _active(serving: dict[str, Any]) -> str:
    return str(serving.get("active", ""))


def _standby(serving: dict[str, Any]) -> str:
    return str(serving.get("standby", ""))


def _bodies(rows: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
    return [json.loads(row[0]) for row in rows]


def _is_whole(path: Path, blob: dict[str, Any]) -> bool:
    if not path.is_file():
        return False
    data = path.read_bytes()
    return bool(len(data) == blob["length"] and _sha256(data) == blob["sha256"])


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def main(directory: Path, acknowledgements: Path, *, settled: bool) -> None:
    """Read, judge, print."""
    lines = acknowledgements.read_text().splitlines() if acknowledgements.is_file() else []
    acknowledged = [json.loads(line) for line in lines if line.endswith("}")]
    disk = Disk(directory)
    report = {
        "serving": _truth(disk),
        "versions": {digest: one["release"]["version"] for digest, one in disk.offers.items()},
        "under_way": [one.get("state", "planned") for one in disk.under_way()],
        "ended": [one.get("state", "planned") for one in disk.deployments],
        "faults": list(faults_of(disk, acknowledged, settled=settled)),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), settled="--settled" in sys.argv[3:])
