"""Make the moves of a plan: empty, copy, save and restore sequences.

What this room does: the scheduler's moves on the real context, in their order; the states saved in
host memory.
What it knows: a state is restored by the context that saved it.
What it never does: decide on a move, or lose a state that it was told to keep.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from appliance.runtime.jobs import Move, MoveKind
from appliance.runtime.llama import Context

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Mover:
    """The hands of one scheduler. Used by the thread that owns the context."""

    def __init__(self, context: Context) -> None:
        """Move the sequences of this context."""
        self._context = context
        self._saved: dict[int, NDArray[np.uint8]] = {}

    @property
    def saved_count(self) -> int:
        """Count the states that are kept."""
        return len(self._saved)

    def make(self, moves: Iterable[Move]) -> list[Move]:
        """Make these moves, in order; blocks for as long as memory is copied.

        Returns those whose state could not be restored: their sequences are empty.
        """
        context = self._context
        lost: list[Move] = []
        for move in moves:
            if move.kind is MoveKind.REMOVE:
                context.remove(move.seq_id)
            elif move.kind is MoveKind.COPY:
                context.copy_prefix(move.source, move.seq_id, move.tokens)
            elif move.kind is MoveKind.SAVE:
                self._saved[move.state] = context.save_state(move.seq_id)
            elif move.kind is MoveKind.FORGET:
                del self._saved[move.state]
            elif not self._restore(move):
                lost.append(move)
        return lost

    def _restore(self, move: Move) -> bool:
        is_last = move.kind is MoveKind.TAKE_BACK
        data = self._saved.pop(move.state) if is_last else self._saved[move.state]
        context = self._context
        if not context.restore_state(move.seq_id, data):
            return False
        # It was saved in the same plan in which it could not be restored: it never held them.
        if context.position_max(move.seq_id) + 1 < move.tokens:
            context.remove(move.seq_id)
            return False
        return context.cut(move.seq_id, move.tokens)
