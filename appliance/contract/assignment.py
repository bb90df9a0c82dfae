"""Say which versions a cohort of appliances should run, on the director's word.

What this room does: the document that the hub's online key signs.
What it knows: it can only choose among releases that publishers signed: it names each by digest.
What it never does: introduce a model or a version.
"""

from __future__ import annotations

from appliance.contract.document import DIGEST, INTEGER_MAX, Document, Part, check, check_count
from appliance.contract.names import checked
from appliance.contract.release import Strategy

ASSIGNED_MAX = 64
_NAME = "assignment"


class Assigned(Part, frozen=True):
    """One version that should run, by the SHA-256 of its release document.

    `strategy`: in place of the release's own, where the director wants another.
    `not_before_utc_ms`: 0 is at once.
    """

    model: str
    version: str
    release_sha256: str
    strategy: Strategy | None = None
    not_before_utc_ms: int = 0

    def __post_init__(self) -> None:
        """Refuse what names no release."""
        checked(self.model, "models.model")
        checked(self.version, "models.version")
        check(
            ok=DIGEST.fullmatch(self.release_sha256) is not None,
            document=_NAME,
            field="models.release_sha256",
            reason="must be 64 lower-case hex digits",
        )


class Assignment(Document, frozen=True, tag="assignment"):
    """What a cohort should run. `sequence` rises with each change; `halt` stops what has begun."""

    cohort: str
    sequence: int
    issued_utc_ms: int
    models: tuple[Assigned, ...] = ()
    halt: bool = False

    def __post_init__(self) -> None:
        """Refuse what is out of bounds, or two versions of one model."""
        checked(self.cohort, "cohort")
        check_count(_NAME, "sequence", self.sequence, 1, INTEGER_MAX)
        check_count(_NAME, "models", len(self.models), 0, ASSIGNED_MAX)
        check(
            ok=len({one.model for one in self.models}) == len(self.models),
            document=_NAME,
            field="models.model",
            reason="a model is assigned twice",
        )
