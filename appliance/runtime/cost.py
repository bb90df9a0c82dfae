"""Predict how long a step takes, from the steps so far.

What this room does: fits t = a + b·decode + c·prefill + d·attended, and turns a time budget into
the number of prompt tokens that fit into it.
What it knows: decode and prefill count the rows of a step; attended is rows times the span of KV
cells that each of them looks at (a unified cache is read up to its highest used cell).
What it never does: measure, or trust one measurement. No coefficient is ever negative.

The fit is weighted least squares that forgets. Errors count relative to the step's duration, so
that short decode steps and long prompt steps matter alike. What isn't seen for a while falls back
to a prior, the fit made while warming up: a month of decoding alone can't spoil the price of a
prompt token (plain recursive least squares winds up there). A row never costs less than a third
of what it cost then, on an idle machine, however the fit divides a step among its features. An
outlier is pulled in before it is folded in. As the time of a chunk can't be known from much
smaller chunks, a chunk is never more than four times the largest one measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FORGETTING = 0.99  # half of the weight lies in the last 70 steps
_PRIOR_WEIGHT_UNSETTLED = 0.02  # start values give way to the first measurements
_PRIOR_WEIGHT = 0.5  # in steps: how much one relative error of a coefficient weighs
_SCALE = np.array([1.0, 1 / 16, 1 / 64, 1 / 65_536])  # makes the features alike in size
_OUTLIER = 4.0
_GROWTH = 4
_FLOORS = np.array([0.0, 0.33, 0.33, 0.0])  # of the settled prior
_MARGIN = 0.85  # the share of a budget that a prediction may fill
_STEP_MS_FLOOR = 0.05
# Safe to begin with, for a model of about 1B parameters on two cores; the warm-up corrects it.
_START = np.array([2.0, 40.0, 6.0, 1e-4])


@dataclass(frozen=True, slots=True, kw_only=True)
class StepShape:
    """What a step is made of: rows of each kind, and the span of cells that each row reads."""

    decode: int
    prefill: int
    kv_span: int


class CostModel:
    """The fitted price of a step. Owned by the scheduler; nothing here blocks."""

    def __init__(self) -> None:
        """Begin with start values that are too dear rather than too cheap."""
        self._prior = _START / _SCALE
        self._prior_weight = _PRIOR_WEIGHT_UNSETTLED
        self._floor = np.zeros(4)
        self._moments = np.zeros((4, 4))
        self._targets = np.zeros(4)
        self._fit = self._prior.copy()
        self._prefill_seen = 0
        self._observed = 0

    @property
    def coefficients(self) -> tuple[float, float, float, float]:
        """Read a, b, c, d in milliseconds per step, decode row, prefill row, attended cell."""
        a, b, c, d = (self._fit * _SCALE).tolist()
        return a, b, c, d

    def predict_ms(self, shape: StepShape) -> float:
        """Predict the duration of such a step."""
        a, b, c, d = self.coefficients
        rows = shape.decode + shape.prefill
        return a + b * shape.decode + c * shape.prefill + d * rows * shape.kv_span

    def prefill_room(self, decode: int, kv_span: int, budget_ms: float) -> int:
        """Count the prompt tokens that fit into a step beside `decode` rows; may be 0."""
        a, b, c, d = self.coefficients
        left = budget_ms * _MARGIN - a - decode * (b + d * kv_span)
        each = c + d * kv_span
        if left <= 0.0:
            return 0
        bound = self._prefill_seen * _GROWTH
        return bound if each * bound <= left else int(left / each)

    def observe(self, shape: StepShape, step_ms: float) -> None:
        """Fold in one measured step."""
        if shape.decode + shape.prefill == 0:
            return
        self._prefill_seen = max(self._prefill_seen, shape.prefill)
        features = self._features(shape)
        predicted = float(features @ self._fit)
        measured = max(step_ms, _STEP_MS_FLOOR)
        if self._observed >= len(_START):
            # A step that another process held up says little: pull it in, and believe it slowly.
            measured = min(measured, max(predicted, _STEP_MS_FLOOR) * _OUTLIER)
        weight = 1.0 / measured**2
        self._moments *= _FORGETTING
        self._targets *= _FORGETTING
        self._moments += weight * np.outer(features, features)
        self._targets += weight * measured * features
        self._observed += 1
        self._fit = self._solve()

    def settle(self) -> None:
        """Take the fit so far as the prior: what is never seen again is priced as it is now."""
        self._prior = np.maximum(self._fit, self._prior * 1e-3)
        self._prior_weight = _PRIOR_WEIGHT
        self._floor = self._prior * _FLOORS

    @staticmethod
    def _features(shape: StepShape) -> NDArray[np.float64]:
        rows = shape.decode + shape.prefill
        raw = (1.0, float(shape.decode), float(shape.prefill), float(rows * shape.kv_span))
        features: NDArray[np.float64] = np.array(raw) * _SCALE
        return features

    def _solve(self) -> NDArray[np.float64]:
        """Minimise the weighted error plus the pull to the prior, with no coefficient too low.

        Solved for what is above the floor; a coefficient that would go below is held there.
        """
        pull = self._prior_weight / np.maximum(self._prior, 1e-9) ** 2
        moments = self._moments + np.diag(pull)
        targets = self._targets + pull * self._prior - moments @ self._floor
        active = np.ones(4, dtype=bool)
        above = np.linalg.solve(moments, targets)
        while (above < 0.0).any():
            active &= above >= 0.0
            above = np.zeros(4)
            if not active.any():
                break
            above[active] = np.linalg.solve(moments[np.ix_(active, active)], targets[active])
        return self._floor + above
