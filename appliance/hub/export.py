"""Write what a cohort's appliances need onto a stick: a directory or a tar with the three folders.

What this room does: picks the metadata, documents and blobs that lead to a cohort's versions, and
writes them under the names that readers ask for.
What it knows: an appliance runs a stick through the same checks as the hub's own answers; so
nothing here is signed or promised, only complete.
What it never does: change the repository, or leave half a bundle under its final name.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from appliance.contract.assignment import Assignment
from appliance.contract.document import DOCUMENT_BYTES_MAX, decode
from appliance.contract.names import (
    DIRECTOR_ROLE,
    assignment_path,
    blob_path,
    publisher_paths,
    release_path,
    standing_path,
)
from appliance.contract.release import Release
from appliance.errors import DocumentRefused, PublishRefused
from appliance.hub.signing import Repository
from appliance.store import sync_directory

ASSIGNMENTS_MAX = 10_000
_TAR_SUFFIX = ".tar"


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """What was written. `left_out_bytes`: blobs of the assignment that the site has already."""

    path: str
    cohort: str
    sequence: int
    files_count: int
    total_bytes: int
    left_out_bytes: int


def export(repository: Repository, cohort: str, to: Path, *, since: int = 0) -> Exported:
    """Write a bundle to `to`, a tar where the name ends so, else a directory; blocks.

    `since`: the sequence of an assignment that the site has; blobs it named are left out.

    Raises:
        PublishRefused: nothing is assigned, `to` is there already, or can't be written.
    """
    data = repository.document(DIRECTOR_ROLE, assignment_path(cohort))
    if data is None:
        raise PublishRefused(what=cohort, reason="nothing is assigned to it")
    assignment = decode(data, Assignment)
    known = _blobs_since(repository, cohort, since)
    files = dict(_documents(repository, assignment))
    left_out = 0
    for sha256, length in _blobs(repository, assignment).items():
        if sha256 in known:
            left_out += length
        else:
            files[blob_path(sha256)] = repository.blob_place(sha256)
    if to.exists():
        raise PublishRefused(what=str(to), reason="is there already")
    try:
        _write(files, to)
        sizes = [path.stat().st_size for path in files.values()]
    except OSError as error:
        name = error.filename if isinstance(error.filename, str) else str(to)
        raise PublishRefused(what=name, reason=error.strerror or str(error)) from error
    return Exported(
        path=str(to),
        cohort=cohort,
        sequence=assignment.sequence,
        files_count=len(files),
        total_bytes=sum(sizes),
        left_out_bytes=left_out,
    )


def _documents(repository: Repository, assignment: Assignment) -> Iterator[tuple[str, Path]]:
    """Find the metadata that readers see, and the documents that lead to the cohort's versions."""
    yield from repository.metadata_places()
    yield _placed(repository, DIRECTOR_ROLE, assignment_path(assignment.cohort))
    for assigned in assignment.models:
        role = _role(repository, assigned.model)
        yield _placed(repository, role, release_path(assigned.model, assigned.version))
        if standing_path(assigned.model) in repository.documents(role):
            yield _placed(repository, role, standing_path(assigned.model))


def _placed(repository: Repository, role: str, path: str) -> tuple[str, Path]:
    found = repository.documents(role).get(path)
    if found is None:
        raise PublishRefused(what=path, reason="is assigned, and readers can't see it")
    place = repository.document_place(path, found[0])
    return str(place.relative_to(repository.directory)), place


def _role(repository: Repository, model: str) -> str:
    own = publisher_paths(model)[0]
    for role, paths in repository.delegated().items():
        if own in paths:
            return role
    raise PublishRefused(what=model, reason="no publisher may sign for it any more")


def _blobs(repository: Repository, assignment: Assignment) -> dict[str, int]:
    """List every blob that an assignment's releases name: digest → bytes."""
    found: dict[str, int] = {}
    for assigned in assignment.models:
        path = release_path(assigned.model, assigned.version)
        place = repository.document_place(path, assigned.release_sha256)
        release = decode(_bounded(place), Release)
        for file in release.files:
            for blob in (file.blob, file.chunk_map):
                found[blob.sha256] = blob.length
    return found


def _blobs_since(repository: Repository, cohort: str, since: int) -> dict[str, int]:
    """List the blobs of an earlier assignment, which stays on disk when a later one is signed."""
    if not since:
        return {}
    path = assignment_path(cohort)
    directory = repository.document_place(path, "").parent
    for number, place in enumerate(sorted(directory.glob("*.assignment.json"))):
        if number >= ASSIGNMENTS_MAX:
            break
        with contextlib.suppress(DocumentRefused):
            assignment = decode(_bounded(place), Assignment)
            if assignment.sequence == since and assignment.cohort == cohort:
                return _blobs(repository, assignment)
    raise PublishRefused(what=path, reason=f"there was no assignment with the sequence {since}")


def _bounded(place: Path) -> bytes:
    try:
        with place.open("rb") as file:
            return file.read(DOCUMENT_BYTES_MAX + 1)
    except OSError as error:
        raise PublishRefused(what=str(place), reason=error.strerror or str(error)) from error


def _write(files: dict[str, Path], to: Path) -> None:
    partial = to.with_name(f"{to.name}.part")
    try:
        if to.suffix == _TAR_SUFFIX:
            with partial.open("xb") as file:
                with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                    for name, place in sorted(files.items()):
                        tar.add(place, name, recursive=False, filter=_plain)
                file.flush()
                os.fsync(file.fileno())
        else:
            partial.mkdir()
            for name, place in sorted(files.items()):
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                with place.open("rb") as source, (partial / name).open("xb") as target:
                    shutil.copyfileobj(source, target, 1024 * 1024)
                    target.flush()
                    os.fsync(target.fileno())
        partial.rename(to)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    sync_directory(to.parent)


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Leave out who owned a file, so that a bundle tells nothing of the hub's machine."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode = 0o644
    return member
