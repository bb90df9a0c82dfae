"""Keep the books of a draft model's cache: how far each sequence of it agrees with its choice.

What this room does: gives each choice that is guessed for a sequence of the draft model's cache,
says which of its tokens must be evaluated there and what must be cut off before, and takes
sequences back.
What it knows: a choice's tokens are only ever added to, so what agreed once agrees for ever, also
while the choice waits, is preempted, swapped out or replayed in the other cache. What can turn out
wrong are guesses that were evaluated to guess on from.
What it never does: touch a context (`draft_model` does), or decide what is worth guessing.

A sequence holds, in order, tokens that are the choice's (`agreed`), then guesses (`ahead`). When
the choice has gone on, the guesses that came true count as agreed, and the rest is cut off. The
last token of a choice is always evaluated anew: the first guess is read from its row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from appliance.runtime.cost import CostModel
from appliance.runtime.jobs import Choice


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Tokens of a choice to evaluate, once the sequence was cut to `start` tokens."""

    seq_id: int
    start: int
    token_ids: Sequence[int]
    is_cut: bool


@dataclass(slots=True, eq=False)
class _Entry:
    seq_id: int
    used: int
    agreed: int = 0
    ahead: list[int] = field(default_factory=list)

    @property
    def held(self) -> int:
        return self.agreed + len(self.ahead)


class DraftCache:
    """The sequences of one draft model's cache, and `cost`: what a step of it takes.

    Bounded by `sequences_max` and `cells_total`: who was guessed for least lately makes way.
    """

    def __init__(
        self, cost: CostModel, *, sequences_max: int, cells_total: int, context_tokens: int
    ) -> None:
        """Begin empty. No choice of more than context_tokens is guessed for."""
        self.cost = cost
        self.context_tokens = context_tokens
        self.cells_used = 0
        self._cells_total = cells_total
        self._entries: dict[Choice, _Entry] = {}
        self._free_ids = list(range(sequences_max - 1, -1, -1))
        self._emptied: list[int] = []
        self._reserved = 0  # cells of guesses of this step that are yet to be made
        self._step = 0

    def __len__(self) -> int:
        """Count the sequences that choices hold."""
        return len(self._entries)

    def lag(self, choice: Choice) -> int:
        """Count the tokens of a choice that must be evaluated before the next is guessed."""
        entry = self._entries.get(choice)
        return choice.length - (_agreement(choice, entry) if entry is not None else 0)

    def held(self) -> dict[int, int]:
        """Count the tokens of each sequence that is held."""
        return {entry.seq_id: entry.held for entry in self._entries.values()}

    def begin(self) -> None:
        """Begin a step: take back what choices held that have ended since."""
        self._step += 1
        self._reserved = 0
        for choice in [choice for choice in self._entries if choice.is_ended]:
            self._release(choice)

    def read(self, choice: Choice, count: int, guesses: int = 0) -> Reading | None:
        """Have the next `count` tokens of a choice evaluated, with room for guesses after them.

        Others make way, but not those of this step. None: there is no room; nothing has changed.
        """
        entry = self._entries.get(choice)
        start = 0 if entry is None else _agreement(choice, entry)
        held = 0 if entry is None else entry.held
        if not self._make_room(choice, start + count + guesses - held, needs_id=entry is None):
            return None
        if entry is None:
            entry = self._entries[choice] = _Entry(self._free_ids.pop(), self._step)
        entry.used = self._step
        entry.agreed, entry.ahead = start + count, []
        self.cells_used += start + count - held
        self._reserved += guesses
        token_ids = choice.tokens(start, count)
        return Reading(seq_id=entry.seq_id, start=start, token_ids=token_ids, is_cut=start < held)

    def guessed(self, choice: Choice, token_id: int) -> tuple[int, int]:
        """Have a guess evaluated, to guess on from; returns its sequence and position."""
        entry = self._entries[choice]
        entry.ahead.append(token_id)
        self.cells_used += 1
        self._reserved -= 1
        return entry.seq_id, entry.held - 1

    def forget(self, ticket: int) -> None:
        """Take back what the choices of a job hold that has ended."""
        for choice in [choice for choice in self._entries if choice.job.ticket == ticket]:
            self._release(choice)

    def take_emptied(self) -> list[int]:
        """Hand over the sequences that must be emptied before anything else is done to them."""
        emptied, self._emptied = self._emptied, []
        return emptied

    def clear(self) -> None:
        """Take everything back: what the cache holds is not to be trusted."""
        for choice in list(self._entries):
            self._release(choice)

    def _make_room(self, choice: Choice, cells: int, *, needs_id: bool) -> bool:
        others = [
            (entry.used, entry.seq_id, other)
            for other, entry in self._entries.items()
            if other is not choice and entry.used < self._step
        ]
        total = self._cells_total - self._reserved
        free = total - self.cells_used
        if free + sum(self._entries[other].held for _, _, other in others) < cells or (
            needs_id and not self._free_ids and not others
        ):
            return False
        for _, _, other in sorted(others, key=lambda one: one[:2]):
            if total - self.cells_used >= cells and (self._free_ids or not needs_id):
                break
            self._release(other)
        return True

    def _release(self, choice: Choice) -> None:
        entry = self._entries.pop(choice)
        self.cells_used -= entry.held
        self._free_ids.append(entry.seq_id)
        self._emptied.append(entry.seq_id)


def _agreement(choice: Choice, entry: _Entry) -> int:
    """Count the first tokens of a sequence that are the choice's, its last one left out."""
    at, length = entry.agreed, choice.length
    for token_id in entry.ahead:
        if at >= length or choice.token_at(at) != token_id:
            break
        at += 1
    return min(at, length - 1)
