"""Hold the keys of versions side by side: trials, standbys, and the spare worker.

What this room does: one table of the file as a struct.
What it knows: each key's default, unit and bounds.
What it never does: read anything.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from appliance.config.section import Section

_DAY_S = 86_400.0
_TIB = 1024**4


class Hosting(Section):
    """Versions of a model side by side. A standby is the version that a rollback goes back to."""

    spare_worker: Annotated[
        bool,
        Meta(
            description=(
                "Whether one worker process waits with its imports done for whatever is loaded "
                "next; it takes some 100 MB and saves most of a second."
            )
        ),
    ] = True
    window_samples: Annotated[
        int,
        Meta(ge=16, le=65_536, description="Last requests measured of each version, for verdicts."),
    ] = 1024
    shadow_streams: Annotated[
        int,
        Meta(
            ge=1,
            le=64,
            description="Copies of requests on a candidate at a time; more are dropped.",
        ),
    ] = 2
    unload_drain_s: Annotated[
        float,
        Meta(
            ge=0,
            le=_DAY_S,
            description="How long requests may finish on a version that is unloaded, in s.",
        ),
    ] = 600.0
    standby_level: Annotated[
        Literal["h0", "h1", "h2", "h3"],
        Meta(
            description=(
                "Highest level at which a standby is kept: h0 on disk, h1 in the page cache, h2 "
                "locked in memory, h3 loaded."
            )
        ),
    ] = "h3"
    standby_check_s: Annotated[
        float,
        Meta(gt=0, le=3600, description="Time between two looks at a standby and memory, in s."),
    ] = 5.0
    memory_free_bytes: Annotated[
        int,
        Meta(
            ge=0,
            le=_TIB,
            description="Available memory below which a standby is held lower, in bytes.",
        ),
    ] = 512 * 1024 * 1024
    memory_pressure_percent: Annotated[
        float,
        Meta(
            gt=0,
            le=100,
            description=(
                "Share of ten seconds in which tasks waited for memory (PSI) above which a "
                "standby is held lower, in percent."
            ),
        ),
    ] = 10.0
    standby_rise_s: Annotated[
        float,
        Meta(
            ge=0,
            le=_DAY_S,
            description="How long memory must suffice before a standby is held higher, in s.",
        ),
    ] = 60.0
    locked_bytes_max: Annotated[
        int,
        Meta(
            ge=0,
            le=16 * _TIB,
            description="Memory locked for standbys, in bytes; 0: as the process may lock.",
        ),
    ] = 0
