"""Find where things are: directories, the daemon's socket, the embedded demo model.

What this room does: the default directories for root and for everybody else; the address a client
command talks to.
What it knows: the XDG variables, the only environment the commands read.
What it never does: create anything, or connect.
"""

from __future__ import annotations

import os
import tempfile
from importlib import resources
from pathlib import Path

from appliance.cli.exits import CONFIG, CommandFailed
from appliance.config import Grpc

SYSTEM_STATE_DIR = Path("/var/lib/appliance")
SYSTEM_RUNTIME_DIR = Path("/run/appliance")
DEMO_VERSION = "2"


def state_dir() -> Path:
    """Name the default state directory of this user."""
    if os.geteuid() == 0:
        return SYSTEM_STATE_DIR
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "appliance"


def runtime_dir() -> Path:
    """Name the default runtime directory of this user."""
    if os.geteuid() == 0:
        return SYSTEM_RUNTIME_DIR
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base:
        return Path(base) / "appliance"
    return Path(tempfile.gettempdir()) / f"appliance-{os.getuid()}"


def socket_address(directory: Path) -> str:
    """Name the gRPC socket in a runtime directory, as an address."""
    return f"unix:{directory / Grpc().unix_path}"


def client_address() -> str:
    """Name the daemon a client command means: this user's own if it has a socket, else root's."""
    for directory in (runtime_dir(), SYSTEM_RUNTIME_DIR):
        if (directory / Grpc().unix_path).exists():
            return socket_address(directory)
    return socket_address(runtime_dir())


def embedded_file(version: str = DEMO_VERSION) -> Path:
    """Name where a version of the demo model that comes with the program is."""
    directory = Path(str(resources.files("appliance"))) / "models" / "demo"
    return directory / f"demo-{version}.q8_0.gguf"


def demo_model() -> Path:
    """Find the demo model that comes with the program. Raises as `demo_version`."""
    return demo_version(DEMO_VERSION)


def demo_version(version: str) -> Path:
    """Find one version of the demo model: 1, 2 or the damaged 3.

    Raises:
        CommandFailed: it is not there.
    """
    path = embedded_file(version)
    if not path.is_file():
        raise CommandFailed(f"{path}: the embedded demo model is not installed", CONFIG)
    return path
