"""Name what a refresh has verified: the versions of roles, documents, and how fresh they are.

What this room does: three values.
What it knows: they say what was checked; who makes one has checked it.
What it never does: check anything itself.
"""

from __future__ import annotations

from collections.abc import Mapping

from appliance.domain.value import Value


class Seen(Value):
    """What one refresh verified. `versions`: of each role. `signers`: key ids, by governing role.

    `accepted`: the key ids that the root accepts now for timestamp and snapshot, and how many of
    them must sign.
    """

    versions: Mapping[str, int]
    signers: Mapping[str, frozenset[str]]
    accepted: Mapping[str, tuple[frozenset[str], int]]


class Verified(Value):
    """A document as it was signed: where it lies, which role signed it, its digest, its bytes."""

    path: str
    signer: str
    sha256: str
    data: bytes


class Freshness(Value):
    """How old our knowledge is. All 0: nothing was learnt yet."""

    signed_utc_ms: int = 0
    learnt_utc_ms: int = 0
    expires_utc_ms: int = 0
