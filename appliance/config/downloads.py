"""Hold what the configuration says of fetching and keeping the files of versions.

What this room does: the tables `downloads` and `bandwidth`.
What it knows: every bound of the downloader, the store of files and the scrubber.
What it never does: open a connection or a file.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from appliance.config.section import Section

_MIB = 1024**2
_GIB = 1024**3
_RATE_MAX = 2**40
_TIME_OF_DAY = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"
_DAY = "(mon|tue|wed|thu|fri|sat|sun)"


class Downloads(Section):
    """How files of versions are fetched, kept and checked again."""

    connections: Annotated[
        int, Meta(ge=1, le=32, description="Requests for parts of a file at the same time.")
    ] = 4
    request_bytes: Annotated[
        int,
        Meta(ge=4 * _MIB, le=_GIB, description="Most that one request asks for, in bytes."),
    ] = 32 * _MIB
    bytes_per_s: Annotated[
        int,
        Meta(
            ge=0,
            le=_RATE_MAX,
            description=(
                "Bandwidth of all connections together where no bandwidth table applies, in "
                "bytes per second; 0: without a limit."
            ),
        ),
    ] = 0
    stall_s: Annotated[
        float,
        Meta(gt=0, le=3600, description="How long a source may send nothing, in s."),
    ] = 30.0
    bytes_per_s_min: Annotated[
        int,
        Meta(
            ge=0,
            le=_RATE_MAX,
            description="Slowest connection that is kept, in bytes per second; 0: any.",
        ),
    ] = 1024
    rate_window_s: Annotated[
        float,
        Meta(gt=0, le=3600, description="Over how long that is measured, in s."),
    ] = 30.0
    failures_max: Annotated[
        int,
        Meta(
            ge=1,
            le=10_000,
            description=(
                "Failed requests in a row without new bytes, after which a download waits for "
                "retry_s; while bytes come there is no limit."
            ),
        ),
    ] = 32
    retry_s: Annotated[
        float,
        Meta(
            gt=0,
            le=86_400,
            description="Wait before a download that can't go on is tried again, in s.",
        ),
    ] = 60.0
    backoff_ms: Annotated[
        float,
        Meta(ge=1, le=600_000, description="Wait after a source's first failure, in ms; doubles."),
    ] = 500.0
    backoff_ms_max: Annotated[
        float, Meta(ge=1, le=3_600_000, description="Longest such wait, in ms.")
    ] = 60_000.0
    retry_after_s_max: Annotated[
        float,
        Meta(ge=0, le=86_400, description="Longest wait that a source may ask for, in s."),
    ] = 3600.0
    redirects_max: Annotated[
        int,
        Meta(ge=0, le=20, description="Redirects followed, on the same scheme, host and port."),
    ] = 3
    record_bytes: Annotated[
        int,
        Meta(
            ge=_MIB,
            le=4 * _GIB,
            description="Bytes after which progress is made durable; at most so much is lost.",
        ),
    ] = 64 * _MIB
    record_s: Annotated[
        float,
        Meta(gt=0, le=3600, description="Time after which progress is made durable, in s."),
    ] = 10.0
    free_bytes_min: Annotated[
        int,
        Meta(ge=0, le=2**50, description="Space that downloads leave free on the disk, in bytes."),
    ] = 2 * _GIB
    versions_kept: Annotated[
        int,
        Meta(
            ge=1,
            le=1000,
            description="Versions of a model whose files are kept, those in use among them.",
        ),
    ] = 3
    scrub_bytes_per_s: Annotated[
        int,
        Meta(
            ge=65_536,
            le=_RATE_MAX,
            description="How fast kept files are read again to find damage, in bytes per second.",
        ),
    ] = 16 * _MIB


class Bandwidth(Section):
    """The bandwidth of downloads at certain times. Repeat the table; the first that applies holds.

    Times are the wall clock's in server.time_zone; a span that ends before it begins goes past
    midnight, and belongs to the day on which it begins.
    """

    bytes_per_s: Annotated[
        int,
        Meta(ge=0, le=_RATE_MAX, description="The limit, in bytes per second; 0: downloads pause."),
    ]
    days: Annotated[
        str,
        Meta(
            pattern=rf"^{_DAY}(-{_DAY})?(,{_DAY}(-{_DAY})?)*$",
            max_length=64,
            description="Days, as 'mon-fri' or 'sat,sun'.",
        ),
    ] = "mon-sun"
    begins: Annotated[
        str, Meta(pattern=_TIME_OF_DAY, description="When it begins, as '08:00'.")
    ] = "00:00"
    ends: Annotated[
        str, Meta(pattern=_TIME_OF_DAY, description="When it ends; '00:00' is midnight.")
    ] = "00:00"
