"""Say how sure a median is.

What this room does: the median of some rounds, and the interval it may lie in, by bootstrap.
What it knows: that there are few rounds. With one, the interval is that point; with two or three it
reaches from the least to the most, since resamples of so few nearly always hold either.
What it never does: measure. Pure; the draws are seeded, so equal rounds give equal intervals.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 4000
_SEED = 1


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """A median over rounds, and where it lies with 95 % confidence."""

    median: float
    low: float
    high: float
    rounds: int


def interval(values: Sequence[float]) -> Interval:
    """Bootstrap the median: percentiles of the medians of `RESAMPLES` draws with replacement."""
    assert values
    measured = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(_SEED).integers(0, len(measured), (RESAMPLES, len(measured)))
    medians = np.median(measured[draws], axis=1)
    outside = (1.0 - CONFIDENCE) / 2
    low, high = np.quantile(medians, [outside, 1.0 - outside], method="nearest")
    return Interval(
        median=float(np.median(measured)), low=float(low), high=float(high), rounds=len(measured)
    )


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Fit a line through the medians of the pairs' slopes (Theil-Sen): outliers don't tilt it."""
    at, what = np.asarray(times, dtype=np.float64), np.asarray(values, dtype=np.float64)
    first, second = np.triu_indices(len(at), k=1)
    steps = at[second] - at[first]
    return float(np.median((what[second] - what[first]) / steps)) if len(steps) else 0.0
