"""Keep finished sequences as a cache of prefixes, within bounds.

What this room does: the list of parked sequences, what each has been good for, and which one goes
when room is needed.
What it knows: ages, sizes and hits; what an operator pinned stays until nothing else is left.
What it never does: free a cell or move a sequence: it names who goes, the scheduler does it.

The one to go is the one with the greatest `age x sqrt(cells) / (1 + hits)`: what was not asked for
in a long time, first of all if it is large and was hardly ever asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(slots=True)
class _Entry:
    """One parked sequence. Times are monotonic milliseconds."""

    cells: int
    used_ms: float
    hits: int
    is_pinned: bool


class Parked:
    """The finished sequences that still hold their cells. Not thread-safe."""

    def __init__(self) -> None:
        """Begin with none."""
        self._entries: dict[int, _Entry] = {}

    def __contains__(self, seq_id: int) -> bool:
        """Say whether this sequence is parked."""
        return seq_id in self._entries

    def __len__(self) -> int:
        """Count the parked sequences."""
        return len(self._entries)

    def ids(self, *, pinned: bool = True) -> tuple[int, ...]:
        """Name them; not `pinned`: without those an operator pinned."""
        return tuple(
            seq_id for seq_id, entry in self._entries.items() if pinned or not entry.is_pinned
        )

    def cells(self, seq_id: int) -> int:
        """Count the cells one reads."""
        return self._entries[seq_id].cells

    def add(self, seq_id: int, cells: int, now_ms: float, *, is_pinned: bool) -> None:
        """Park a sequence."""
        assert seq_id not in self._entries
        self._entries[seq_id] = _Entry(cells, now_ms, 0, is_pinned)

    def hit(self, seq_id: int, now_ms: float) -> None:
        """Note that a request took a prefix over; others than parked ones don't count."""
        entry = self._entries.get(seq_id)
        if entry is not None:
            entry.hits += 1
            entry.used_ms = now_ms

    def replace(self, seq_id: int, others: Iterable[int]) -> list[int]:
        """Let one inherit the hits of others that it covers; returns those, which may go."""
        gone = [
            other
            for other in others
            if other in self._entries and not self._entries[other].is_pinned
        ]
        entry = self._entries[seq_id]
        entry.hits += sum(self._entries.pop(other).hits for other in gone)
        return gone

    def remove(self, seq_id: int) -> None:
        """Forget one."""
        del self._entries[seq_id]

    def worst(
        self, now_ms: float, *, pinned: bool, wanted: Callable[[int], bool] = lambda _: True
    ) -> int | None:
        """Name the one to go, among those that `wanted` allows; None: there is none.

        pinned: what an operator pinned may go too, if nothing else can.
        """
        best: int | None = None
        best_score = (False, -1.0)
        for seq_id, entry in self._entries.items():
            if (entry.is_pinned and not pinned) or not wanted(seq_id):
                continue
            age_ms = max(1.0, now_ms - entry.used_ms)
            score = (not entry.is_pinned, age_ms * math.sqrt(entry.cells) / (1 + entry.hits))
            if score > best_score:
                best, best_score = seq_id, score
        return best
