"""Bound what waits for a worker, and say when it is worth asking again.

What this room does: refuses a request that would wait beyond a bound, or beyond its deadline;
measures the pace at which waiting requests start.
What it knows: counts, tokens and times, all as arguments.
What it never does: keep the queue itself.
"""

from __future__ import annotations

from appliance.config import Limits
from appliance.errors import DeadlineExceeded, QueueFull

RETRY_AFTER_S_MIN = 0.5
RETRY_AFTER_S_MAX = 60.0
_INTERVAL_MS_FIRST = 1000.0  # before anything is measured
_WEIGHT = 0.1
_STARTS_MIN = 8  # of requests that had to wait, before the pace is believed


class Admission:
    """The door to one worker's queue."""

    def __init__(self, limits: Limits) -> None:
        """Take the bounds."""
        self._limits = limits
        self._interval_ms = _INTERVAL_MS_FIRST
        self._last_start_ms: float | None = None
        self._starts = 0

    def check(
        self,
        waiting: int,
        waiting_tokens: int,
        prompt_tokens: int,
        *,
        ahead: int = 0,
        left_ms: float | None = None,
    ) -> None:
        """Let one more request wait, or refuse it.

        ahead: how many of those that wait start before it. left_ms: until its deadline.

        A single prompt over the bound on tokens is let in when nothing else waits: the context
        bounds it already.

        Raises:
            QueueFull: names the bound, its limit, and when to ask again.
            DeadlineExceeded: at the pace of the last starts it would start too late.
        """
        limits = self._limits
        if left_ms is not None and self._starts >= _STARTS_MIN:
            start_ms = ahead * self._interval_ms
            if start_ms > left_ms:
                late_s = min((start_ms - left_ms) / 1000, RETRY_AFTER_S_MAX)
                raise DeadlineExceeded(phase="queue", retry_after_s=max(late_s, RETRY_AFTER_S_MIN))
        if waiting >= limits.queue_requests:
            self._refuse("queue_requests", limits.queue_requests, waiting)
        if waiting and waiting_tokens + prompt_tokens > limits.queue_prompt_tokens:
            self._refuse("queue_prompt_tokens", limits.queue_prompt_tokens, waiting)

    def started(self, now_ms: float, *, others_wait: bool) -> None:
        """Note that a request has started; the pace counts only while others wait."""
        if self._last_start_ms is not None and others_wait:
            interval_ms = now_ms - self._last_start_ms
            self._interval_ms += _WEIGHT * (interval_ms - self._interval_ms)
            self._starts += 1
        self._last_start_ms = now_ms

    def retry_after_s(self, waiting: int) -> float:
        """Guess from the measured pace when a quarter of the queue has gone."""
        guess_s = self._interval_ms / 1000 * max(1, waiting // 4)
        return min(max(guess_s, RETRY_AFTER_S_MIN), RETRY_AFTER_S_MAX)

    def _refuse(self, bound: str, limit: int, waiting: int) -> None:
        raise QueueFull(bound=bound, limit=limit, retry_after_s=self.retry_after_s(waiting))
