"""Hold the part of the configuration that says where and how clients are listened to.

What this room does: the tables `grpc` and `rest`, described and bounded as in `tree`.
What it knows: both listen on this machine only.
What it never does: resolve an address, or listen (`api` does).
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from appliance.config.section import Section

_GIB = 1024**3


class Grpc(Section):
    """The gRPC listeners: a Unix socket always, loopback TCP if asked for."""

    unix_path: Annotated[
        str, Meta(min_length=1, description="Path of the Unix socket, relative to runtime_dir.")
    ] = "grpc.sock"
    tcp: Annotated[
        str, Meta(description="Loopback address 'HOST:PORT' to listen on as well; empty: none.")
    ] = ""
    message_bytes_max: Annotated[
        int, Meta(ge=65_536, le=_GIB, description="Largest message received, in bytes.")
    ] = 16 * 1024 * 1024
    calls_max: Annotated[
        int, Meta(ge=1, le=65_536, description="Calls at the same time; more are refused.")
    ] = 512
    reflection: Annotated[
        bool, Meta(description="Whether clients may ask the server for its services.")
    ] = True


class Rest(Section):
    """The OpenAI-compatible listener and the health and metrics pages."""

    tcp: Annotated[
        str, Meta(description="Loopback address 'HOST:PORT' to listen on; empty: no REST.")
    ] = "127.0.0.1:8321"
    allowed_hosts: Annotated[
        tuple[str, ...],
        Meta(max_length=64, description="Host names a request may be addressed to, without port."),
    ] = ("localhost", "127.0.0.1", "[::1]")
    allowed_origins: Annotated[
        tuple[str, ...],
        Meta(max_length=64, description="Origins whose web pages may call, e.g. 'http://a:8080'."),
    ] = ()
    body_bytes_max: Annotated[
        int, Meta(ge=65_536, le=_GIB, description="Largest request body, in bytes.")
    ] = 16 * 1024 * 1024
    connections_max: Annotated[
        int, Meta(ge=1, le=65_536, description="Connections at the same time.")
    ] = 512
    head_timeout_s: Annotated[
        float, Meta(gt=0, le=600, description="How long a client may take for its headers, in s.")
    ] = 10.0
    body_timeout_s: Annotated[
        float, Meta(gt=0, le=3600, description="How long a client may take for its body, in s.")
    ] = 30.0
    write_timeout_s: Annotated[
        float, Meta(gt=0, le=3600, description="How long one write to a client may block, in s.")
    ] = 30.0
