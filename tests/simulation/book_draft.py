"""A draft model that is only books: the real rooms on a context that keeps lists of tokens.

What this room does: stands in for the draft model's context in simulations; what llama.cpp would
refuse is an error here, and so is a sequence that doesn't hold what its choice says.
What it knows: the text of every choice, and how often it shall say it rightly.
What it never does: plan (that is `draft_cache`, `draft_model` and `foresight`, the real ones).
"""

# ruff: noqa: SLF001 - the invariants look at the books themselves

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from appliance.runtime.cost import CostModel, StepShape
from appliance.runtime.draft_cache import DraftCache
from appliance.runtime.draft_model import DraftModel, Told
from appliance.runtime.jobs import Choice, Plan
from appliance.runtime.llama import Context, DecodeCode

if TYPE_CHECKING:
    from numpy.typing import NDArray

VOCABULARY = 1000
TICK_MS = 0.01
Say = Callable[[Choice, int], int]  # what a choice draws at a position, whatever happens


class BookContext:
    """A unified KV cache as lists of tokens."""

    def __init__(self, rng: random.Random, *, sequences: int, cells: int, batch: int) -> None:
        self.rng = rng
        self.sequences_max = sequences
        self.batch_tokens = batch
        self.cells_total = cells
        self.refusal_ratio = 0.0
        self.step_ms: Callable[[int], float] = lambda _rows: TICK_MS
        self.now_ms = 0.0
        self.sequences: dict[int, list[int]] = {}
        self.batch: list[tuple[int, int, int]] = []  # sequence, position, token
        self.rows: list[int] = []
        self.likely: Callable[[int, int], int] = lambda _seq_id, _position: 0

    @property
    def used(self) -> int:
        return sum(map(len, self.sequences.values()))

    def set_threads(self, count: int) -> None:
        assert count > 0

    def put(self, at: int, token_ids: Sequence[int], seq_id: int, position: int) -> int:
        del self.batch[at:]
        if not at:
            self.rows.clear()
        self.batch += [(seq_id, position + n, token) for n, token in enumerate(token_ids)]
        return len(self.batch)

    def put_singles(
        self, token_ids: Sequence[int], seq_ids: Sequence[int], positions: Sequence[int]
    ) -> int:
        self.batch = list(zip(seq_ids, positions, token_ids, strict=True))
        self.rows = list(range(len(self.batch)))
        return len(self.batch)

    def want_row(self, at: int) -> None:
        self.rows.append(at)

    def decode(self, count: int) -> DecodeCode:
        assert count == len(self.batch) <= self.batch_tokens
        assert self.rows
        self.now_ms += self.step_ms(count)
        if self.rng.random() < self.refusal_ratio:
            return self.rng.choice([DecodeCode.NO_ROOM, DecodeCode.ABORTED, DecodeCode.INVALID])
        assert self.used + count <= self.cells_total, "no room: the books promised it"
        for seq_id, position, token in self.batch:
            assert 0 <= seq_id < self.sequences_max
            held = self.sequences.setdefault(seq_id, [])
            assert len(held) == position, "a gap in the positions"
            held.append(token)
        return DecodeCode.OK

    def logits(self, rows: int) -> NDArray[np.float32]:
        assert rows <= len(self.rows)
        logits = np.zeros((rows, VOCABULARY), dtype=np.float32)
        for row, at in enumerate(self.rows[:rows]):
            seq_id, position, _ = self.batch[at]
            logits[row, self.likely(seq_id, position + 1)] = 1.0
        return logits

    def cut(self, seq_id: int, tokens: int) -> bool:
        assert 0 < tokens < len(self.sequences[seq_id])
        del self.sequences[seq_id][tokens:]
        return True

    def remove(self, seq_id: int) -> None:
        self.sequences.pop(seq_id, None)

    def clear(self) -> None:
        self.sequences.clear()

    def position_max(self, seq_id: int) -> int:
        return len(self.sequences.get(seq_id, ())) - 1


class BookDraft:
    """A draft model that says what choices draw, rightly as often as `rate` says."""

    def __init__(
        self, rng: random.Random, say: Say, context: BookContext, *, context_tokens: int
    ) -> None:
        self.context = context
        self.rate: Callable[[Choice], float] = lambda _choice: 1.0
        self.cost = CostModel()
        for rows in (1, 8, 16) * 3:
            for decode in (0, rows):
                shape = StepShape(decode=decode, prefill=rows - decode, kv_span=rows)
                self.cost.observe(shape, context.step_ms(rows))
        self.cost.settle()
        self.cache = DraftCache(
            self.cost,
            sequences_max=context.sequences_max,
            cells_total=context.cells_total,
            context_tokens=context_tokens,
        )
        self.model = DraftModel(
            cast("Context", context),
            self.cache,
            vocabulary_size=VOCABULARY,
            clock=lambda: context.now_ms,
        )
        self._rng, self._say = rng, say
        self.context.likely = self._likely

    def tell(self, plan: Plan) -> Told:
        told = self.model.tell(plan, 1)
        for mine, its in zip(plan.spans, told.plan.spans, strict=True):
            assert its.choice is mine.choice
            assert len(its.draft) <= len(mine.draft)
            assert mine.by_model or its.draft == mine.draft
            assert all(0 <= token < VOCABULARY for token in its.draft)
        self.check()
        return told

    def check(self) -> None:
        """Hold the books against what the context holds."""
        gone = set(self.cache._emptied)
        held = {
            seq_id: len(tokens)
            for seq_id, tokens in self.context.sequences.items()
            if seq_id not in gone
        }
        assert held == self.cache.held()
        assert self.cache.cells_used == sum(held.values()) <= self.context.cells_total
        for choice, entry in self.cache._entries.items():
            tokens = self.context.sequences[entry.seq_id]
            assert tokens[: entry.agreed] == list(choice.tokens(0, entry.agreed))

    def _likely(self, seq_id: int, position: int) -> int:
        (choice,) = [
            choice for choice, entry in self.cache._entries.items() if entry.seq_id == seq_id
        ]
        right = self._say(choice, position)
        return right if self._rng.random() < self.rate(choice) else (right + 1) % VOCABULARY
