"""Describe what an appliance tells its hub: reports, numbered as they leave its outbox.

What this room does: one report and its bounds; what the body of each kind says.
What it knows: an outbox has a random name; its reports are numbered from 1 and never again. A hub
takes each number once.
What it never does: say what an appliance does next.
"""

from __future__ import annotations

import re

import msgspec

from appliance.contract.document import INTEGER_MAX, check, check_count
from appliance.contract.names import checked

REPORT_BYTES_MAX = 16 * 1024
OUTBOX = re.compile(r"[0-9a-f]{32}")
DEPLOYMENT_STEP = "deployment-step"
_NAME = "report"


class DeploymentStep(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A state that a deployment entered: the body of a report of the kind DEPLOYMENT_STEP, as JSON.

    deployment: its number on the appliance. digest: of the release's document. state and cause: as
    `appliance deployments --json` has them. entered_utc_ms: by the appliance's clock.
    """

    deployment: int
    model: str
    version: str
    digest: str
    state: str
    entered_utc_ms: int
    step: int = 0
    quantisation: str = ""
    undo: str = ""
    cause: str = ""
    reason: str = ""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What happened on an appliance. `body`: JSON, as `kind` says; `utc_ms`: by its own clock."""

    outbox: str
    seq: int
    utc_ms: int
    kind: str
    body: bytes

    def __post_init__(self) -> None:
        """Refuse what is out of bounds."""
        check(
            ok=OUTBOX.fullmatch(self.outbox) is not None,
            document=_NAME,
            field="outbox",
            reason="must be 32 lower-case hex digits",
        )
        checked(self.kind, "report.kind")
        check_count(_NAME, "seq", self.seq, 1, INTEGER_MAX)
        check_count(_NAME, "utc_ms", self.utc_ms, 0, INTEGER_MAX)
        check_count(_NAME, "body", len(self.body), 0, REPORT_BYTES_MAX)
