"""Say whether a server that has been under load for long is as it was before.

What this room does: readings of its processes become checks: memory flat, nothing held, no file
left open, no worker lost, every request ended in a way it may end.
What it knows: that a process grows while it warms up; how much it may grow after that.
What it never does: read a process. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from benchmarks.intervals import slope

GROWTH_BYTES_MAX = 16 * 1024 * 1024  # of one process after its warm-up, over the whole run
WARM_UP = 1 / 3  # of the run
_MIB = 1024 * 1024


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """The processes of a server at one moment, by kind."""

    at_s: float
    rss_bytes: dict[str, int]
    files: dict[str, int]


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that must hold at the end."""

    name: str
    measured: float
    at_most: float
    unit: str

    @property
    def holds(self) -> bool:
        """Say whether it does."""
        return self.measured <= self.at_most

    @property
    def line(self) -> str:
        """Write it in one line."""
        word = "holds" if self.holds else "falls short"
        return f"{self.name}: {self.measured:.4g} {self.unit}  bar <= {self.at_most:g}  {word}"


def memory(readings: Sequence[Reading]) -> list[Check]:
    """Fit the growth of each process after the warm-up, over what is left of the run."""
    begins, ends = readings[0].at_s, readings[-1].at_s
    late = [one for one in readings if one.at_s >= begins + WARM_UP * (ends - begins)]
    found = []
    for kind in readings[-1].rss_bytes:
        seen = [one for one in late if kind in one.rss_bytes]
        per_s = slope([one.at_s for one in seen], [one.rss_bytes[kind] for one in seen])
        grown = per_s * (seen[-1].at_s - seen[0].at_s) / _MIB
        limit = GROWTH_BYTES_MAX / _MIB
        found.append(
            Check(name=f"memory, growth of {kind}", measured=grown, at_most=limit, unit="MiB")
        )
    return found


def files(before: Reading, after: Reading) -> list[Check]:
    """Compare the open files of each process, idle before and idle after."""
    return [
        Check(
            name=f"files left open by {kind}",
            measured=float(after.files.get(kind, 0) - before.files.get(kind, 0)),
            at_most=0.0,
            unit="files",
        )
        for kind in after.files
    ]


def nothing_left(held: Mapping[str, float]) -> list[Check]:
    """Check that what an idle server holds is nothing."""
    return [
        Check(name=f"{name} at the end", measured=count, at_most=0.0, unit="")
        for name, count in held.items()
    ]
