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
        self._saved: dict[tuple[int, int], NDArray[np.uint8]] = {}

    @property
    def is_empty(self) -> bool:
        """Say whether no state is saved."""
        return not self._saved

    def make(self, moves: Iterable[Move]) -> list[int]:
        """Make these moves, in order; blocks for as long as memory is copied.

        Returns the tickets whose saved state could not be restored: it is gone, and their sequence
        is empty.
        """
        context = self._context
        lost: list[int] = []
        for move in moves:
            key = (move.ticket, move.choice)
            if move.kind is MoveKind.REMOVE:
                context.remove(move.seq_id)
            elif move.kind is MoveKind.COPY:
                context.copy_prefix(move.source, move.seq_id, move.tokens)
            elif move.kind is MoveKind.SWAP_OUT:
                self._saved[key] = context.save_state(move.seq_id)
            elif move.kind is MoveKind.SWAP_IN:
                if not context.restore_state(move.seq_id, self._saved.pop(key)):
                    lost.append(move.ticket)
            else:
                del self._saved[key]
        return lost
