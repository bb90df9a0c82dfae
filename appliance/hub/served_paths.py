"""Decide which paths of the repository are served, by a grammar that matches them whole. Pure.

What this room does: from the path of a request, as it came, to a file under the repository, and
what kind of file that is.
What it knows: `contract.names`; TUF's consistent snapshots put a number or a digest in front of a
file's name. A path with a percent sign, an empty part or a dot in front of a part matches nothing.
What it never does: look at the disk, list, or normalise a path.
"""

from __future__ import annotations

import re
from enum import Enum

import msgspec

from appliance.contract.document import DIGEST
from appliance.contract.names import NAME

PATH_CHARS_MAX = 512
_ROLE = r"[a-z][A-Za-z0-9._-]{0,79}"
_N, _H = NAME.pattern, DIGEST.pattern


class Kind(Enum):
    """What a path leads to."""

    METADATA = "metadata"  # small; of some names the content changes
    TARGET = "target"  # small, and never another content
    BLOB = "blob"  # as large as a model, and never another content


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """A file: where it is under the repository, and its kind. `digest`: of a blob, hex."""

    path: str
    kind: Kind
    digest: str = ""


_GRAMMAR = (
    (Kind.METADATA, re.compile(rf"metadata/(?:[1-9][0-9]{{0,9}}\.)?{_ROLE}\.json")),
    (
        Kind.TARGET,
        re.compile(
            rf"targets/(?:models/{_N}/{_N}/{_H}\.release\.json"
            rf"|models/{_N}/{_H}\.standing\.json|fleet/{_N}/{_H}\.assignment\.json)"
        ),
    ),
    (Kind.BLOB, re.compile(r"blobs/sha256/([0-9a-f]{2})/(\1[0-9a-f]{62})")),
)


def served(raw_path: str) -> Served | None:
    """Find what "/…" leads to; None for everything that is not served."""
    if len(raw_path) > PATH_CHARS_MAX or not raw_path.startswith("/"):
        return None
    path = raw_path[1:]
    for kind, pattern in _GRAMMAR:
        match = pattern.fullmatch(path)
        if match:
            digest = match[2] if kind is Kind.BLOB else ""
            return Served(path=path, kind=kind, digest=digest)
    return None
