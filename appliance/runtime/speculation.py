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
`_PLAIN_STEPS` steps. The next promises are believed by as much (`promise`).

Where a step has a choice without guesses, that stream gains nothing from a longer step; then a step
may be `stretch_max` times as long at most.

Where a draft model is configured, it guesses for choices that the lookup has nothing for, or less
than it (`foresight`). Its own time is part of what is promised and of what is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import merge
from itertools import islice

from appliance.runtime.cost import CostModel, StepShape
from appliance.runtime.draft import DraftLimits, Score, Track
from appliance.runtime.draft_cache import DraftCache
from appliance.runtime.foresight import Beside, Foresight
from appliance.runtime.jobs import UNTOLD, Choice
from appliance.runtime.promise import FADING_STEPS, Promise

_CHANCE_MIN = 0.1
_INDEXED_MAX = 1024  # tokens indexed in one step for all choices: some tenths of a ms
_PLAIN_STEPS = 64
_WEIGHT_SHORTER = 0.4  # of the newest step in the time of a step without guesses
_WEIGHT_LONGER = 0.1
_OUTLIER = 2.0
_WEIGHT_SHOWN = 0.05  # of the newest step in `gain`
_NOTHING: tuple[int, ...] = ()
Offer = tuple[float, int]  # the chance of a guess, and whose it is


class Speculation:
    """The guesses of one engine's choices. Called by one thread; nothing here blocks.

    `gain`: the tokens per ms of the latest steps as a multiple of what they would be without.
    `readings`: what the draft model should read in the step just drafted for: (choice, tokens).
    """

    def __init__(
        self, limits: DraftLimits, cost: CostModel, draft_cache: DraftCache | None = None
    ) -> None:
        """Begin with no choice. `cost` is read, never changed; draft_cache: of a draft model."""
        self.limits = limits
        self.drafted_total = 0
        self.accepted_total = 0
        self.gain = 1.0
        self.readings: tuple[tuple[Choice, int], ...] = ()
        self.foresight: Foresight | None = None
        if draft_cache is not None:
            self.foresight = Foresight(cost, draft_cache, limits.tokens_max)
        self._cost = cost
        self._score = Score()
        self._lookup = Promise()
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
        longer than step_ms_max. What the draft model is to guess is UNTOLD. Follow with `observe`
        if the step was evaluated.
        """
        self.readings = ()
        if len(choices) > self.limits.streams_max:
            for choice in choices:
                choice.track = None
            return [_NOTHING] * len(choices)
        tracks = [self._follow(choice) for choice in choices]
        left = _INDEXED_MAX
        for track in tracks:
            left -= track.index(left)
        rooms = [min(room(choice), self.limits.tokens_max) for choice in choices]
        offers = self._look_up(tracks, rooms, shape, max(0, rows_max), step_ms_max)
        counts = [0] * len(tracks)
        for _, at in offers:
            counts[at] += 1
        depths = self._foresee(choices, rooms, offers, shape, max(0, rows_max), step_ms_max)
        return [
            (UNTOLD,) * depth if depth else tuple(track.guess(count)) if count else _NOTHING
            for track, count, depth in zip(tracks, counts, depths, strict=True)
        ]

    def settle(self, choice: Choice, *, kept: int, guessed: int) -> None:
        """Count guesses of the draft model, of which the first `kept` came true."""
        assert self.foresight is not None
        self.foresight.note(choice, kept, guessed, self._step)

    def observe(
        self,
        shape: StepShape,
        *,
        drafted: int,
        accepted: int,
        step_ms: float,
        by_model: int = 0,
        reading_ms: float = 0.0,
    ) -> None:
        """Fold in a step: `shape` with the guesses among its decode rows; what they came to.

        by_model: how many of the guesses are the draft model's. step_ms has its time for them in
        it, but not reading_ms, its time for what will be guessed later.
        """
        self._step += 1
        self.drafted_total += drafted
        self.accepted_total += accepted
        gain = 1.0
        if not drafted:
            self._measure_plain(shape, step_ms)
        else:
            gain = self._measured_gain(shape, drafted, accepted, step_ms)
            if by_model and self.foresight is not None:
                self.foresight.promise.keep(gain, by_model, self._step)
            else:
                self._lookup.keep(gain, drafted, self._step)
        gain *= step_ms / max(step_ms + reading_ms, 1e-6)
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

    def _look_up(
        self,
        tracks: Sequence[Track],
        rooms: Sequence[int],
        shape: StepShape,
        rows_max: int,
        step_ms_max: float,
    ) -> Sequence[Offer]:
        """Choose the guesses that the choices' own text makes, if any pay."""
        lookup, chosen = self._lookup, 0
        offers: list[Offer] = []
        is_any = any(track.is_repeating for track in tracks)
        if is_any and lookup.is_due() and self._is_plain_known(shape):
            rows_max = min(rows_max, lookup.rows_max(len(tracks)))
            offers = self._offers(tracks, rooms, rows_max)
            chosen = self._count(offers, shape, step_ms_max)
        lookup.is_on = chosen > 0
        return offers[:chosen]

    def _count(self, offers: Sequence[Offer], shape: StepShape, step_ms_max: float) -> int:
        """Find how many of the offers make the most tokens per ms; 0 if none promises enough."""
        predict_ms, streams, kv_span = self._cost.predict_rows_ms, shape.decode, shape.kv_span
        base_ms = predict_ms(streams, 0, kv_span)
        stretched_ms = min(step_ms_max, base_ms * self.limits.stretch_max)
        tokens = float(streams)
        best, best_gain = 0, self._lookup.needed(self._step)
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
        self._lookup.make(best_gain, is_made=best > 0)
        return best

    def _offers(self, tracks: Sequence[Track], rooms: Sequence[int], count: int) -> list[Offer]:
        """List (chance, track) of the likeliest guesses, in order; so are those of one track."""
        of_each = []
        for at, track in enumerate(tracks):
            if track.is_repeating:
                chances = track.chances(rooms[at], _CHANCE_MIN)
                of_each.append([(chance, at) for chance in chances])
        return list(islice(merge(*of_each, key=_chance, reverse=True), count))

    def _foresee(
        self,
        choices: Sequence[Choice],
        rooms: Sequence[int],
        offers: Sequence[Offer],
        shape: StepShape,
        rows_max: int,
        step_ms_max: float,
    ) -> Sequence[int]:
        """Say how many tokens the draft model guesses for each choice, beside these lookups."""
        depths: Sequence[int] = [0] * len(choices)
        foresight = self.foresight
        if foresight is None:
            return depths
        if self._is_plain_known(shape):
            tokens, rows = [0.0] * len(choices), [0] * len(choices)
            for chance, at in offers:
                tokens[at] += chance
                rows[at] += 1
            base_ms = self._cost.predict_rows_ms(shape.decode, 0, shape.kv_span)
            beside = Beside(
                shape=shape,
                base_ms=base_ms,
                tokens=tokens,
                rows=rows,
                rooms=rooms,
                gain=self._lookup.gain * self._lookup.trust(self._step) if offers else 1.0,
                rows_max=rows_max,
                step_ms_max=step_ms_max,
                stretched_ms=min(step_ms_max, base_ms * self.limits.stretch_max),
            )
            foreseen = foresight.choose(choices, beside, self._step)
            depths, self.readings = foreseen.depths, foreseen.readings
        foresight.promise.is_on = any(depths)
        return depths

    # --- what came -------------------------------------------------------------------------------

    def _is_plain_known(self, shape: StepShape) -> bool:
        """Say whether a step without guesses was measured lately, with as many choices."""
        _, step = self._plain.get(shape.decode, (0.0, -_PLAIN_STEPS))
        return self._step - step < _PLAIN_STEPS

    def _measure_plain(self, shape: StepShape, step_ms: float) -> None:
        if shape.prefill or shape.decode > self.limits.streams_max:
            return
        before, step = self._plain.get(shape.decode, (step_ms, self._step))
        if self._step - step > FADING_STEPS:
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


def _chance(offer: Offer) -> float:
    return offer[0]
