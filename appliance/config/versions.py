"""Hold what the configuration says of the versions that a hub signs for this appliance.

What this room does: the table `versions`.
What it knows: where the hub is, and for whom it takes us, was learnt by `appliance enrol`; whom we
believe, by `appliance trust`. Without a root to believe, nothing of this table is read.
What it never does: ask a source.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from appliance.config.section import Section

_DAY_S = 86_400.0


class Versions(Section):
    """Versions that a hub signs: where they come from, and what is rehearsed and read again."""

    cohort: Annotated[
        str,
        Meta(
            pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,63})?$",
            description="The cohort we belong to; empty: the one that the hub told at enrolment.",
        ),
    ] = ""
    mirrors: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^https?://[^\s]+$", max_length=512)], ...],
        Meta(
            max_length=8,
            description=(
                "Addresses below which a copy of the hub's repository lies: its files are asked "
                "for here first, its metadata after the hub. None is trusted."
            ),
        ),
    ] = ()
    models_expected: Annotated[
        int,
        Meta(
            ge=1,
            le=64,
            description="Models of the hub that share the cores with those of this file.",
        ),
    ] = 1
    import_wait_s: Annotated[
        float,
        Meta(gt=0, le=_DAY_S, description="How long the files of a bundle may take to read, in s."),
    ] = 6 * 3600.0
    drill_s: Annotated[
        float,
        Meta(ge=0, le=31 * _DAY_S, description="How often the way back is rehearsed, in s."),
    ] = _DAY_S
    drill_slower_max: Annotated[
        float,
        Meta(
            ge=1,
            le=1000,
            description="Times as slow as usual from which on a drill is warned of.",
        ),
    ] = 3.0
    scrub_s: Annotated[
        float,
        Meta(
            ge=0,
            le=366 * _DAY_S,
            description="How often kept files are read again to find damage, in s; 0: never.",
        ),
    ] = 7 * _DAY_S
