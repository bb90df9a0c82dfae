"""Check the addresses the faces listen on.

What this room does: reads HOST:PORT and refuses what is not this machine's own loopback; claims the
path of a Unix socket.
What it knows: the longest path a Unix socket may have; that a socket file may outlive its daemon.
What it never does: listen, or take a socket from a daemon that still answers on it.
"""

from __future__ import annotations

import ipaddress
import socket
import stat
from pathlib import Path

from appliance.errors import ConfigError

UNIX_PATH_BYTES_MAX = 107  # sockaddr_un, without its final zero
PROBE_TIMEOUT_S = 1.0
PORT_MAX = 65_535


def loopback_address(key: str, value: str) -> tuple[str, int]:
    """Read 'HOST:PORT'; port 0 lets the system choose.

    Raises:
        ConfigError: it is not of that form, or the host is not loopback.
    """
    host, colon, port = value.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > PORT_MAX:
        raise ConfigError(key=key, reason=f"'{value}' is not HOST:PORT")
    if host == "localhost":
        host = "127.0.0.1"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise ConfigError(key=key, reason=f"'{host}' is not a loopback address") from None
    if not address.is_loopback:
        raise ConfigError(key=key, reason=f"'{host}' is not a loopback address")
    return str(address), int(port)


def shown(host: str, port: int) -> str:
    """Write an address the way `loopback_address` reads it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def claim_unix_path(key: str, path: Path) -> None:
    """Make way for a Unix socket at `path`; blocks at most PROBE_TIMEOUT_S.

    Raises:
        ConfigError: the path is too long, is something else, or a daemon answers there.
    """
    if len(bytes(path)) > UNIX_PATH_BYTES_MAX:
        reason = f"{path} is longer than {UNIX_PATH_BYTES_MAX} bytes, the limit for a Unix socket"
        raise ConfigError(key=key, reason=reason)
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(key=key, reason=f"{path} exists and is not a socket")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PROBE_TIMEOUT_S)
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise ConfigError(key=key, reason=f"another process answers on {path}")
