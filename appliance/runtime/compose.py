"""Fill one step with rows: who decodes, and which prompts go on.

What this room does: chooses, from the running jobs, the rows of the next step within its time, its
rows and the free cells.
What it knows: the price of a step (`cost`) and what each party may add to it (`fairness`).
What it never does: change a job, or make room: it tells what it could not place.

 1. Decode rows: all of a party that is due, of another one as many as its allowance pays for: a
    lump of up to 15 at least, since rows in a larger step are cheaper. Of the highest class such a
    lump rides too when none of its rows has for half the time that a prompt may keep streams
    waiting: no client stands still. Those that have waited longest go first.
 2. Prompts: what is left of the time goes to prompts. First by class; inside it by what the party
    was given (but the prompt of a client without a stream that was begun and can be finished in a
    step is finished, and such a client goes before others that are level), then by deadline, then
    the shortest rest, less the time it has waited: finishing one early beats halving two, and
    nobody waits for ever behind shorter ones.
 3. Guesses of what comes next (`speculation`): in a step without prompts, in cells nobody wants.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from appliance.runtime.cost import ROW_QUANTUM, CostModel, StepShape
from appliance.runtime.fairness import RANKS, Fairness, Party
from appliance.runtime.jobs import UNTOLD, Choice, Job, SchedulerLimits, Span
from appliance.runtime.speculation import Speculation

_STRETCH = 2.0  # of the time while others stream, for a step that makes tokens much cheaper
CHUNK_MIN = 8  # a prompt goes on, however short the budget
# What a cell of another sequence costs, of one attended to: looked at in the mask and skipped.
# 160M shape, 32 streams: 5,500 such cells lengthen a step of 46 ms by 12.
_MASKED = 0.08
_LUMP = ROW_QUANTUM - 1
_NO_DRAFT: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed:
    """The rows of a step. `is_short` of cells: a row that was due had none."""

    spans: tuple[Span, ...]
    shape: StepShape
    is_short: bool
    readings: tuple[tuple[Choice, int], ...] = ()


class Composer:
    """Fill steps by these limits and prices. Keeps nothing between two steps."""

    def __init__(
        self,
        limits: SchedulerLimits,
        cost: CostModel,
        fairness: Fairness,
        speculation: Speculation | None = None,
    ) -> None:
        """Look at, and never change, the prices and the accounts."""
        self._limits = limits
        self._speculation = speculation
        self._cost = cost
        self._fairness = fairness
        self._still_ms = limits.step_ms_while_streaming / 2

    def compose(
        self,
        jobs: Sequence[Job],
        *,
        rows_max: int,
        cells_used: int,
        now_ms: float,
        may_guess: bool = True,
    ) -> Composed:
        """Fill a step from these jobs, which all run with one adapter."""
        cells_free = self._limits.cells_total - cells_used
        parties = {job.party: job.weight for job in jobs}
        decode_span = _mean_span([choice for job in jobs for choice in job.decoding()], cells_used)
        # Two rows' price: those with one stream each always fit beside each other.
        lead_ms = 2.0 * self._cost.predict_rows_ms(1, 0, decode_span)
        allowed = self._fairness.allowances(parties, lead_ms)
        decode = self._decode(jobs, allowed, decode_span, now_ms)[:rows_max]
        is_short = len(decode) > cells_free
        first = self._first_answers(jobs)
        prompts = self._prompts(jobs, first, now_ms, lead_ms)
        drafts = [_NO_DRAFT] * len(decode)
        readings: tuple[tuple[Choice, int], ...] = ()
        may_guess = may_guess and bool(decode) and not prompts and not is_short
        if self._speculation is not None and may_guess:
            rows = min(rows_max, cells_free)
            drafts = self._drafts(self._speculation, decode, rows, decode_span)
            readings = self._speculation.readings
        filling = _Filling(decode[: max(0, cells_free)], drafts)
        budget_ms = self._limits.step_ms_while_streaming if decode else self._limits.step_ms_max
        wanted = min(
            sum(pending for _, pending in prompts), min(rows_max, cells_free) - len(decode)
        )
        if wanted > 0:
            prompt_span = _span(prompts[0][0].evaluated, cells_used)
            room = min(wanted, self._room(len(decode), prompt_span, budget_ms, wanted))
            allowed |= dict.fromkeys((job.party for job in first), math.inf)
            self._prefill(filling, prompts, room, allowed, prompt_span)
        shape = filling.shape(cells_used)
        return Composed(
            spans=tuple(filling.spans),
            shape=shape,
            is_short=is_short or not filling.spans,
            readings=readings,
        )

    # --- decode rows ---

    def _decode(
        self, jobs: Sequence[Job], allowed: Mapping[Party, float], kv_span: int, now_ms: float
    ) -> list[Choice]:
        wanted: dict[Party, list[Choice]] = {}
        for job in jobs:
            ready = job.decoding()
            if ready:
                wanted.setdefault(job.party, []).extend(ready)
        chosen: list[Choice] = []
        top = min((RANKS[party.priority] for party in allowed), default=0)
        # Whoever may add most goes first, the due ones before all: their rows make up the step.
        for party in sorted(wanted, key=lambda one: (RANKS[one.priority], -allowed[one])):
            choices = wanted[party]
            count = self._affordable(
                len(chosen), len(choices), self._bound_ms(party, allowed), kv_span
            )
            is_due = allowed[party] == math.inf or self._fairness.is_saturated(party.priority)
            if count < min(_LUMP, len(choices)) and not is_due:
                if RANKS[party.priority] > top:
                    continue
                still_ms = now_ms - max(choice.last_ms for choice in choices)
                count = self._riding(len(chosen), len(choices), still_ms, kv_span)
                if not count:
                    continue
            if count < len(choices):
                choices = sorted(choices, key=lambda choice: choice.last_ms)[: max(1, count)]
            chosen += choices
        return chosen

    def _riding(self, before: int, wanted: int, still_ms: float, kv_span: int) -> int:
        """Count the rows of a party that is not due and has had none for a while; 0: not yet.

        It had the step before as well, so twice the time of its rows leaves half of all to others.
        """
        if still_ms < self._still_ms:
            return 0
        count = self._affordable(before, min(_LUMP, wanted), self._limits.turn_ms, kv_span)
        before_ms = self._cost.predict_rows_ms(before, 0, kv_span)
        added_ms = self._cost.predict_rows_ms(before + count, 0, kv_span) - before_ms
        return max(1, count) if still_ms >= 2.0 * added_ms else 0

    def _bound_ms(self, party: Party, allowed: Mapping[Party, float]) -> float:
        """Bound a party's decode rows in one step: nobody holds up the others for longer."""
        if len(allowed) == 1:
            return self._limits.step_ms_max
        return min(allowed[party], self._limits.turn_ms)

    def _affordable(self, before: int, wanted: int, bound_ms: float, kv_span: int) -> int:
        """Count the decode rows that may be added to `before` for so many ms."""
        base_ms = self._cost.predict_rows_ms(before, 0, kv_span)
        limit_ms = min(base_ms + bound_ms, self._limits.step_ms_max)
        low, high = 0, wanted
        if self._cost.predict_rows_ms(before + high, 0, kv_span) <= limit_ms:
            return high
        while high - low > 1:
            middle = (low + high) // 2
            if self._cost.predict_rows_ms(before + middle, 0, kv_span) <= limit_ms:
                low = middle
            else:
                high = middle
        return low

    # --- guesses ---

    def _drafts(
        self, speculation: Speculation, decode: Sequence[Choice], rows_max: int, kv_span: int
    ) -> list[tuple[int, ...]]:
        """Guess on for choices that decode, in so many rows with their own."""
        shape = StepShape(decode=len(decode), prefill=0, kv_span=kv_span + 1)
        rows = min(rows_max, self._limits.sequences_max + speculation.limits.tokens_max)
        return speculation.draft(
            decode,
            self._draft_room,
            shape,
            rows_max=rows - len(decode),
            step_ms_max=self._limits.step_ms_max,
        )

    def _draft_room(self, choice: Choice) -> int:
        """Count the guesses of a choice that could come true; none while others share its row."""
        if not choice.job.is_forked:
            return 0
        left = self._limits.context_tokens - choice.length
        return max(0, min(choice.job.may_draw(choice), left) - 1)

    # --- prompts ---

    def _room(self, decode: int, kv_span: int, budget_ms: float, wanted: int) -> int:
        limit_ms = min(_STRETCH * budget_ms, self._limits.step_ms_max)
        budget_ms = min(budget_ms, self._limits.step_ms_max)
        room = self._cost.prefill_room(decode, kv_span, budget_ms, limit_ms, wanted)
        if room >= CHUNK_MIN:
            return room
        return -(-(decode + CHUNK_MIN) // ROW_QUANTUM) * ROW_QUANTUM - decode

    def _prompts(
        self, jobs: Sequence[Job], first: frozenset[Job], now_ms: float, lead_ms: float
    ) -> list[tuple[Choice, int]]:
        prompts = [(job, job.prefilling()) for job in jobs]
        found = [(job, pending) for job, pending in prompts if pending]
        if len(found) > 1:
            row_ms = self._cost.row_ms
            level_ms = min(self._fairness.served(job.party) for job, _ in found) + lead_ms
            streaming = {job.party for job in jobs if job.decoding()}

            def rank(entry: tuple[Job, list[tuple[Choice, int]]]) -> tuple[float, ...]:
                job, pending = entry
                rest_ms = sum(rows for _, rows in pending) * row_ms
                served_ms = self._fairness.served(job.party)
                return (
                    RANKS[job.priority],
                    level_ms if job in first else max(level_ms, served_ms),
                    job not in first,
                    job.party in streaming,
                    math.inf if job.deadline_ms is None else job.deadline_ms,
                    rest_ms - (now_ms - job.submitted_ms),
                    job.order,
                )

            found.sort(key=rank)
        return [one for _, pending in found for one in pending]

    def _prefill(
        self,
        filling: _Filling,
        prompts: Sequence[tuple[Choice, int]],
        room: int,
        allowed: Mapping[Party, float],
        kv_span: int,
    ) -> None:
        left = {party: ms for party, ms in allowed.items() if ms < math.inf}
        for choice, pending in prompts:
            count = min(pending, room - filling.prefill)
            if count <= 0:
                return
            party = choice.job.party
            if party in left and filling.spans:
                count = self._within(filling, count, left[party], kv_span)
                if count < min(pending, ROW_QUANTUM) and not self._must_go_on(party, filling):
                    continue
                before_ms = self._price(filling, 0, kv_span)
                count = max(count, min(pending, room - filling.prefill, CHUNK_MIN))
                left[party] -= self._price(filling, count, kv_span) - before_ms
            filling.add_prompt(choice, count)

    def _first_answers(self, jobs: Sequence[Job]) -> frozenset[Job]:
        """Find the prompts of clients without a stream that were begun and are a step from done."""
        streaming = {job.party for job in jobs if job.decoding()}
        row_ms, bound_ms = self._cost.row_ms, self._limits.step_ms_while_streaming
        return frozenset(
            job
            for job in jobs
            if job.party not in streaming
            and any(choice.evaluated for choice, _ in job.prefilling())
            and sum(rows for _, rows in job.prefilling()) * row_ms <= bound_ms
        )

    def _must_go_on(self, party: Party, filling: _Filling) -> bool:
        """Say whether a class has waited as long as it can and got nothing in this step yet."""
        has_rows = any(span.choice.job.priority is party.priority for span in filling.spans)
        return self._fairness.is_saturated(party.priority) and not has_rows

    def _within(self, filling: _Filling, count: int, bound_ms: float, kv_span: int) -> int:
        """Count the prompt rows that may be added for so many ms, by whole quanta."""
        limit_ms = self._price(filling, 0, kv_span) + bound_ms
        while count > 0 and self._price(filling, count, kv_span) > limit_ms:
            count = count - ROW_QUANTUM if count > ROW_QUANTUM else 0
        return count

    def _price(self, filling: _Filling, more: int, kv_span: int) -> float:
        rows = filling.prefill + more
        return self._cost.predict_rows_ms(filling.decode, rows, kv_span + rows)


def span_of(spans: Sequence[Span], cells_used: int) -> int:
    """Tell how many cells a row of these spans reads, as the price of a step wants it."""
    rows = sum(span.count for span in spans)
    if not rows:
        return cells_used
    attended = sum(span.count * (span.start + span.count) for span in spans)
    return _span(attended // rows, cells_used)


def _mean_span(choices: Sequence[Choice], cells_used: int) -> int:
    own = sum(choice.evaluated for choice in choices) // len(choices) if choices else 0
    return _span(own, cells_used)


def _span(own: int, cells_used: int) -> int:
    """Count the cells of a row's own sequence, and the others for the little they cost."""
    return own + round(_MASKED * max(0, cells_used - own))


class _Filling:
    """A step while it is filled: decode rows first, in the order of the batch."""

    def __init__(self, decode: Sequence[Choice], drafts: Sequence[tuple[int, ...]]) -> None:
        self.spans: list[Span] = []
        self._rows = 0
        for choice, draft in zip(decode, drafts, strict=False):
            start, by_model = choice.evaluated, draft[:1] == (UNTOLD,)
            self.spans.append(Span(choice, choice.seq_id, start, 1, self._rows, draft, by_model))
            self._rows += 1 + len(draft)
        self.decode = self._rows
        self.prefill = 0

    def add_prompt(self, choice: Choice, count: int) -> None:
        job = choice.job
        end = choice.evaluated + count
        has_row = end == choice.length or (
            not job.is_forked
            and end == len(job.prompt)
            and any(not other.outputs for other in job.live)
        )
        row = self._rows if has_row else -1
        self.spans.append(Span(choice, choice.seq_id, choice.evaluated, count, row))
        self._rows += has_row
        self.prefill += count

    def shape(self, cells_used: int) -> StepShape:
        span = span_of(self.spans, cells_used)
        return StepShape(decode=self.decode, prefill=self.prefill, kv_span=span)
