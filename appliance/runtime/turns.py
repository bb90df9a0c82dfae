"""Let adapters take turns: all rows of a step run with one.

What this room does: names the adapter of the next step.
What it knows: which adapters the running jobs want, and when each had its last turn.
What it never does: starve one: after `steps_max` steps the one that has waited longest is next.
"""

from __future__ import annotations

from collections.abc import Sequence

from appliance.runtime.jobs import Job


class AdapterTurns:
    """The turns of one engine. Not thread-safe."""

    def __init__(self, steps_max: int) -> None:
        """Let an adapter run so many steps while others wait: each change costs a graph."""
        self._steps_max = steps_max
        self._current = ""
        self._taken = 0
        self._step = 0
        self._last: dict[str, int] = {}

    def choose(self, jobs: Sequence[Job]) -> str:
        """Name the adapter of the next step; changes nothing."""
        wanted = dict.fromkeys(job.adapter for job in jobs)
        if self._current in wanted and (len(wanted) == 1 or self._taken < self._steps_max):
            return self._current
        others = [adapter for adapter in wanted if adapter != self._current]
        return min(others, key=lambda adapter: self._last.get(adapter, -1))

    def took(self, adapter: str) -> None:
        """Note that a step was composed for this adapter."""
        self._step += 1
        self._taken = self._taken + 1 if adapter == self._current else 1
        self._current = adapter
        self._last.pop(adapter, None)
        self._last[adapter] = self._step
        if len(self._last) > 1024:  # noqa: PLR2004 - adapters that were unloaded long ago
            del self._last[next(iter(self._last))]
