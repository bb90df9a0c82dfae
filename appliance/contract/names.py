r"""Say where everything lies in the repository, and what may be a name.

What this room does: the grammar of names and the one place of each document and blob.
What it knows: python-tuf's patterns: `*` does not cross `/`, so each depth is named on its own.

| path | what | who signs |
|---|---|---|
| `models/MODEL/VERSION/release.json` | a version: files, facts, checks, strategy | its publisher |
| `models/MODEL/standing.json` | the floor and the revoked versions of a model | its publisher |
| `fleet/COHORT/assignment.json` | which versions a cohort should run | the director |
| `blobs/sha256/HH/HEX` | a file, named by its SHA-256 | nobody: the release names it |

What it never does: join a name into a path of this machine; every name is matched whole, and none
may hold a slash, begin with a dot or be longer than `NAME_CHARS_MAX`.
"""

from __future__ import annotations

import re

from appliance.contract.document import DIGEST, check

NAME_CHARS_MAX = 64
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
DIRECTOR_ROLE = "director"
DIRECTOR_PATHS = ("fleet/*/*",)
PUBLISHER_ROLE_PREFIX = "publisher-"


def publisher_role(publisher: str) -> str:
    """Name the delegated role of a publisher."""
    return PUBLISHER_ROLE_PREFIX + checked(publisher, "publisher")


def publisher_paths(model: str) -> tuple[str, str]:
    """Name the patterns under which a publisher of `model` may sign."""
    model = checked(model, "model")
    return f"models/{model}/*", f"models/{model}/*/*"


def release_path(model: str, version: str) -> str:
    """Find the release of a version."""
    return f"models/{checked(model, 'model')}/{checked(version, 'version')}/release.json"


def standing_path(model: str) -> str:
    """Find what is withdrawn of a model."""
    return f"models/{checked(model, 'model')}/standing.json"


def assignment_path(cohort: str) -> str:
    """Find what a cohort should run."""
    return f"fleet/{checked(cohort, 'cohort')}/assignment.json"


def blob_path(sha256: str) -> str:
    """Find a file by its digest, 64 hex digits."""
    check(
        ok=DIGEST.fullmatch(sha256) is not None,
        document="names",
        field="sha256",
        reason="must be 64 lower-case hex digits",
    )
    return f"blobs/sha256/{sha256[:2]}/{sha256}"


def checked(name: str, field: str) -> str:
    """Give the name back, if it is one.

    Raises:
        DocumentRefused: it holds what no name may hold, or is too long.
    """
    check(
        ok=NAME.fullmatch(name) is not None,
        document="names",
        field=field,
        reason=f"{name[:NAME_CHARS_MAX]!r}: a name has 1 to {NAME_CHARS_MAX} of A-Z a-z 0-9 . _ -"
        " and begins with a letter or digit",
    )
    return name
