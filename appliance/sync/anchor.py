"""Keep the root where trust begins, as an operator brought it.

What this room does: takes the first root of a repository, once, and gives it back at every refresh.
What it knows: all trust hangs on these bytes, so they come by hand, with a digest that the holder
of the root keys told on another way. A hub's word is not enough: a stolen hub would give its own.
What it never does: take one over the network, or put one in another's place.
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from appliance.errors import ConfigError, StoreError, Untrusted
from appliance.store import write_durably
from appliance.sync.trust import ROOT_BYTES_MAX, RootFacts, read_root

FILE = "root.json"
_WHAT = "the root"


def place(state_dir: Path) -> Path:
    """Name the file that holds the root."""
    return state_dir / FILE


def install(state_dir: Path, data: bytes, sha256: str) -> RootFacts:
    """Begin to trust `data`, whose digest must be `sha256`; blocks for two fsyncs.

    The same root may be installed again.

    Raises:
        Untrusted: it is another, no root, not signed as it says itself, or there is one already.
        StoreError: it can't be written.
    """
    if not hmac.compare_digest(hashlib.sha256(data).hexdigest(), sha256.strip().lower()):
        raise Untrusted(what=_WHAT, reason="its SHA-256 is not the one that was given")
    facts = read_root(data)
    try:
        if place(state_dir).exists():
            if place(state_dir).read_bytes() != data:
                reason = f"another is in {place(state_dir)}; whoever took it away would begin anew"
                raise Untrusted(what=_WHAT, reason=reason)
            return facts
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(place(state_dir), data, mode=0o444)
    except OSError as error:
        raise StoreError(database=FILE, reason=error.strerror or str(error)) from error
    return facts


def load(state_dir: Path) -> bytes:
    """Read the root where trust begins.

    Raises:
        ConfigError: there is none, or it can't be read.
    """
    try:
        with place(state_dir).open("rb") as file:
            return file.read(ROOT_BYTES_MAX)
    except OSError as error:
        raise ConfigError(
            key=str(place(state_dir)),
            reason=f"{error.strerror}; install the repository's first root by 'appliance trust'",
        ) from error
