"""Let a draft model guess: a second, small model in the worker, on the thread of the first.

What this room does: has the draft model's context evaluate what a plan asks for, greedily guesses
on, and puts the guesses into the plan; prices the draft model's steps.
What it knows: the context of the draft model and its books (`draft_cache`), which it keeps equal.
What it never does: decide for whom to guess, or judge a guess: the big model does.

A step with guesses of depth d is one decode of what each choice has become since, then d - 1 of one
row for each choice. What is only read for later comes before that and is timed apart: it is paid
for by steps to come.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from appliance.runtime.cost import StepShape
from appliance.runtime.draft_cache import DraftCache, Reading
from appliance.runtime.jobs import Choice, Plan
from appliance.runtime.llama import Context, DecodeCode, EngineLost

Reads = list[tuple[Choice, Reading]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A plan with its guesses, and what they took; reading_ms: for guesses to come."""

    plan: Plan
    draft_ms: float = 0.0
    reading_ms: float = 0.0


class DraftModel:
    """The hands of one engine's draft model. Used by the thread that decodes.

    vocabulary_size: of the model that is guessed for; the draft model's may be padded further.
    """

    def __init__(
        self,
        context: Context,
        cache: DraftCache,
        *,
        vocabulary_size: int,
        clock: Callable[[], float],
    ) -> None:
        """Own the context from now on. `clock` reads monotonic milliseconds."""
        self._context = context
        self._cache = cache
        self._vocabulary_size = vocabulary_size
        self._clock = clock
        self._threads = 0

    def tell(self, plan: Plan, threads: int) -> Told:
        """Make the guesses of a plan; blocks for the draft model's steps.

        A choice for which there is no room gets none.

        Raises:
            EngineLost: llama_decode failed in a way that leaves the context undefined.
        """
        depths = {span.choice: len(span.draft) for span in plan.spans if span.by_model}
        if not depths and not plan.readings:
            return Told(plan=plan)
        began_ms = self._clock()
        self._use(threads)
        self._cache.begin()
        self._read_on(plan.readings)
        read_ms = self._clock()
        if not depths:
            return Told(plan=plan, reading_ms=read_ms - began_ms)
        guesses = self._guess(depths)
        drafts = [
            tuple(guesses.get(span.choice, ())) if span.by_model else span.draft
            for span in plan.spans
        ]
        told = plan.told(drafts)
        return Told(plan=told, draft_ms=self._clock() - read_ms, reading_ms=read_ms - began_ms)

    def forget(self, ticket: int) -> None:
        """Free what the choices of a job hold that has ended."""
        self._cache.forget(ticket)
        self._empty()

    def check_idle(self) -> None:
        """Hold the books against llama.cpp's: nothing is held while no job is there."""
        assert not len(self._cache), "a sequence of the draft model is held while idle"
        assert self._cache.cells_used == 0, "cells of the draft model are held while idle"
        for seq_id in range(self._context.sequences_max):
            held = self._context.position_max(seq_id) + 1
            assert held == 0, f"sequence {seq_id} of the draft model holds {held} cells while idle"

    def _use(self, threads: int) -> None:
        if threads != self._threads:
            self._threads = threads
            self._context.set_threads(threads)
            self._cache.cost.use(decode_threads=threads, prefill_threads=threads)

    def _read_on(self, readings: Sequence[tuple[Choice, int]]) -> None:
        """Evaluate what is read for later."""
        reads: Reads = []
        left = self._context.batch_tokens
        for choice, wanted in readings:
            count = min(wanted, self._cache.lag(choice), left)
            reading = self._cache.read(choice, count) if count else None
            if reading is not None:
                reads.append((choice, reading))
                left -= count
        if reads:
            self._evaluate(reads, rows=0)

    def _guess(self, depths: dict[Choice, int]) -> dict[Choice, list[int]]:
        """Guess so many tokens for each choice; those without room are left out."""
        reads: Reads = []
        left = self._context.batch_tokens
        for choice, depth in depths.items():
            lag = self._cache.lag(choice)
            reading = self._cache.read(choice, lag, depth - 1) if lag <= left else None
            if reading is not None:
                reads.append((choice, reading))
                left -= lag
        guesses: dict[Choice, list[int]] = {choice: [] for choice, _ in reads}
        if not reads or not self._evaluate(reads, rows=len(reads)):
            return {}
        going = list(guesses)
        while True:
            best = self._context.logits(len(going))[:, : self._vocabulary_size].argmax(axis=1)
            for choice, token_id in zip(going, best.tolist(), strict=True):
                guesses[choice].append(token_id)
            going = [choice for choice in going if len(guesses[choice]) < depths[choice]]
            if not going or not self._go_on(going, guesses):
                return guesses

    def _evaluate(self, reads: Reads, *, rows: int) -> bool:
        """Evaluate what choices have become; with rows, the logits of each one's last token."""
        self._empty()
        at = 0
        for _, reading in reads:
            if reading.is_cut:
                is_cut = self._context.cut(reading.seq_id, reading.start)
                assert is_cut, f"sequence {reading.seq_id} of the draft model could not be cut"
            at = self._context.put(at, reading.token_ids, reading.seq_id, reading.start)
            if rows:
                self._context.want_row(at - 1)
        if not rows:  # llama.cpp wants one output at least
            self._context.want_row(at - 1)
        return self._decode(at, rows)

    def _go_on(self, going: Sequence[Choice], guesses: dict[Choice, list[int]]) -> bool:
        """Evaluate the latest guess of each choice."""
        tokens = [guesses[choice][-1] for choice in going]
        places = [
            self._cache.guessed(choice, token_id)
            for choice, token_id in zip(going, tokens, strict=True)
        ]
        count = self._context.put_singles(
            tokens, [seq_id for seq_id, _ in places], [position for _, position in places]
        )
        return self._decode(count, count)

    def _decode(self, count: int, rows: int) -> bool:
        """Evaluate the batch; False: it did not happen, and the cache is empty now."""
        began_ms = self._clock()
        code = self._context.decode(count)
        if code is DecodeCode.FATAL:
            raise EngineLost(f"llama_decode of the draft model: {code.name}")
        if code is not DecodeCode.OK:
            self._cache.clear()
            self._cache.take_emptied()
            self._context.clear()
            return False
        if rows:
            self._context.logits(1)  # waits for a device that computes on its own
        shape = StepShape(decode=rows, prefill=count - rows, kv_span=self._cache.cells_used)
        self._cache.cost.observe(shape, self._clock() - began_ms)
        return True

    def _empty(self) -> None:
        for seq_id in self._cache.take_emptied():
            self._context.remove(seq_id)
