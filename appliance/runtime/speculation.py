"""Decide how many guesses of which choice go into a step: as many as pay, most often none.

What this room does: weighs the chance of each guess against what its row costs, for all choices of
a step together; keeps count of what was guessed and what was right.
What it knows: the price of a step (`cost`), each choice's track (`draft`), and how far its own
promises were kept.
What it never does: change what is drawn. A guess is right if the choice would have drawn it anyway.

A step is worth its tokens per ms. Each choice's own row brings one token; the guess at place i
brings one with the chance that it and all before it are right, so guesses are taken in the order of
their chance, and the number of them is the one with the most tokens per ms. So guesses become dear
by themselves: a step full of rows has no fixed costs left to share, and then only a certain guess
would pay. With more than `streams_max` choices nobody looks.

The prices are the cost model's. What they promise is held against what came: tokens per measured
ms, beside those of steps without guesses, which are measured with as many streams at least every
`_PLAIN_STEPS` steps. The next promises are believed by as much. While guesses are off that mistrust
fades, over some thousand steps: what did not pay is tried again, for a step or two. Guesses begin
where they promise 5 % more and go on while they promise 1 %; their number doubles at most from one
step to the next.

Where a step has a choice without guesses, that stream gains nothing from a longer step; then a step
may be `stretch_max` times as long at most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from heapq import merge
from itertools import islice
from typing import TYPE_CHECKING

from appliance.runtime.cost import CostModel, StepShape
from appliance.runtime.draft import DraftLimits, Score, Track

if TYPE_CHECKING:
    from appliance.runtime.jobs import Choice

_BEGIN = 1.05
_GO_ON = 1.01
_CHANCE_MIN = 0.1
_INDEXED_MAX = 1024  # tokens indexed in one step for all choices: some tenths of a ms
_FADING_STEPS = 2048.0
_PLAIN_STEPS = 64
_ROWS_MIN = 4
_GROWTH = 2
_PAUSE_MAX = 7  # steps without a look, where the last looks found nothing that pays
_WEIGHT_KEPT = 0.1  # of the newest step in how far promises are kept
_WEIGHT_SHORTER = 0.4  # of the newest step in the time of a step without guesses
_WEIGHT_LONGER = 0.1
_OUTLIER = 2.0
_WEIGHT_SHOWN = 0.05  # of the newest step in `gain`
_NOTHING: tuple[int, ...] = ()


class Speculation:
    """The guesses of one engine's choices. Called by one thread; nothing here blocks.

    `gain`: the tokens per ms of the latest steps as a multiple of what they would be without.
    """

    def __init__(self, limits: DraftLimits, cost: CostModel) -> None:
        """Begin with no choice. `cost` is read, never changed."""
        self.limits = limits
        self.drafted_total = 0
        self.accepted_total = 0
        self.gain = 1.0
        self._cost = cost
        self._score = Score()
        self._is_on = False
        self._promised = 1.0
        self._kept = 1.0
        self._kept_step = 0
        self._rows_paid = 0
        self._pause = 0  # steps until guesses are looked for again
        self._pauses = 0
        self._plain: dict[int, tuple[float, int]] = {}  # streams: ms, step
        self._step = 0

    def draft(
        self,
        choices: Sequence[Choice],
        room: Callable[[Choice], int],
        shape: StepShape,
        *,
        rows_max: int,
        step_ms_max: float,
    ) -> list[tuple[int, ...]]:
        """Guess for each choice at most as many tokens as `room` says, `rows_max` in all.

        `shape` is the step without guesses: a decode row for each choice. With them it takes no
        longer than step_ms_max. Follow with `observe` if the step was evaluated.
        """
        if len(choices) > self.limits.streams_max:
            for choice in choices:
                choice.track = None
            return [_NOTHING] * len(choices)
        tracks = [self._follow(choice) for choice in choices]
        left = _INDEXED_MAX
        for track in tracks:
            left -= track.index(left)
        counts = [0] * len(tracks)
        if self._is_worth_asking(tracks, shape):
            limit = max(_ROWS_MIN, len(tracks), self._rows_paid * _GROWTH)
            offers = self._offers(choices, room, max(0, min(rows_max, limit)))
            for _, at in offers[: self._count(offers, shape, step_ms_max)]:
                counts[at] += 1
        self._is_on = any(counts)
        return [
            tuple(track.guess(count)) if count else _NOTHING
            for track, count in zip(tracks, counts, strict=True)
        ]

    def observe(self, shape: StepShape, *, drafted: int, accepted: int, step_ms: float) -> None:
        """Fold in a step: `shape` with the guesses among its decode rows; what they came to."""
        self._step += 1
        self.drafted_total += drafted
        self.accepted_total += accepted
        gain = 1.0
        if not drafted:
            self._measure_plain(shape, step_ms)
        else:
            gain = self._measured_gain(shape, drafted, accepted, step_ms)
            kept = self._trust()
            now = min(max(gain / self._promised, kept / _OUTLIER), kept * _OUTLIER)
            self._kept = kept + _WEIGHT_KEPT * (now - kept)
            self._kept_step = self._step
            self._rows_paid = drafted if gain > 1.0 else min(self._rows_paid, drafted // 2)
        self.gain += _WEIGHT_SHOWN * (gain - self.gain)

    def _follow(self, choice: Choice) -> Track:
        """Bring the track of a choice up to date."""
        track, drawn = choice.track, len(choice.outputs)
        if track is None:
            size = min(choice.length, self.limits.lookback_tokens // 2)
            tokens = choice.tokens(choice.length - size, size)
            track = choice.track = Track(tokens, self.limits, self._score)
        elif track.drawn < drawn:
            track.follow(choice.outputs[track.drawn :])
        track.drawn = drawn
        return track

    # --- how many --------------------------------------------------------------------------------

    def _is_worth_asking(self, tracks: Sequence[Track], shape: StepShape) -> bool:
        """Say whether to look for guesses that pay: not in each step where none did lately."""
        if not any(track.is_repeating for track in tracks):
            return False
        self._pause -= 1
        return self._pause < 0 and self._is_plain_known(shape)

    def _count(
        self, offers: Sequence[tuple[float, int]], shape: StepShape, step_ms_max: float
    ) -> int:
        """Find how many of the offers make the most tokens per ms; 0 if none promises enough."""
        predict_ms, streams, kv_span = self._cost.predict_rows_ms, shape.decode, shape.kv_span
        base_ms = predict_ms(streams, 0, kv_span)
        stretched_ms = min(step_ms_max, base_ms * self.limits.stretch_max)
        tokens = float(streams)
        best, best_gain = 0, (_GO_ON if self._is_on else _BEGIN) / self._trust()
        guessing: set[int] = set()
        for count, (chance, at) in enumerate(offers, start=1):
            tokens += chance
            guessing.add(at)
            ms = predict_ms(streams + count, 0, kv_span + count)
            gain = tokens / streams * base_ms / ms
            if gain > best_gain and ms <= (
                step_ms_max if len(guessing) == streams else stretched_ms
            ):
                best, best_gain = count, gain
        self._promised = best_gain
        self._pauses = 0 if best else min(_PAUSE_MAX, 2 * self._pauses + 1)
        self._pause = self._pauses
        return best

    def _offers(
        self, choices: Sequence[Choice], room: Callable[[Choice], int], count: int
    ) -> list[tuple[float, int]]:
        """List (chance, track) of the likeliest guesses, in order; so are those of one track."""
        tokens_max = self.limits.tokens_max
        of_each = []
        for at, choice in enumerate(choices):
            if choice.track is not None and choice.track.is_repeating:
                chances = choice.track.chances(min(room(choice), tokens_max), _CHANCE_MIN)
                of_each.append([(chance, at) for chance in chances])
        return list(islice(merge(*of_each, key=_chance, reverse=True), count))

    # --- what came -------------------------------------------------------------------------------

    def _trust(self) -> float:
        """Say how much of a promise is kept, faded by the steps since that was last seen."""
        fading = math.exp((self._kept_step - self._step) / _FADING_STEPS)
        return 1.0 + (self._kept - 1.0) * fading

    def _is_plain_known(self, shape: StepShape) -> bool:
        """Say whether a step without guesses was measured lately, with as many choices."""
        _, step = self._plain.get(shape.decode, (0.0, -_PLAIN_STEPS))
        return self._step - step < _PLAIN_STEPS

    def _measure_plain(self, shape: StepShape, step_ms: float) -> None:
        if shape.prefill or shape.decode > self.limits.streams_max:
            return
        before, step = self._plain.get(shape.decode, (step_ms, self._step))
        if self._step - step > _FADING_STEPS:
            before = step_ms
        # What holds a step up only makes it longer: believe the short ones sooner.
        weight = _WEIGHT_SHORTER if step_ms < before else _WEIGHT_LONGER
        step_ms = min(step_ms, before * _OUTLIER)
        self._plain[shape.decode] = (before + weight * (step_ms - before), self._step)

    def _measured_gain(
        self, shape: StepShape, drafted: int, accepted: int, step_ms: float
    ) -> float:
        streams = shape.decode - drafted
        plain_ms, _ = self._plain[streams]
        return (streams + accepted) / streams * plain_ms / max(step_ms, 1e-6)


def _chance(offer: tuple[float, int]) -> float:
    return offer[0]
