"""Predict how long a step takes, from the steps so far.

What this room does: measures, while warming up, how long steps of some sizes take; fits
t = s·curve(rows) + g·decode + d·attended + e·tiled to the steps since, for each number of threads
apart; turns a time budget into the number of prompt tokens that are evaluated best within it.
What it knows: rows are decode and prefill rows together; a decode row has logits besides; attended
is rows times the span of KV cells that each of them reads, in steps of fewer than ATTENTION_TILE
rows; tiled is the same in larger ones.
What it never does: measure, or trust one measurement. No coefficient is ever negative.

A size that the warm-up did not reach, on a machine that was busy then, is taken into the curve when
it is first met, and followed from then on. What was measured while warming up stays: else curve and
factor could drift apart and nobody would know which of them is wrong.

The curve is bent. On two cores of a CPU a 1B model takes 17 ms for one row, 59 for 8, 99 for 15,
75 for 16, 140 for 32 and 258 for 64: matrix kernels work on tiles, and rows beside a whole number
of tiles are dear. So a step is filled to a multiple of 16 rows where it can be.

Attention is bent too: from 64 rows on ggml's flash attention works on tiles of 64
(ggml-cpu/ops.cpp, GGML_FA_TILE_Q), of which the last may be partly empty. Behind 2,048 cells of the
1B model 32 rows take 432 ms, 63 rows 856, 64 rows 475, 80 rows 732 and 128 rows 928. So a prompt
that is long goes on by whole tiles where it can, even if a smaller step would keep a stream waiting
a little less.

The fit is weighted least squares that forgets. Errors count relative to the step's duration, so
that short decode steps and long prompt steps matter alike. What isn't seen for a while falls back
to a prior, the fit made while warming up: a month of decoding alone can't spoil the price of a
prompt token (plain recursive least squares winds up there). A row never costs less than a third
of what it cost then, on an idle machine, however the fit divides a step among its features. An
outlier is pulled in before it is folded in. As the time of a chunk can't be known from much
smaller chunks, a chunk is never more than four times the largest one measured.

A step's price depends on the threads that evaluate it, and not by one factor: prompts scale with
them, single rows hardly. So each count has a fit of its own. One that was not measured begins as
the nearest one, scaled as if threads shared all work evenly, and gives way to its first steps.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

ROW_QUANTUM = 16  # rows of a whole number of tiles of a matrix kernel, see above
ATTENTION_TILE = 64
_WORTH = 0.8  # a step may take longer than its budget if it makes a token cheaper by this factor
_UNKNOWN = 1e-12  # a coefficient that nothing has priced
_DEEPER_LEAST = 0.02  # of a step's time: what it takes longer behind more cells, if not measurable
_ATTENDED_START = 1 / 1000  # of a row's price, for each cell, until it is measured
_FORGETTING = 0.99  # half of the weight lies in the last 70 steps
_PRIOR_WEIGHT_UNSETTLED = 0.02  # start values give way to the first measurements
_PRIOR_WEIGHT = 0.5  # in steps: how much one relative error of a coefficient weighs
_SCALE = (1.0, 1 / 16, 1 / 65_536, 1 / 65_536)  # makes the features alike in size
_OFF = 0.25  # a prediction that is off by more is mended at once
_SOLVE_EVERY = 8
_OUTLIER = 4.0
_POINT_WEIGHT = 0.05  # of a step, in a point of the curve that was learnt
_POINTS_APART = 1.4  # a step that is larger than the largest point by this factor is a new one
_GROWTH = 4
_FLOORS = np.array([0.33, 0.33, 0.1, 0.1])  # of the settled prior
_MARGIN = 0.9  # the share of a budget that a prediction may fill
_STEP_MS_FLOOR = 0.05
# Safe to begin with, for a model of about 1B parameters on two cores; the warm-up corrects it.
_CURVE_FIRST = {1: 8.0, 64: 386.0}
_START = np.array([1.0, 34.0, 0.0, 0.0])


@dataclass(frozen=True, slots=True, kw_only=True)
class StepShape:
    """What a step is made of: rows of each kind, and the span of cells that each row reads."""

    decode: int
    prefill: int
    kv_span: int


class CostModel:
    """The fitted price of a step. Owned by the scheduler; nothing here blocks."""

    def __init__(self) -> None:
        """Begin with start values that are too dear rather than too cheap; see `use`."""
        self._fits = {1: _Fit()}
        self._decode_threads = self._prefill_threads = 1

    def measure(self, threads: int) -> None:
        """Price steps with this many threads from now on, by measurements alone: a warm-up."""
        self._only_seen()
        self._fits[threads] = _Fit()
        self._decode_threads = self._prefill_threads = threads

    def use(self, *, decode_threads: int, prefill_threads: int) -> None:
        """Price steps of decode rows alone, and all others, with these threads from now on."""
        self._only_seen()
        for threads in (decode_threads, prefill_threads):
            if not self._fits:
                self._fits[threads] = _Fit()
            if threads not in self._fits:
                fit, factor = self._nearest(threads)
                self._fits[threads] = fit.scaled(factor)
        self._decode_threads, self._prefill_threads = decode_threads, prefill_threads

    @property
    def coefficients(self) -> tuple[float, ...]:
        """Read s, g, d, e: a factor on the curve, ms of a decode row, of a cell attended to."""
        return self._fits[self._prefill_threads].coefficients

    @property
    def row_ms(self) -> float:
        """Tell what a row costs in a large step."""
        return self._fits[self._prefill_threads].row_ms

    def threads(self, shape: StepShape) -> int:
        """Tell with how many threads such a step is evaluated now."""
        return self._prefill_threads if shape.prefill else self._decode_threads

    def predict_ms(self, shape: StepShape, threads: int = 0) -> float:
        """Predict the duration of such a step, with the threads in use or with so many."""
        fit, factor = self._nearest(threads or self.threads(shape))
        return factor * fit.predict_rows_ms(shape.decode, shape.prefill, shape.kv_span)

    def frozen(self, threads: int) -> Callable[[StepShape], float]:
        """Keep the prices of so many threads as they are now, whatever is learnt afterwards."""
        fit, factor = self._nearest(threads)
        kept = fit.scaled(1.0)
        return lambda shape: (
            factor * kept.predict_rows_ms(shape.decode, shape.prefill, shape.kv_span)
        )

    def predict_rows_ms(self, decode: int, prefill: int, kv_span: int) -> float:
        """Predict the duration of a step of so many rows."""
        threads = self._prefill_threads if prefill else self._decode_threads
        return self._fits[threads].predict_rows_ms(decode, prefill, kv_span)

    def prefill_room(
        self, decode: int, kv_span: int, budget_ms: float, limit_ms: float = 0.0, wanted: int = 0
    ) -> int:
        """Count the prompt tokens that a step beside `decode` rows evaluates best; may be 0.

        Where that leaves any, the step has a multiple of ROW_QUANTUM rows in all. It stays within
        the budget, but for one tile of attention that takes at most `limit_ms` and makes each
        token much cheaper than what fits. `wanted`: how many there are, if not more than enough.
        """
        fit = self._fits[self._prefill_threads]
        return fit.prefill_room(decode, kv_span, budget_ms, limit_ms, wanted)

    def observe(self, shape: StepShape, step_ms: float) -> None:
        """Fold in one measured step, evaluated with the threads in use."""
        if shape.decode + shape.prefill:
            self._fits[self.threads(shape)].observe(shape, step_ms)

    def observe_depth(self, shape: StepShape, step_ms: float, deep_ms: float, cells: int) -> None:
        """Price attention: such a step took `deep_ms` behind so many cells more. To warm up."""
        self._fits[self.threads(shape)].observe_depth(shape, step_ms, deep_ms, cells)

    def settle(self) -> None:
        """Take the fits so far as priors: what is never seen again is priced as it is now."""
        for threads, fit in self._fits.items():
            near = min(
                (other for other, one in self._fits.items() if one.knows_attention),
                key=lambda other: abs(other - threads),
                default=threads,
            )
            fit.take_attention(self._fits[near], near / threads)
            fit.settle()

    def _only_seen(self) -> None:
        """Forget counts that were in use and never ran: better start values may come."""
        self._fits = {threads: fit for threads, fit in self._fits.items() if fit.observed}

    def _nearest(self, threads: int) -> tuple[_Fit, float]:
        """Find the fit of the nearest count, and the factor if threads share all work evenly."""
        nearest = min(self._fits, key=lambda count: (abs(count - threads), -count))
        return self._fits[nearest], nearest / threads


class _Fit:
    """The price of a step with one number of threads."""

    def __init__(self) -> None:
        """Begin with start values."""
        self._curve = _Curve(_CURVE_FIRST)
        self._measured: dict[int, float] = {}
        self._settled = False
        self._prior = _START / _SCALE
        self._prior_weight = _PRIOR_WEIGHT_UNSETTLED
        self._floor = np.zeros(len(_START))
        self._sums = _Sums()
        self._set_fit(self._prior.copy())
        self._prefill_seen = 0
        self.observed = 0

    @property
    def coefficients(self) -> tuple[float, ...]:
        """Read s, g, d, e; see `CostModel.coefficients`."""
        return self._coefficients

    @property
    def row_ms(self) -> float:
        """Tell what a row costs in a large step."""
        return self._coefficients[0] * self._curve.slope

    def predict_rows_ms(self, decode: int, prefill: int, kv_span: int) -> float:
        """Predict the duration of a step of so many rows."""
        rows = decode + prefill
        s, g, _, _ = self._coefficients
        return s * self._curve.at(rows) + g * decode + self._attention_ms(rows, kv_span)

    def _attention_ms(self, rows: int, kv_span: int) -> float:
        _, _, d, e = self._coefficients
        attended, tiled = _attended(rows, kv_span)
        return d * attended + e * tiled

    def prefill_room(
        self, decode: int, kv_span: int, budget_ms: float, limit_ms: float, wanted: int
    ) -> int:
        """Count the prompt tokens that a step evaluates best; see `CostModel.prefill_room`."""
        budget_ms *= _MARGIN
        most = self._prefill_seen * _GROWTH
        most = min(most, wanted) if wanted else most
        tile = max(1, ATTENTION_TILE - decode)

        def price_ms(count: int) -> float:
            return self.predict_rows_ms(decode, count, kv_span + count)

        def dearness(count: int) -> float:
            return price_ms(count) / count if count else math.inf

        if 0 < wanted <= most and price_ms(wanted) <= budget_ms:
            return wanted
        small = _most_within(price_ms, budget_ms, 0, min(most, tile - 1))
        found = [_whole(decode, small, ROW_QUANTUM)]
        if most >= tile and price_ms(tile) <= budget_ms:
            large = _most_within(price_ms, budget_ms, tile, most)
            found += [_whole(decode, large, quantum) for quantum in (ROW_QUANTUM, ATTENTION_TILE)]
        elif (
            most >= tile
            and price_ms(tile) <= limit_ms
            and (not small or dearness(tile) < _WORTH * dearness(found[0]))
        ):
            return tile
        return max(found, key=lambda count: (-dearness(count), count)) if most else 0

    def observe(self, shape: StepShape, step_ms: float) -> None:
        """Fold in one measured step."""
        self._prefill_seen = max(self._prefill_seen, shape.prefill)
        measured = max(step_ms, _STEP_MS_FLOOR)
        if not self._settled and not shape.decode:
            known = self._measured.get(shape.prefill, measured)
            self._measured[shape.prefill] = min(known, measured)
            self._lay_curve()
        predicted = self.predict_rows_ms(shape.decode, shape.prefill, shape.kv_span)
        if self.observed >= len(_START):
            # A step that another process held up says little: pull it in, and believe it slowly.
            measured = min(measured, max(predicted, _STEP_MS_FLOOR) * _OUTLIER)
        self._sums.add(self._features(shape), measured)
        self.observed += 1
        if self._settled:
            self._learn_point(shape, measured)
        # Solving takes longer than all the rest of a step's bookkeeping.
        is_off = abs(measured - predicted) > _OFF * predicted
        if not self._settled or is_off or self.observed % _SOLVE_EVERY == 0:
            self._set_fit(self._solve())

    def _learn_point(self, shape: StepShape, measured_ms: float) -> None:
        """Put into the curve what a step says of it, less its decode rows and attention."""
        s, g, _, _ = self._coefficients
        rows = shape.decode + shape.prefill
        rest_ms = measured_ms - g * shape.decode - self._attention_ms(rows, shape.kv_span)
        if s > 0.0 and rest_ms > 0.0:
            self._curve.learn(rows, rest_ms / s)

    def observe_depth(self, shape: StepShape, step_ms: float, deep_ms: float, cells: int) -> None:
        """Price a cell attended to, and take what that makes of each step out of the curve."""
        attended = np.array([0.0, 0.0, *_attended(shape.decode + shape.prefill, cells)]) * _SCALE
        priced = np.flatnonzero(attended)
        fit = self._fit.copy()
        fit[priced] = max(deep_ms - step_ms, _DEEPER_LEAST * step_ms) / attended[priced]
        self._prior[priced] = fit[priced]
        self._set_fit(fit)
        self._lay_curve()

    @property
    def knows_attention(self) -> bool:
        """Say whether a cell attended to has a measured price."""
        return bool((self._prior[2:] > _UNKNOWN).any())

    def take_attention(self, other: _Fit, factor: float) -> None:
        """Price a cell attended to as another fit does, unless it is known here."""
        if not self.knows_attention:
            fit = self._fit.copy()
            fit[2:] = self._prior[2:] = other._prior[2:] * factor
            self._set_fit(fit)

    def _lay_curve(self) -> None:
        """Lay the curve through what was measured, less the attention to the step's own cells."""
        self._curve = _Curve(
            {
                rows: max(0.5 * ms, ms - self._attention_ms(rows, rows))
                for rows, ms in self._measured.items()
            }
        )

    def settle(self) -> None:
        """Take the fit so far as the prior: what is never seen again is priced as it is now."""
        self._settled = True
        self._prior = np.maximum(self._fit, self._prior * 1e-3)
        unknown = self._prior < _UNKNOWN
        self._prior[unknown] = self.row_ms * _ATTENDED_START / np.array(_SCALE)[unknown]
        self._set_fit(self._prior.copy())
        self._prior_weight = _PRIOR_WEIGHT
        self._floor = self._prior * _FLOORS

    def scaled(self, factor: float) -> _Fit:
        """Make a fit to begin with, `factor` times as dear; the first steps correct it."""
        fit = _Fit()
        fit._curve = self._curve.scaled(factor)
        fit._settled = True
        fit._prior = np.maximum(self._fit, self._prior * 1e-3)
        fit._prior *= np.array([1.0, factor, factor, factor])
        fit._floor = fit._prior * _FLOORS * min(1.0, 1.0 / factor)
        fit._set_fit(fit._prior.copy())
        fit._prefill_seen = self._prefill_seen
        return fit

    def _set_fit(self, fit: NDArray[np.float64]) -> None:
        self._fit = fit
        self._coefficients: tuple[float, ...] = tuple((fit * _SCALE).tolist())

    def _features(self, shape: StepShape) -> tuple[float, ...]:
        rows = shape.decode + shape.prefill
        features = (self._curve.at(rows), shape.decode, *_attended(rows, shape.kv_span))
        return tuple(feature * scale for feature, scale in zip(features, _SCALE, strict=True))

    def _solve(self) -> NDArray[np.float64]:
        """Minimise the weighted error plus the pull to the prior, with no coefficient too low.

        Solved for what is above the floor; a coefficient that would go below is held there.
        """
        pull = self._prior_weight / np.maximum(self._prior, 1e-9) ** 2
        moments = np.array(self._sums.moments) + np.diag(pull)
        targets = np.array(self._sums.targets) + pull * self._prior - moments @ self._floor
        active = np.ones(len(_START), dtype=bool)
        above = np.linalg.solve(moments, targets)
        while (above < 0.0).any():
            active &= above >= 0.0
            above = np.zeros(len(_START))
            if not active.any():
                break
            above[active] = np.linalg.solve(moments[np.ix_(active, active)], targets[active])
        return self._floor + above


def _attended(rows: int, kv_span: int) -> tuple[int, int]:
    """Count rows times cells, in a step without tiles of attention, and in one with them."""
    if rows < ATTENTION_TILE:
        return rows * kv_span, 0
    return 0, -(-rows // ATTENTION_TILE) * ATTENTION_TILE * kv_span


def _most_within(price_ms: Callable[[int], float], budget_ms: float, low: int, high: int) -> int:
    """Find the most that stays within the budget, if `low` does and more never costs less."""
    if high <= low or price_ms(high) <= budget_ms:
        return max(low, high)
    while high - low > 1:
        middle = (low + high) // 2
        if price_ms(middle) <= budget_ms:
            low = middle
        else:
            high = middle
    return low


def _whole(decode: int, prefill: int, quantum: int) -> int:
    """Leave out what does not fill a quantum of rows; all of it if there is not even one."""
    whole = (decode + prefill) // quantum * quantum - decode
    return whole if whole > 0 else prefill


class _Sums:
    """What least squares need to know of the steps so far; older ones weigh less."""

    def __init__(self) -> None:
        self.moments = [[0.0] * len(_START) for _ in _START]
        self.targets = [0.0] * len(_START)

    def add(self, features: tuple[float, ...], measured_ms: float) -> None:
        weight = 1.0 / measured_ms**2
        for row, feature in enumerate(features):
            self.targets[row] = _FORGETTING * self.targets[row] + weight * measured_ms * feature
            sums = self.moments[row]
            for column, other in enumerate(features):
                sums[column] = _FORGETTING * sums[column] + weight * feature * other


class _Curve:
    """Milliseconds by rows: measured points, straight lines between them and beyond the last."""

    def __init__(self, points: dict[int, float]) -> None:
        self._points = dict(points)
        self._learnt: set[int] = set()
        self._lay()

    def learn(self, rows: int, ms: float) -> None:
        """Take in a step that is larger than all that was measured, or near one learnt so."""
        if rows > self._rows[-1] * _POINTS_APART:
            self._points[rows] = ms
            self._learnt.add(rows)
        elif rows in self._learnt:
            self._points[rows] += _POINT_WEIGHT * (ms - self._points[rows])
        else:
            return
        self._lay()

    def _lay(self) -> None:
        points = self._points
        self._rows = sorted(points)
        self._ms: list[float] = []
        for rows in self._rows:  # a larger step that was measured as quicker was held up less
            self._ms.append(max(points[rows], self._ms[-1] if self._ms else 0.0))
        at = max(0, len(self._rows) - 3)  # two points that lie close would say little
        rows = self._rows[-1] - self._rows[at]
        rise = (self._ms[-1] - self._ms[at]) / rows if rows else 0.0
        self.slope = rise if rise > 0.0 else self._ms[-1] / self._rows[-1]

    def scaled(self, factor: float) -> _Curve:
        """Make the same curve, `factor` times as high; all its points are there to be corrected."""
        curve = _Curve({rows: factor * ms for rows, ms in zip(self._rows, self._ms, strict=True)})
        curve._learnt = set(self._rows)
        return curve

    def at(self, rows: int) -> float:
        """Read the curve; 0 for no rows."""
        if rows <= 0:
            return 0.0
        at = bisect_left(self._rows, rows)
        if at == len(self._rows):
            return self._ms[-1] + (rows - self._rows[-1]) * self.slope
        if at == 0:
            return self._ms[0]
        left, right = self._rows[at - 1], self._rows[at]
        share = (rows - left) / (right - left)
        return self._ms[at - 1] + share * (self._ms[at] - self._ms[at - 1])
