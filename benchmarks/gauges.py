"""Read what our server says of itself.

What this room does: fetches /metrics and turns it into numbers by family; sums over labels.
What it knows: Prometheus' text format, as far as our own server writes it.
What it never does: compute rates.
"""

from __future__ import annotations

import re

import aiohttp

KV_USED = "appliance_kv_cells_used"  # by requests; what is only cached is not among them
STEPS = "appliance_step_seconds_count"
RUNNING, WAITING = "appliance_requests_running", "appliance_requests_waiting"
RESTARTS, PREEMPTIONS = "appliance_worker_restarts_total", "appliance_preemptions_total"

_LINE = re.compile(rb"^([a-z_:]+)(?:\{[^}]*\})? ([0-9.eE+-]+|NaN)$", re.MULTILINE)


class Gauges:
    """One reading."""

    def __init__(self, page: bytes) -> None:
        """Parse a page of /metrics."""
        self._sums: dict[str, float] = {}
        for name, value in _LINE.findall(page):
            key = name.decode()
            self._sums[key] = self._sums.get(key, 0.0) + float(value)

    def __getitem__(self, family: str) -> float:
        """Return the sum over all labels; 0 if there is no such series."""
        return self._sums.get(family, 0.0)


async def read(session: aiohttp.ClientSession) -> Gauges:
    """Fetch the gauges; the session's base is our server."""
    async with session.get("/metrics") as answer:
        answer.raise_for_status()
        return Gauges(await answer.read())
