"""Choose which versions' files may go. Pure.

What this room does: keeps the newest versions of each model, then makes room for the floor of free
space by letting the oldest go.
What it knows: a file may belong to several versions and takes its space once.
What it never does: let a version go that is in use, whatever the space.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from appliance.contract.release import BlobRef


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A version on this disk. `in_use`: active, standby, candidate, pinned, or being fetched."""

    model: str
    version: str
    age: int  # 0 is the newest of its model
    in_use: bool
    blobs: tuple[BlobRef, ...]


def to_drop(
    kept: Sequence[Kept], *, versions_max: int, free_bytes: int, floor_bytes: int
) -> list[Kept]:
    """List the versions to drop, in order: those over the number, then for space, oldest first."""
    by_age = sorted(kept, key=lambda one: -one.age)
    counts = {one.model: 0 for one in kept}
    for one in kept:
        counts[one.model] += 1
    dropped: list[Kept] = []
    stays = list(by_age)
    for one in by_age:
        missing = floor_bytes - free_bytes - _freed(dropped, stays)
        too_many = counts[one.model] > versions_max
        if one.in_use or not (too_many or missing > 0):
            continue
        dropped.append(one)
        stays.remove(one)
        counts[one.model] -= 1
    return dropped


def _freed(dropped: Sequence[Kept], stays: Sequence[Kept]) -> int:
    needed = {blob.sha256 for one in stays for blob in one.blobs}
    gone = {blob.sha256: blob.length for one in dropped for blob in one.blobs}
    return sum(length for digest, length in gone.items() if digest not in needed)
