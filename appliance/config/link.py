"""Hold the part of the configuration that says how an appliance keeps in touch with its hub.

What this room does: the table `link`, described and bounded as in `tree`.
What it knows: where the hub is was learnt by `appliance enrol`, and is no key.
What it never does: dial (`sync.link` does).
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from appliance.config.section import Section

_DAY_S = 86_400.0


class Link(Section):
    """The stream on which a hub's hints come and reports go. Without it, polling goes on."""

    enabled: Annotated[
        bool, Meta(description="Whether to dial the hub for hints, once enrolled.")
    ] = True
    push_address: Annotated[
        str, Meta(description="Address 'HOST:PORT' to dial; empty: the one the hub told.")
    ] = ""
    heartbeat_s: Annotated[
        float,
        Meta(gt=0, le=3600, description="How often each side hears from the other, in s."),
    ] = 60.0
    heartbeats_missed: Annotated[
        int,
        Meta(ge=1, le=100, description="After so many unanswered heartbeats it dials again."),
    ] = 3
    keepalive_s: Annotated[
        float,
        Meta(ge=10, le=3600, description="Interval of gRPC's own pings, in s; the hub takes 10."),
    ] = 60.0
    dial_timeout_s: Annotated[
        float, Meta(gt=0, le=600, description="How long dialling or renewing may take, in s.")
    ] = 30.0
    retry_s_min: Annotated[
        float, Meta(gt=0, le=3600, description="Bound of the first random wait, in s.")
    ] = 1.0
    retry_s_max: Annotated[
        float, Meta(gt=0, le=_DAY_S, description="Bound of all random waits, in s.")
    ] = 300.0
    hint_spread_s: Annotated[
        float,
        Meta(ge=0, le=_DAY_S, description="A hint is followed after a random wait up to this."),
    ] = 2.0
    renew_check_s: Annotated[
        float,
        Meta(gt=0, le=_DAY_S, description="How often the certificate's age is looked at, in s."),
    ] = 3600.0
    outbox_reports: Annotated[
        int,
        Meta(ge=16, le=1_000_000, description="Reports that wait; the oldest go first."),
    ] = 10_000
    outbox_in_flight: Annotated[
        int, Meta(ge=1, le=1024, description="Reports sent and not yet acknowledged.")
    ] = 32
