"""Hold a document against the path under which it is signed.

What this room does: finds which document a path is for, reads it, compares the names.
What it knows: `contract.names`: the places of releases, standings and assignments.
What it never does: I/O, or judge what a document says.
"""

from __future__ import annotations

from appliance.contract.assignment import Assignment
from appliance.contract.document import decode
from appliance.contract.names import assignment_path, release_path, standing_path
from appliance.contract.release import BlobRef, Release
from appliance.contract.standing import Standing
from appliance.errors import DocumentRefused


def check_placed(path: str, data: bytes) -> tuple[BlobRef, ...]:
    """Check that `data` is what belongs at `path`; returns the blobs that it names.

    Raises:
        DocumentRefused: it is no document, or one that belongs elsewhere.
    """
    blobs: tuple[BlobRef, ...] = ()
    name = path.rpartition("/")[2]
    if name == "release.json":
        release = decode(data, Release)
        own = release_path(release.model, release.version)
        blobs = tuple(blob for file in release.files for blob in (file.blob, file.chunk_map))
    elif name == "standing.json":
        own = standing_path(decode(data, Standing).model)
    elif name == "assignment.json":
        own = assignment_path(decode(data, Assignment).cohort)
    else:
        own = ""
    if own != path:
        reason = f"{own or 'no document'} belongs there" if not own else f"it belongs at {own}"
        raise DocumentRefused(document=path, field="path", reason=reason)
    return blobs
