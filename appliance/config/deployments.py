"""Hold what the configuration says of learning of versions, and of trying them.

What this room does: the table `deployments`.
What it knows: every bound and bar of a deployment that an operator could want; what a publisher
signs of a strategy is not here, for a site may only be more careful.
What it never does: read a calendar expression; `sync.schedule` does, and refuses a wrong one.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from appliance.config.section import Section

_DAY_S = 86_400.0


class Deployments(Section):
    """When new versions are looked for, when and how they are tried, and what is kept of it."""

    refresh_s: Annotated[
        float,
        Meta(ge=300, le=31 * _DAY_S, description="How often to look for new versions, in s."),
    ] = 3600.0
    refresh_jitter_s: Annotated[
        float,
        Meta(ge=0, le=_DAY_S, description="By how much each look is moved at random, in s."),
    ] = 300.0
    refresh_at: Annotated[
        tuple[str, ...],
        Meta(
            max_length=32,
            description=(
                "Further moments to look, as cron expressions with names for weekdays, such as "
                '"30 2 * * mon-fri".'
            ),
        ),
    ] = ()
    inbox_dir: Annotated[
        str,
        Meta(description="Directory in which dropped bundles are taken in; empty: there is none."),
    ] = ""
    inbox_retry_s: Annotated[
        float,
        Meta(
            gt=0,
            le=_DAY_S,
            description=(
                "The longest wait until a bundle is tried again that a full disk, or a file that "
                "was not to be had, stood in the way of, in s."
            ),
        ),
    ] = 300.0
    time_zone: Annotated[
        str,
        Meta(max_length=64, description="Time zone of the site, as in Europe/Berlin; empty: UTC."),
    ] = ""
    windows: Annotated[
        tuple[str, ...],
        Meta(
            max_length=32,
            description=(
                "When a version may be activated: the moment a window opens, as in refresh_at, and "
                'for how long, such as "0 1 * * sat,sun 4h"; none: at any time.'
            ),
        ),
    ] = ()
    needs_approval: Annotated[
        bool, Meta(description="Whether a person must approve each version before users meet it.")
    ] = False
    quantisations: Annotated[
        tuple[
            Annotated[
                str,
                Meta(
                    pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}=[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
                ),
            ],
            ...,
        ],
        Meta(
            max_length=64,
            description=(
                'The edition that is taken of a model, such as "demo=Q4_K_M"; of other models the '
                "first that fits into memory, in their publisher's order."
            ),
        ),
    ] = ()
    memory_slack_bytes: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 40,
            description=(
                "What a candidate may take beyond the memory its publisher states, its KV cells "
                "not counted, in bytes."
            ),
        ),
    ] = 1 << 30
    may_stop_active: Annotated[
        bool,
        Meta(
            description=(
                "Whether the active version may be stopped first where a new one does not fit "
                "beside it, if its publisher allows it too."
            )
        ),
    ] = False
    revoked_active: Annotated[
        Literal["warn", "switch", "stop"],
        Meta(
            description=(
                "What happens when the version in use is revoked: warn; switch to the standby, if "
                "there is a good one; or stop serving it."
            )
        ),
    ] = "switch"
    regret_s: Annotated[
        float,
        Meta(
            ge=0,
            le=31 * _DAY_S,
            description="How long after its commit bad answers of a version undo it, in s.",
        ),
    ] = _DAY_S
    attempts_max: Annotated[
        int,
        Meta(ge=1, le=100, description="Tries of a version that end without blame; then no more."),
    ] = 3
    attempt_wait_s: Annotated[
        float,
        Meta(ge=1, le=_DAY_S, description="Least time between two tries, in s; doubles each time."),
    ] = 3600.0
    entries_max: Annotated[
        int,
        Meta(ge=32, le=10_000, description="States one deployment may enter from its loading on."),
    ] = 64
    reboots_max: Annotated[
        int,
        Meta(ge=0, le=100, description="Power cuts after which one deployment goes on."),
    ] = 2
    tick_s: Annotated[
        float, Meta(gt=0, le=60, description="How often deployments are looked at, in s.")
    ] = 1.0
    act_retry_s: Annotated[
        float, Meta(gt=0, le=3600, description="Wait before a failed act is tried again, in s.")
    ] = 5.0
    act_tries_max: Annotated[
        int, Meta(ge=1, le=100, description="Tries of an act on the way back; then a person.")
    ] = 3
    bad_min: Annotated[
        int, Meta(ge=1, le=10_000, description="Least bad answers of a kind that fail a version.")
    ] = 3
    bad_over: Annotated[
        float,
        Meta(ge=0, le=1, description="Share of bad answers that is over the active version's."),
    ] = 0.05
    time_ratio_max: Annotated[
        float,
        Meta(ge=1, le=100, description="Most that answers may take, as a factor of the active's."),
    ] = 1.5
    slack_ms: Annotated[
        float, Meta(ge=0, le=60_000, description="And so much more that does not matter, in ms.")
    ] = 50.0
    agreed_min: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="Least that shadowed answers are like the active version's; 0: any.",
        ),
    ] = 0.0
    history_max: Annotated[
        int, Meta(ge=10, le=100_000, description="Ended deployments that are remembered.")
    ] = 1000
