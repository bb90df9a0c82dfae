"""Hold what the configuration says of asking a hub what is signed.

What this room does: the table `refresh`.
What it knows: its bounds hold for small files; for the files of versions `downloads` does.
What it never does: ask.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from appliance.config.section import Section


class Refresh(Section):
    """How metadata and signed documents are asked for."""

    deadline_s: Annotated[
        float,
        Meta(gt=0, le=86_400, description="How long one refresh may take with all it reads, in s."),
    ] = 300.0
    stall_s: Annotated[
        float,
        Meta(
            gt=0,
            le=3600,
            description="How long the hub may send nothing, or less than the slowest rate, in s.",
        ),
    ] = 20.0
    bytes_per_s_min: Annotated[
        int, Meta(ge=0, le=2**30, description="Slowest rate, as the mean of a file; 0: any.")
    ] = 512
    proxy: Annotated[
        str,
        Meta(
            pattern=r"^(https?://[^\s/]+/?)?$",
            max_length=512,
            description="HTTP proxy for hub and mirrors, 'http://HOST:PORT'; empty: none is used.",
        ),
    ] = ""
