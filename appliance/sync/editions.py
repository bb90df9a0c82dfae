"""Choose which edition of a release this appliance takes: one quantisation of its weights. Pure.

What this room does: the first that suits, in the publisher's order, which is the best first.
What it knows: an edition that fits beside the active version can be tried in its shadow; one that
fits only where that is stopped first is taken only where all agree to that.
What it never does: read the machine, or choose twice: what was chosen is written down with the
version, so its files stay the same ones.

| memory                                              | chosen, among those the operator allows |
|-----------------------------------------------------|-----------------------------------------|
| is not known                                        | the first                               |
| suffices beside what is loaded                      | the first that fits                     |
| suffices once the active one stops, and it may stop | the first that fits                     |
| does not suffice even then, and it may stop         | the smallest: only stopping shows it    |
| does not suffice                                    | none                                    |
"""

from __future__ import annotations

from collections.abc import Iterable

from appliance.contract.release import Release
from appliance.domain import Value


class Room(Value):
    """What there is for an edition. Bytes.

    free_bytes: beside all that is loaded; None: not known. freed_bytes: so much more once the
    active version is stopped. wanted: the edition that the operator named; empty: any.
    """

    free_bytes: int | None = None
    freed_bytes: int = 0
    wanted: str = ""


class NoEdition(Value):
    """Why none is taken. is_known: the release has the edition that the operator named."""

    reason: str
    is_known: bool = True


def allowed(release: Release, wanted: str) -> tuple[str, ...]:
    """List the editions that may be taken, the best first; empty: there is none of that name."""
    return tuple(one for one in release.quantisations if wanted in ("", one))


def least_bytes(release: Release, editions: Iterable[str]) -> int:
    """Say how much memory the smallest of these editions needs."""
    return min((release.needed_bytes(one) for one in editions), default=0)


def choose(release: Release, room: Room, *, may_stop: bool) -> str | NoEdition:
    """Choose the edition to take. may_stop: the active version may be stopped for it."""
    editions = allowed(release, room.wanted)
    if not editions:
        reason = f"the operator wants it in {room.wanted}; it is in {_list(release.quantisations)}"
        return NoEdition(reason=reason, is_known=False)
    if room.free_bytes is None:
        return editions[0]
    alone = room.free_bytes + (room.freed_bytes if may_stop else 0)
    for free_bytes in (room.free_bytes, alone):
        for one in editions:
            if release.needed_bytes(one) <= free_bytes:
                return one
    if may_stop:  # that a machine has as much at all was seen to before
        return min(editions, key=release.needed_bytes)
    needed = least_bytes(release, editions)
    return NoEdition(reason=f"it needs {needed} bytes of memory, {room.free_bytes} are available")


def _list(quantisations: Iterable[str]) -> str:
    return ", ".join(one or "one that has no name" for one in quantisations)
