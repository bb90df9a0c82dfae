"""Hold the part of the configuration that says who may come in.

What this room does: the tables `access` and `clients`, described and bounded as in `tree`.
What it knows: a key is configured by its digest.
What it never does: see a key, or compare one (`access.keys` does).
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from appliance.config.section import Section


class Access(Section):
    """Who may come in."""

    require_key: Annotated[
        bool,
        Meta(
            description=(
                "Whether requests over TCP need the key of one of the clients; health pages never "
                "do, and the Unix socket is guarded by its file mode."
            )
        ),
    ] = False


class Client(Section):
    """One application with a key of its own. Repeat the table for each; see `appliance key new`."""

    name: Annotated[
        str,
        Meta(
            max_length=64,
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
            description="Name of the client in logs, audit and the shares of the engine.",
        ),
    ]
    key_sha256: Annotated[
        str,
        Meta(
            pattern=r"^[0-9a-f]{64}$",
            description="SHA-256 of its key in lower-case hexadecimal digits; never the key.",
        ),
    ]
    weight: Annotated[
        float,
        Meta(ge=0.01, le=100, description="Share of the engine beside others of the same class."),
    ] = 1.0
    priority_max: Annotated[
        Literal["interactive", "normal", "batch"],
        Meta(description="Highest class it may ask for: interactive, normal or batch."),
    ] = "interactive"
