"""Hold the part of the configuration that a hub reads.

What this room does: the table `hub`, described and bounded as in `tree`.
What it knows: `appliance hub serve` reads this table and `store`; an appliance ignores it.
What it never does: resolve an address, or listen (`hub` does).
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from appliance.config.section import Section

_DAY_S = 86_400.0


class Hub(Section):
    """The hub, where this program is one: `appliance hub serve`. An appliance reads none of it."""

    state_dir: Annotated[
        str,
        Meta(min_length=1, description="Directory of the repository, the inventory and the CA."),
    ] = "/var/lib/appliance-hub"
    online_keys_dir: Annotated[
        str,
        Meta(description="Directory of the keys that sign on line; empty: online in state_dir."),
    ] = ""
    listen: Annotated[
        str, Meta(min_length=1, description="Address 'HOST:PORT' of HTTPS; port 0: any free one.")
    ] = "0.0.0.0:8440"
    push_listen: Annotated[
        str, Meta(description="Address 'HOST:PORT' that appliances dial for hints; empty: none.")
    ] = "0.0.0.0:8441"
    names: Annotated[
        tuple[str, ...],
        Meta(
            min_length=1,
            max_length=32,
            description="Names and addresses under which appliances know this hub.",
        ),
    ] = ("localhost", "127.0.0.1")
    push_address: Annotated[
        str,
        Meta(
            description=(
                "Address 'HOST:PORT' that appliances are told to dial; empty: the first of names "
                "and the port of push_listen."
            )
        ),
    ] = ""
    certificate_days: Annotated[
        float,
        Meta(gt=0, le=3650, description="Life of an appliance's certificate, in days."),
    ] = 90.0
    certificate_grace_days: Annotated[
        float,
        Meta(ge=0, le=3650, description="How long after its end it can be renewed, in days."),
    ] = 180.0
    server_certificate_days: Annotated[
        float,
        Meta(gt=0, le=3650, description="Life of the hub's own certificate, in days."),
    ] = 90.0
    connections_max: Annotated[
        int, Meta(ge=1, le=65_536, description="HTTPS connections at the same time.")
    ] = 4096
    device_connections_max: Annotated[
        int, Meta(ge=1, le=1024, description="HTTPS connections of one appliance.")
    ] = 16
    head_timeout_s: Annotated[
        float, Meta(gt=0, le=600, description="How long a client may take for its headers, in s.")
    ] = 10.0
    body_timeout_s: Annotated[
        float, Meta(gt=0, le=600, description="How long a client may take for its body, in s.")
    ] = 10.0
    write_timeout_s: Annotated[
        float, Meta(gt=0, le=3600, description="How long one write to a client may block, in s.")
    ] = 60.0
    sessions_max: Annotated[
        int, Meta(ge=1, le=65_536, description="Appliances that wait for hints.")
    ] = 4096
    session_idle_s: Annotated[
        float,
        Meta(gt=0, le=_DAY_S, description="A session that says nothing for so long ends, in s."),
    ] = 200.0
    session_s: Annotated[
        float,
        Meta(gt=0, le=30 * _DAY_S, description="Longest life of a session, in s; it dials again."),
    ] = 6 * 3600.0
    reports_kept: Annotated[
        int, Meta(ge=1, le=1_000_000, description="Reports kept of each appliance.")
    ] = 1000
    watch_s: Annotated[
        float,
        Meta(gt=0, le=3600, description="How often the repository is looked at for news, in s."),
    ] = 0.25
    status_s: Annotated[
        float,
        Meta(ge=0, le=3600, description="How long a revocation may take to act, in s."),
    ] = 1.0
    resign_check_s: Annotated[
        float,
        Meta(gt=0, le=_DAY_S, description="How often is looked whether metadata must be signed."),
    ] = 600.0
    drain_s: Annotated[
        float,
        Meta(ge=0, le=3600, description="How long transfers may finish after SIGTERM, in s."),
    ] = 30.0
