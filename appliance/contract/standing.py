"""Say what is withdrawn of a model, on its publisher's word.

What this room does: the document with a model's floor and its revoked versions.
What it knows: it outweighs any assignment: the director can't bring a revoked version back.
What it never does: say what happens to a revoked version that is running; the appliance's own
policy does.
"""

from __future__ import annotations

from appliance.contract.document import DIGEST, INTEGER_MAX, Document, Part, check, check_count
from appliance.contract.names import checked

REVOKED_MAX = 4096
_NAME = "standing"


class Revoked(Part, frozen=True):
    """One version that must not run. `release_sha256`: of its release document."""

    version: str
    release_sha256: str
    reason: str = ""

    def __post_init__(self) -> None:
        """Refuse what names no release."""
        checked(self.version, "revoked.version")
        check(
            ok=DIGEST.fullmatch(self.release_sha256) is not None,
            document=_NAME,
            field="revoked.release_sha256",
            reason="must be 64 lower-case hex digits",
        )


class Standing(Document, frozen=True, tag="standing"):
    """What holds for all versions of a model. Releases below `floor_sequence` are not taken."""

    model: str
    floor_sequence: int = 0
    revoked: tuple[Revoked, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what is out of bounds."""
        checked(self.model, "model")
        check_count(_NAME, "floor_sequence", self.floor_sequence, 0, INTEGER_MAX)
        check_count(_NAME, "revoked", len(self.revoked), 0, REVOKED_MAX)

    def revokes(self, release_sha256: str) -> Revoked | None:
        """Find why a release must not run; None where it may."""
        return next((one for one in self.revoked if one.release_sha256 == release_sha256), None)
