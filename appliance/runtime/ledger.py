"""Count the cells of the KV cache: llama.cpp has no call that tells how many are free.

What this room does: books every cell that a sequence has written, once, however many sequences
share it, and gives them back when the last of those is removed.
What it knows: in a unified cache a copy of a sequence, or of its first cells
(`llama_memory_seq_cp`), costs no cell; a cell is free when no sequence holds it.
What it never does: decide who gets cells (the scheduler does), or book what it has not got.

A sequence holds a row of spans. Writing extends its last span, which nobody else holds. A fork
cuts the span that its end lies in, so that source and target hold the same spans up to there, and
lets each write into a span of its own from then on.
"""

from __future__ import annotations

from collections.abc import Collection


class _Span:
    """Neighbouring cells that always have the same holders."""

    __slots__ = ("cells", "holders")

    def __init__(self, cells: int, holders: set[int]) -> None:
        self.cells = cells
        self.holders = holders


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

    def open_ids(self) -> Collection[int]:
        """Name the sequences that are open."""
        return self._spans.keys()

    def held(self, seq_id: int) -> int:
        """Count the cells that this sequence reads, shared ones included."""
        return sum(span.cells for span in self._spans[seq_id])

    def held_only_by(self, seq_ids: Collection[int]) -> int:
        """Count the cells that would be free without these sequences."""
        asked = set(seq_ids)
        seen = {
            id(span): span.cells
            for seq_id in asked
            for span in self._spans[seq_id]
            if span.holders <= asked
        }
        return sum(seen.values())

    def open(self, seq_id: int) -> None:
        """Begin a sequence that holds nothing."""
        assert seq_id not in self._spans, f"sequence {seq_id} is open already"
        self._spans[seq_id] = [_Span(0, {seq_id})]

    def grow(self, seq_id: int, cells: int) -> None:
        """Book cells that this sequence has written; there must be as many free."""
        assert 0 <= cells <= self.free, f"{cells} cells booked, {self.free} free"
        tail = self._spans[seq_id][-1]
        assert len(tail.holders) == 1, "a shared span was written to"
        tail.cells += cells
        self._used += cells

    def fork(self, source: int, target: int, cells: int | None = None) -> None:
        """Let a new sequence share the source's first cells, None: all of them; costs no cell."""
        assert target not in self._spans, f"sequence {target} is open already"
        left = self.held(source) if cells is None else cells
        assert 0 <= left <= self.held(source), f"{left} cells forked of {self.held(source)}"
        shared: list[_Span] = []
        for span in list(self._spans[source]):
            if left == 0:
                break
            head = span if span.cells <= left else self._cut(span, left)
            if head.cells:
                head.holders.add(target)
                shared.append(head)
                left -= head.cells
        self._spans[target] = [*shared, _Span(0, {target})]
        tail = self._spans[source][-1]
        if len(tail.holders) > 1:
            self._spans[source].append(_Span(0, {source}))

    def shrink(self, seq_id: int, cells: int) -> None:
        """Give back the last cells a sequence has written; they must be its own."""
        tail = self._spans[seq_id][-1]
        assert len(tail.holders) == 1, "a shared span was shortened"
        assert 0 <= cells <= tail.cells, f"{cells} cells given back of {tail.cells}"
        tail.cells -= cells
        self._used -= cells

    def close(self, seq_id: int) -> int:
        """End a sequence; returns how many cells that freed (none while others share them)."""
        freed = 0
        for span in self._spans.pop(seq_id):
            span.holders.discard(seq_id)
            if not span.holders:
                freed += span.cells
        self._used -= freed
        return freed

    def recount(self) -> int:
        """Count the used cells from the spans: unlike `used`, the books are wrong."""
        seen = {id(span): span.cells for spans in self._spans.values() for span in spans}
        return sum(seen.values())

    def _cut(self, span: _Span, cells: int) -> _Span:
        """Cut a span in two for all its holders; returns the first part."""
        head = _Span(cells, set(span.holders))
        span.cells -= cells
        for seq_id in span.holders:
            spans = self._spans[seq_id]
            at = next(index for index, one in enumerate(spans) if one is span)
            spans.insert(at, head)
        return head
