"""Count the cells of the KV cache: llama.cpp has no call that tells how many are free.

What this room does: books every cell that a sequence has written, once, however many sequences
share it, and gives them back when the last of those is removed.
What it knows: in a unified cache a copy of a sequence (`llama_memory_seq_cp`) costs no cell; a
cell is free when no sequence holds it.
What it never does: decide who gets cells (the scheduler does), or book what it has not got.

A sequence holds a row of spans. Writing extends its last span. A fork freezes that span, gives
both sequences a share in it, and lets each write into a span of its own from then on.
"""

from __future__ import annotations


class _Span:
    __slots__ = ("cells", "holders")

    def __init__(self) -> None:
        self.cells = 0
        self.holders = 1


class Ledger:
    """The cells of one context. Not thread-safe: the scheduler owns it."""

    def __init__(self, cells_total: int) -> None:
        """Begin with all cells free."""
        assert cells_total > 0
        self.cells_total = cells_total
        self._used = 0
        self._spans: dict[int, list[_Span]] = {}

    @property
    def used(self) -> int:
        """Count the cells that at least one sequence holds."""
        return self._used

    @property
    def free(self) -> int:
        """Count the cells that no sequence holds."""
        return self.cells_total - self._used

    @property
    def is_empty(self) -> bool:
        """Say whether no sequence is open and no cell is held."""
        return not self._spans and self._used == 0

    def held(self, seq_id: int) -> int:
        """Count the cells that this sequence reads, shared ones included."""
        return sum(span.cells for span in self._spans[seq_id])

    def open(self, seq_id: int) -> None:
        """Begin a sequence that holds nothing."""
        assert seq_id not in self._spans, f"sequence {seq_id} is open already"
        self._spans[seq_id] = [_Span()]

    def grow(self, seq_id: int, cells: int) -> None:
        """Book cells that this sequence has written; there must be as many free."""
        assert 0 <= cells <= self.free, f"{cells} cells booked, {self.free} free"
        tail = self._spans[seq_id][-1]
        assert tail.holders == 1, "a shared span was written to"
        tail.cells += cells
        self._used += cells

    def fork(self, source: int, target: int) -> None:
        """Let a new sequence share everything the source holds now; costs no cell."""
        assert target not in self._spans, f"sequence {target} is open already"
        shared = self._spans[source]
        if shared[-1].holders == 1 and shared[-1].cells == 0:
            shared = shared[:-1]
        for span in shared:
            span.holders += 1
        self._spans[source] = [*shared, _Span()]
        self._spans[target] = [*shared, _Span()]

    def close(self, seq_id: int) -> int:
        """End a sequence; returns how many cells that freed (none while others share them)."""
        freed = 0
        for span in self._spans.pop(seq_id):
            span.holders -= 1
            if span.holders == 0:
                freed += span.cells
        self._used -= freed
        return freed

    def recount(self) -> int:
        """Count the used cells from the spans: unlike `used`, the books are wrong."""
        seen = {id(span): span.cells for spans in self._spans.values() for span in spans}
        return sum(seen.values())
