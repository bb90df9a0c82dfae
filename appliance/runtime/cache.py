"""Own the sequences of one context: who holds which, what they share, and what is kept of them.

What this room does: gives sequences to choices and takes them back; lets a new job take over the
longest prefix that is there; parks what has ended, swaps out what is preempted, and evicts; lists
the moves that the engine has to make for it.
What it knows: the `ledger` of cells, the tree of prefixes (`prefix`), what is parked and hosted.
What it never does: decide which job goes first, or is preempted (the scheduler does).

What has ended well is kept for its prefix: its state in host memory (*hosted*) while there is room
for it, since every cell that is held costs each later step a little, even of those who don't look
at it; else in its sequence (*parked*), as is what an operator pinned. A saved state has a number
like a sequence's, but higher than any of those, and stands in the tree of prefixes beside them.

Sharing is by `Job.cache_key` and adapter; what an operator pinned is shared by all. A prefix is
taken over from whoever holds most of it now. If a running job is about to hold more, of its own
class or a higher one, it is worth waiting for: its tokens are being evaluated anyway.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from appliance.runtime.cost import CostModel
from appliance.runtime.fairness import RANKS
from appliance.runtime.jobs import Choice, Job, Move, MoveKind, SchedulerLimits
from appliance.runtime.ledger import Ledger
from appliance.runtime.parked import Parked
from appliance.runtime.prefix import NO_MATCH, Match, PrefixTree

PINNED_KEY: Hashable = None  # the cache key of what an operator pinned
_SWAP_BYTES_PER_MS = 1_000_000.0  # copied out and in again; memory is far quicker than that


class Cache:
    """The sequences and cells of one context. Not thread-safe: the scheduler owns it."""

    def __init__(self, limits: SchedulerLimits, cost: CostModel) -> None:
        """Begin with every sequence and cell free."""
        self._limits = limits
        self._cost = cost
        self.ledger = Ledger(limits.cells_total)
        self.parked = Parked()
        self.hosted = Parked()
        self._tree = PrefixTree()
        self._free_ids = list(range(limits.sequences_max + limits.parked_max - 1, -1, -1))
        self._holders: dict[int, Choice] = {}
        self._moves: list[Move] = []
        self._next_state = limits.sequences_max + limits.parked_max
        self._swapped_bytes = 0
        self._cells_parked = 0  # below 0: not known
        self.now_ms = 0.0  # set by the scheduler: what ages are counted by
        self.prefix_tokens_total = 0
        self.evictions_total = 0
        self.swaps_total = 0

    # --- counting --------------------------------------------------------------------------------

    @property
    def sequences_used(self) -> int:
        """Count the sequences that choices hold."""
        return len(self._holders)

    @property
    def sequences_free(self) -> int:
        """Count the sequences that choices may still be given."""
        return self._limits.sequences_max - len(self._holders)

    @property
    def cells_parked(self) -> int:
        """Count the cells that would be free without the parked sequences."""
        if self._cells_parked < 0:  # asked for in every step, and rarely another
            self._cells_parked = self.ledger.held_only_by(self.parked.ids())
        return self._cells_parked

    @property
    def swapped_bytes(self) -> int:
        """Count the bytes of host memory that saved states take."""
        return self._swapped_bytes

    @property
    def has_moves(self) -> bool:
        """Say whether the engine has moves to make."""
        return bool(self._moves)

    def take_moves(self) -> tuple[Move, ...]:
        """Hand over the moves so far, in order."""
        moves, self._moves = tuple(self._moves), []
        return moves

    def room(self, running: Sequence[Job]) -> int:
        """Count the cells a new job may claim: free or evictable, not claimed by the running."""
        evictable = self.ledger.held_only_by(self.parked.ids(pinned=False))
        return self.ledger.free + evictable - sum(self.claim(job) for job in running)

    def need(self, job: Job, match: Match) -> int:
        """Count the cells that a waiting job would claim if it started now."""
        taken = 0 if match.seq_id in self.hosted else match.tokens
        if match.seq_id in self.parked and taken:
            # It will share cells that count as evictable so far.
            taken -= min(taken, self.parked.cells(match.seq_id))
        return self.claim(job) - taken

    def claim(self, job: Job) -> int:
        """Count the cells that a job may ask for soon, beside those it holds."""
        reserve = self._limits.output_reserve_tokens
        drawn = sum(min(job.may_draw(choice), reserve) for choice in job.live)
        if job.is_forked:
            return drawn + sum(choice.pending for choice in job.live)
        prompt = len(job.prompt) - max(choice.evaluated for choice in job.live)
        return max(0, drawn + prompt + sum(len(choice.outputs) for choice in job.live))

    def held_by(self, job: Job) -> int:
        """Count the cells that would be free without a running job."""
        return self.ledger.held_only_by(
            [choice.seq_id for choice in job.live if choice.seq_id in self.ledger.open_ids()]
        )

    # --- prefixes --------------------------------------------------------------------------------

    def is_worth_waiting(self, job: Job, match: Match) -> bool:
        """Say whether a running job will soon hold more of this prompt than anybody does now."""
        if match.promised - match.tokens < self._limits.prefix_tokens_min:
            return False
        holder = self._holders.get(match.promiser)
        return holder is not None and RANKS[holder.job.priority] <= RANKS[job.priority]

    def match(self, job: Job) -> Match:
        """Find what a waiting job can take over; true until a sequence ends or goes on."""
        leader = job.live[0]
        if not self._limits.parked_max or leader.swapped:
            return NO_MATCH
        text = [*job.prompt, *leader.outputs] if len(job.live) == 1 else list(job.prompt)
        # One token at least is evaluated: its logits are what is wanted.
        keys = (_key(job), (PINNED_KEY, job.adapter))
        match = self._tree.find(keys, text[: len(text) - 1], self._there)
        return match if match.promised >= self._limits.prefix_tokens_min else NO_MATCH

    def _there(self, seq_id: int) -> int:
        holder = self._holders.get(seq_id)
        if holder is not None:
            return holder.evaluated
        return (self.hosted if seq_id in self.hosted else self.parked).cells(seq_id)

    # --- the life of a sequence ------------------------------------------------------------------

    def start(self, job: Job, match: Match) -> None:
        """Give a job its sequences, and the longest prefix or the saved state that is there."""
        for choice in job.live:
            choice.seq_id = self._free_ids.pop()
            choice.evaluated = 0
            self._holders[choice.seq_id] = choice
        leader = job.live[0]
        job.is_forked = False
        shared = match.tokens if match.tokens >= self._limits.prefix_tokens_min else 0
        if leader.swapped:
            self._swap_in(leader)
        elif match.seq_id in self.hosted:
            self._restore(job, leader, match.seq_id, shared)
        elif shared:
            self._cells_parked = -1
            self.ledger.fork(match.seq_id, leader.seq_id, shared)
            self._moves.append(
                Move(kind=MoveKind.COPY, seq_id=leader.seq_id, source=match.seq_id, tokens=shared)
            )
            self.parked.hit(match.seq_id, self.now_ms)
            self._took_over(job, leader, shared)
        else:
            self.ledger.open(leader.seq_id)
        # What a choice has drawn follows its prompt in its own sequence.
        job.is_forked = bool(leader.outputs) and leader.evaluated >= len(job.prompt)
        if self._limits.parked_max:
            self._tree.add(leader.seq_id, _key(job), job.prompt)

    def close(self, choice: Choice) -> None:
        """Take a choice's sequence back and empty it."""
        self._release(choice)
        if choice.seq_id in self.ledger.open_ids():
            self._drop(choice.seq_id)
        self._free_ids.append(choice.seq_id)
        choice.seq_id = -1
        choice.evaluated = 0
        self._bound()  # what it shared with parked ones is theirs alone now

    def _took_over(self, job: Job, leader: Choice, shared: int) -> None:
        leader.evaluated = shared
        self.prefix_tokens_total += shared
        if job.started_ms < 0.0:
            job.cached = min(shared, len(job.prompt))

    def park(self, choice: Choice) -> None:
        """Take the sequence of a choice that has ended well, and keep it for its prefix."""
        job, held = choice.job, choice.evaluated
        if not self._limits.parked_max or held < self._limits.prefix_tokens_min:
            self.close(choice)
            return
        text = [*job.prompt, *choice.outputs][:held]
        key = (PINNED_KEY, job.adapter) if job.is_pin else _key(job)
        for known in self._tree.holders(key, text):
            kept = self.hosted if known in self.hosted else self.parked
            if known in kept:  # that much is kept already, here computed a second time
                kept.hit(known, self.now_ms)
                self.close(choice)
                return
        if not job.is_pin and self._host(choice, key, text):
            return
        seq_id = choice.seq_id
        self._release(choice)
        self._tree.add(seq_id, key, text)
        self._cells_parked = -1
        self.parked.add(seq_id, held, self.now_ms, is_pinned=job.is_pin)
        choice.seq_id = -1
        choice.evaluated = 0
        for other in self.parked.replace(seq_id, self._tree.covered(seq_id)):
            self._unpark(other)
        self._bound()

    def _bound(self) -> None:
        """Hold the parked sequences to their number and to their share of the cells."""
        limits = self._limits
        while len(self.parked) > limits.parked_max or self.cells_parked > limits.parked_cells_max:
            if not self.evict(pinned=len(self.parked) > limits.parked_max):
                return

    def evict(self, *, pinned: bool) -> bool:
        """Give up one parked sequence; False: there is none that may go."""
        worst = self.parked.worst(self.now_ms, pinned=pinned)
        if worst is None:
            return False
        self.parked.remove(worst)
        self._unpark(worst)
        self.evictions_total += 1
        return True

    def make_free(self, cells: int) -> None:
        """Evict parked sequences until so many cells are free, or nothing is left to evict."""
        while self.ledger.free < cells and self.evict(pinned=False):
            pass

    def drop_parked(self) -> None:
        """Give up all parked sequences: the cache is not to be trusted."""
        for seq_id in self.parked.ids():
            self.parked.remove(seq_id)
            self._unpark(seq_id)

    def _unpark(self, seq_id: int) -> None:
        self._tree.remove(seq_id)
        self._drop(seq_id)
        self._free_ids.append(seq_id)

    def _drop(self, seq_id: int) -> None:
        self._cells_parked = -1
        self.ledger.close(seq_id)
        self._moves.append(Move(kind=MoveKind.REMOVE, seq_id=seq_id))

    def _release(self, choice: Choice) -> None:
        del self._holders[choice.seq_id]
        self._tree.remove(choice.seq_id)

    # --- host memory -----------------------------------------------------------------------------

    def _host(self, choice: Choice, key: Hashable, text: Sequence[int]) -> bool:
        """Keep the state of a choice that has ended; False: there is no room for it."""
        size = choice.evaluated * self._limits.cell_bytes
        if not size or not self._make_room(size):
            return False
        state = self._save(choice)
        self._tree.add(state, key, text)
        self.hosted.add(state, len(text), self.now_ms, is_pinned=False)
        self.close(choice)
        for other in self.hosted.replace(state, self._tree.covered(state)):
            self._drop_state(other)
        while len(self.hosted) > self._limits.parked_max:
            self._evict_hosted()
        return True

    def _restore(self, job: Job, leader: Choice, state: int, shared: int) -> None:
        """Give a job the first tokens of a saved state, where there are cells for all of it."""
        self.ledger.open(leader.seq_id)
        held = self.hosted.cells(state)
        self.make_free(held)
        if not shared or self.ledger.free < held:
            return
        self.ledger.grow(leader.seq_id, shared)
        self._moves.append(
            Move(
                kind=MoveKind.RESTORE,
                seq_id=leader.seq_id,
                tokens=shared,
                state=state,
                ticket=job.ticket,
            )
        )
        self.hosted.hit(state, self.now_ms)
        self._took_over(job, leader, shared)

    def disown(self, state: int) -> None:
        """Give a saved state up if it is kept for its prefix: it could not be restored."""
        if state in self.hosted:
            self.hosted.remove(state)
            self._drop_state(state)

    def _make_room(self, size: int) -> bool:
        """Evict saved prefixes until a state of this size has room; False: it never has."""
        limit = self._limits.swap_bytes_max
        kept = sum(self.hosted.cells(state) for state in self.hosted.ids())
        if self._swapped_bytes - kept * self._limits.cell_bytes + size > limit:
            return False
        while self._swapped_bytes + size > limit:
            self._evict_hosted()
        return True

    def _evict_hosted(self) -> None:
        worst = self.hosted.worst(self.now_ms, pinned=False)
        assert worst is not None, "there is nothing to evict"
        self.hosted.remove(worst)
        self._drop_state(worst)
        self.evictions_total += 1

    def _drop_state(self, state: int) -> None:
        self._swapped_bytes -= len(self._tree.tokens(state)) * self._limits.cell_bytes
        self._tree.remove(state)
        self._moves.append(Move(kind=MoveKind.FORGET, state=state))

    def _save(self, choice: Choice) -> int:
        state, self._next_state = self._next_state, self._next_state + 1
        self._moves.append(Move(kind=MoveKind.SAVE, seq_id=choice.seq_id, state=state))
        self._swapped_bytes += choice.evaluated * self._limits.cell_bytes
        return state

    def swap_out(self, choice: Choice) -> bool:
        """Save a sequence in host memory where that is cheaper than evaluating it again.

        Only a job of one live choice, most of whose cells are its own: what is shared is cheap to
        take over again. False: nothing has changed.
        """
        size = choice.evaluated * self._limits.cell_bytes
        if not size or len(choice.job.live) > 1:
            return False
        if 2 * self.ledger.held_only_by([choice.seq_id]) < choice.evaluated:
            return False
        again_ms = self._cost.predict_rows_ms(0, choice.evaluated, choice.evaluated)
        if 2.0 * size / _SWAP_BYTES_PER_MS > again_ms or not self._make_room(size):
            return False
        choice.state = self._save(choice)
        choice.swapped = choice.evaluated
        self.swaps_total += 1
        self.close(choice)
        return True

    def forget(self, choice: Choice) -> None:
        """Drop the saved state of a waiting choice, if there is one."""
        if choice.swapped:
            self._moves.append(Move(kind=MoveKind.FORGET, state=choice.state))
            self._swapped_bytes -= choice.swapped * self._limits.cell_bytes
            choice.swapped = 0

    def _swap_in(self, choice: Choice) -> None:
        self.ledger.open(choice.seq_id)
        self.make_free(choice.swapped)
        if self.ledger.free < choice.swapped:
            self.forget(choice)  # it is evaluated again, bit by bit
            return
        self.ledger.grow(choice.seq_id, choice.swapped)
        self._moves.append(
            Move(
                kind=MoveKind.TAKE_BACK,
                seq_id=choice.seq_id,
                tokens=choice.swapped,
                state=choice.state,
                ticket=choice.job.ticket,
            )
        )
        self._swapped_bytes -= choice.swapped * self._limits.cell_bytes
        choice.evaluated, choice.swapped = choice.swapped, 0


def _key(job: Job) -> Hashable:
    return job.cache_key, job.adapter
