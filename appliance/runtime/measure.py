"""Measure what requests say of a version: the last of them, and what is counted with them. Pure.

What this room does: a bounded window of samples; the comparison of copies; what an endless loop is.
What it knows: numbers of requests that have ended, and token ids for as long as a call lasts.
What it never does: keep a token, look at a clock, or judge.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from appliance.domain import Sample, Window

LOOP_TOKENS_MIN = 48  # a shorter repetition may be what was asked for
LOOP_PERIOD_MAX = 16
LOOP_TURNS_MIN = 4


class Measure:
    """The measurements of one version, since the last `restart`."""

    def __init__(self, samples_max: int, *, utc_ms: int) -> None:
        """Begin with nothing measured."""
        self._samples: deque[Sample] = deque(maxlen=samples_max)
        self.restart(utc_ms)

    def restart(self, utc_ms: int) -> None:
        """Measure anew."""
        self._samples.clear()
        self._since_utc_ms = utc_ms
        self._taken = 0
        self._losses = 0
        self._shadows_dropped = 0
        self._compared = 0
        self._identical = 0
        self._agreed = 0.0

    def take(self, sample: Sample) -> None:
        """Take in one request that has ended; beyond the bound the oldest goes."""
        self._samples.append(sample)
        self._taken += 1

    def lose_worker(self) -> None:
        """Count an unasked end of its worker."""
        self._losses += 1

    def drop_shadow(self) -> None:
        """Count a copy that was not asked because there was no room for it."""
        self._shadows_dropped += 1

    def compare(self, answer: Sequence[int], users: Sequence[int]) -> None:
        """Hold the tokens of a copy's answer beside those that the user got."""
        same = agreed_tokens(answer, users)
        longest = max(len(answer), len(users))
        self._compared += 1
        self._identical += same == longest
        self._agreed += same / longest if longest else 1.0

    def window(self) -> Window:
        """Read what was measured."""
        return Window(
            samples=tuple(self._samples),
            since_utc_ms=self._since_utc_ms,
            dropped_count=self._taken - len(self._samples),
            worker_losses=self._losses,
            shadows_dropped=self._shadows_dropped,
            compared_count=self._compared,
            identical_count=self._identical,
            agreed_ratio=self._agreed / self._compared if self._compared else 0.0,
        )


def agreed_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    """Count the tokens up to the first difference."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


def is_looping(token_ids: Sequence[int]) -> bool:
    """Tell whether an answer ends in the same few tokens over and over."""
    for period in range(1, LOOP_PERIOD_MAX + 1):
        tail = token_ids[-max(LOOP_TOKENS_MIN, LOOP_TURNS_MIN * period) :]
        if len(tail) >= LOOP_TOKENS_MIN and all(
            tail[n] == tail[n - period] for n in range(period, len(tail))
        ):
            return True
    return False
