"""Decide for which choices the draft model guesses, and how many tokens.

What this room does: estimates how often its guesses are right, weighs that against what they cost
in both models, and says which choices it must read up on first.
What it knows: the price of a step of either model, how far the draft's cache has come (`lag`), and
what a step already holds (`Beside`).
What it never does: guess a token (`draft_model` does), or change what is drawn.

A guess is right if the one before it was and the draft model says what the choice draws: with a
rate r, the guess at place i comes true with r^i. One rate for each choice, since texts differ; one
that has seen little leans on the rate of all. Nothing is seen of a rate while nobody guesses, so
what was seen fades, over some hundred steps, back to the hopeful rate of the beginning: that is
what makes a trial, and the first misses end it.

All choices guess together: d guesses take d steps of the draft model, however many choices there
are. So there is one depth, the one that promises the most tokens per ms; the time of the draft's
steps is in it. A choice stops short where its chance is too small or its own limit is near.

A choice that the draft model has hardly read (a new one: its prompt) can't be guessed for. It is
read, a little in each step, once that would pay: if as many tokens as it has drawn so far, drawn
again with the gain that is promised, would save what the reading takes. A gain that little was seen
of counts for a tenth of that; but a hundredth of all time may be ventured beside. What is decided
is always whether guessing pays in the long run, so what a choice is behind by does not count there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from appliance.runtime.promise import Promise

if TYPE_CHECKING:
    from appliance.runtime.cost import CostModel, StepShape
    from appliance.runtime.draft_cache import DraftCache
    from appliance.runtime.jobs import Choice

_RATE_FIRST = 0.8
_TRUST_FIRST = 8.0  # tokens: what the first rate weighs against what was seen
_TRUST_ALL = 6.0  # what the rate of all weighs for one choice
_FORGETTING = 0.97
_FORGETTING_ALL = 0.99
_FADING_STEPS = 512.0
_CHANCE_MIN = 0.1
_LAG = 2  # tokens that a choice is behind which was guessed for in the step before
_VENTURE = 0.1  # of a promised gain that nothing was seen of
_SPARE = 0.01  # of all time, for readings that may be in vain
_SPARE_MS_MAX = 5000.0
_EVIDENCE = 30.0  # guesses seen that let half of a promised gain count


class Acceptance:
    """How often the draft model says what is drawn; recent guesses count more."""

    __slots__ = ("_all", "_hits", "_step", "_tries")

    def __init__(self, of_all: Acceptance | None = None) -> None:
        """Begin with the rate of all choices of the model, or as the one of all."""
        self._all = of_all
        self._hits = 0.0
        self._tries = 0.0
        self._step = 0

    def note(self, kept: int, guessed: int, step: int) -> None:
        """Count guesses of which the first `kept` were right, and the next one, if any, wrong."""
        seen = kept + (kept < guessed)
        fading = self._fading(step) * (_FORGETTING if self._all else _FORGETTING_ALL) ** seen
        self._hits = self._hits * fading + kept
        self._tries = self._tries * fading + seen
        self._step = step
        if self._all is not None:
            self._all.note(kept, guessed, step)

    def rate(self, step: int) -> float:
        """Estimate the chance that a guess is right whose forerunners were."""
        if self._all is not None:
            trust, before = _TRUST_ALL, self._all.rate(step)
        else:
            trust, before = _TRUST_FIRST, _RATE_FIRST
        fading = self._fading(step)
        return (self._hits * fading + trust * before) / (self._tries * fading + trust)

    def weight(self, step: int) -> float:
        """Say how much was seen of the rate, from 0 to 1."""
        seen = self._tries * self._fading(step)
        return seen / (seen + _EVIDENCE)

    def _fading(self, step: int) -> float:
        return math.exp((self._step - step) / _FADING_STEPS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What a step holds beside the draft model's guesses, and its bounds.

    tokens, rows: of each choice, expected from guesses by lookup, and what those take. rooms: most
    guesses of each choice. gain: what the lookups promise, as far as it is believed.
    """

    shape: StepShape
    base_ms: float
    tokens: Sequence[float]
    rows: Sequence[int]
    rooms: Sequence[int]
    gain: float
    rows_max: int
    step_ms_max: float
    stretched_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreseen:
    """How many tokens to guess for each choice, and what else to read: (choice, tokens)."""

    depths: Sequence[int]
    readings: tuple[tuple[Choice, int], ...] = ()


class Foresight:
    """The guesses of one engine's draft model. Called by one thread; nothing here blocks."""

    def __init__(self, cost: CostModel, cache: DraftCache, tokens_max: int) -> None:
        """Read the target's prices and the draft's books, and change neither."""
        self.promise = Promise()
        self.cache = cache
        self.drafted_total = 0
        self.accepted_total = 0
        self._cost = cost
        self._tokens_max = tokens_max
        self._all = Acceptance()
        self._spare_ms = 0.0

    def note(self, choice: Choice, kept: int, guessed: int, step: int) -> None:
        """Count the guesses of a choice, of which the first `kept` came true."""
        if choice.acceptance is None:
            choice.acceptance = Acceptance(self._all)
        choice.acceptance.note(kept, guessed, step)
        self.drafted_total += guessed
        self.accepted_total += kept

    def choose(self, choices: Sequence[Choice], beside: Beside, step: int) -> Foreseen:
        """Choose what to guess and to read in this step: most often, for all choices or none."""
        nothing = Foreseen(depths=[0] * len(choices))
        rates = [self._rate(choice, step) for choice in choices]
        able = [at for at, choice in enumerate(choices) if self._is_able(choice, at, rates, beside)]
        self._spare_ms = min(_SPARE_MS_MAX, self._spare_ms + _SPARE * beside.base_ms)
        if not able or not self.promise.is_due():
            return nothing
        needed = max(self.promise.needed(step), beside.gain / self.promise.trust(step))
        lags = {at: self.cache.lag(choices[at]) for at in able}
        ready = [at for at in able if lags[at] <= self._tokens_max + _LAG]
        behind = [at for at in able if lags[at] > self._tokens_max + _LAG]
        least = needed
        readings: tuple[tuple[Choice, int], ...] = ()
        if behind:
            hoped, _ = self._deepen(able, rates, beside)
            if hoped > needed:
                saving = (1.0 - 1.0 / hoped) * max(_VENTURE, self._all.weight(step))
                readings = self._readings(choices, behind, lags, beside, saving)
                # A few of many gain little; but what is seen of them is worth something too.
                least = max(1.0, beside.gain) / self.promise.trust(step)
        gain, depth = self._deepen(ready, rates, beside)
        is_worth = gain > least
        self.promise.make(gain if is_worth else 1.0, is_made=is_worth or bool(readings))
        depths = self._depths(ready, rates, beside, depth if is_worth else 0)
        return Foreseen(depths=depths, readings=readings)

    def _rate(self, choice: Choice, step: int) -> float:
        return (choice.acceptance or self._all).rate(step)

    def _is_able(self, choice: Choice, at: int, rates: Sequence[float], beside: Beside) -> bool:
        """Say whether the draft model may guess for a choice, and is likelier right than a lookup.

        Not with an adapter: the draft model was made for a model without one.
        """
        if choice.job.adapter or beside.rooms[at] <= 0:
            return False
        if choice.length + beside.rooms[at] > self.cache.context_tokens:
            return False
        rows = beside.rows[at]
        return not rows or beside.tokens[at] < _sum_of_powers(rates[at], rows)

    def _deepen(
        self, group: Sequence[int], rates: Sequence[float], beside: Beside
    ) -> tuple[float, int]:
        """Find the depth that promises the most tokens per ms for these choices, and that gain."""
        lag = _LAG * len(group)
        streams, kv_span = beside.shape.decode, beside.shape.kv_span
        others = [at for at in range(streams) if at not in group]
        tokens = streams + sum(beside.tokens[at] for at in others)
        rows = sum(beside.rows[at] for at in others)
        rows_max = min(beside.rows_max, rows + self.promise.rows_max(streams))
        is_all = all(beside.rows[at] for at in others)
        draft, cells = self.cache.cost, self.cache.cells_used
        draft_ms = draft.predict_rows_ms(len(group), lag - len(group), cells + lag)
        best, best_gain = 0, 0.0
        for depth in range(1, self._tokens_max + 1):
            chances = [_chance(rates[at], depth, beside.rooms[at]) for at in group]
            count = sum(chance > 0.0 for chance in chances)
            rows += count
            if not count or rows > rows_max:
                break
            if depth > 1:
                draft_ms += draft.predict_rows_ms(count, 0, cells + lag)
            tokens += sum(chances)
            ms = self._cost.predict_rows_ms(streams + rows, 0, kv_span + rows) + draft_ms
            if ms > (beside.step_ms_max if is_all else beside.stretched_ms):
                break
            gain = tokens / streams * beside.base_ms / ms
            if gain > best_gain:
                best, best_gain = depth, gain
        return best_gain, best

    def _depths(
        self, group: Sequence[int], rates: Sequence[float], beside: Beside, depth: int
    ) -> list[int]:
        depths = [0] * len(rates)
        for at in group:
            while depths[at] < depth and _chance(rates[at], depths[at] + 1, beside.rooms[at]):
                depths[at] += 1
        return depths

    def _readings(
        self,
        choices: Sequence[Choice],
        behind: Sequence[int],
        lags: dict[int, int],
        beside: Beside,
        saving: float,
    ) -> tuple[tuple[Choice, int], ...]:
        """Spend as much time again as a step takes on choices that are behind, where that pays.

        saving: of the time of a choice's tokens.
        """
        draft, cells = self.cache.cost, self.cache.cells_used
        time_ms = min(beside.base_ms, beside.step_ms_max - beside.base_ms)
        left = chunk = draft.prefill_room(0, cells, time_ms)
        readings = []
        for at in behind if chunk else ():
            choice, lag = choices[at], lags[at]
            drawn = min(len(choice.outputs), choice.job.may_draw(choice))
            saved_ms = saving * drawn * beside.base_ms / beside.shape.decode
            size = min(chunk, lag)
            token_ms = draft.predict_rows_ms(0, size, cells + size) / size
            pays = saved_ms >= lag * token_ms
            if left and (pays or self._spare_ms >= lag * token_ms):
                readings.append((choice, min(left, lag - 1)))
                left -= readings[-1][1]
                self._spare_ms -= 0.0 if pays else readings[-1][1] * token_ms
        return tuple(readings)


def _chance(rate: float, place: int, room: int) -> float:
    """Estimate the chance of the guess at this place; 0.0 where it is not worth being made."""
    chance: float = rate**place
    return chance if place <= room and chance >= _CHANCE_MIN else 0.0


def _sum_of_powers(rate: float, count: int) -> float:
    """Add up the chances of so many guesses."""
    return sum(rate**place for place in range(1, count + 1))
