"""Hold what the configuration says of the local databases.

What this room does: the table `store`.
What it knows: the bounds of every database alike.
What it never does: open one.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from appliance.config.section import Section


class Store(Section):
    """The local databases. Their failure never stops serving; what is then lost is counted."""

    queue_intents: Annotated[
        int, Meta(ge=16, le=65_536, description="Writes waiting for one database.")
    ] = 1024
    busy_timeout_s: Annotated[
        float,
        Meta(gt=0, le=60, description="How long a write waits for a lock held by others, in s."),
    ] = 5.0
    reopen_s: Annotated[
        float,
        Meta(gt=0, le=3600, description="Least time between attempts to open a database, in s."),
    ] = 10.0
    audit_pending: Annotated[
        int, Meta(ge=16, le=1_000_000, description="Audit records waiting to be written.")
    ] = 4096
    audit_records_max: Annotated[
        int,
        Meta(ge=1000, le=2**53, description="Audit records kept; the oldest tenth goes first."),
    ] = 1_000_000
