"""Space out what a client is told about a prompt that is being evaluated.

What this room does: lets one progress event through, and the next not before an interval has gone.
What it knows: a clock, as an argument.
What it never does: hold an event back for later: the next one says more.
"""

from __future__ import annotations

from collections.abc import Callable

from appliance.domain import Event, Progress


class Pacing:
    """The progress of one request."""

    def __init__(self, interval_ms: float, clock: Callable[[], float]) -> None:
        """Let one through each interval. `clock` is monotonic, in milliseconds."""
        self._interval_ms = interval_ms
        self._clock = clock
        self._last_ms: float | None = None

    def passes(self, event: Event) -> bool:
        """Tell whether the client gets this event now."""
        if not isinstance(event, Progress):
            return True
        now_ms = self._clock()
        if self._last_ms is not None and now_ms - self._last_ms < self._interval_ms:
            return False
        self._last_ms = now_ms
        return True
