"""Say who comes before whom: in the queue, and before those that run.

What this room does: the order in which waiting jobs are looked at; which running jobs must make way
for one that waits.
What it knows: class, what a party was given, deadline and age; a job that has waited `ageing_ms`
competes as the next higher class.
What it never does: start, stop or change a job (the scheduler does).
"""

from __future__ import annotations

from collections.abc import Sequence

from appliance.runtime.cache import Cache
from appliance.runtime.fairness import RANKS, Fairness
from appliance.runtime.jobs import Job, SchedulerLimits
from appliance.runtime.prefix import Match

_DISPLACED_MAX = 3  # times a job makes way for others before it is left in peace


class Precedence:
    """The order among the jobs of one scheduler. Keeps nothing between two calls."""

    def __init__(self, limits: SchedulerLimits, fairness: Fairness) -> None:
        """Look at the accounts, and never change them."""
        self._limits = limits
        self._fairness = fairness

    def key(self, job: Job, now_ms: float) -> tuple[float, ...]:
        """Make the key by which waiting jobs are sorted, the first to start first."""
        rank = self._rank(job, now_ms)
        is_aged = rank < RANKS[job.priority]
        # A job that ran already goes back before what came later of its client.
        return (
            rank,
            0.0 if job.started_ms >= 0.0 or is_aged else self._fairness.served(job.party),
            float("inf") if job.deadline_ms is None else job.deadline_ms,
            job.order,
        )

    def victims(self, job: Job, match: Match, running: Sequence[Job], cache: Cache) -> list[Job]:
        """Find the running jobs that must make way so that this one fits; none if that is not so.

        The youngest first, of those that it comes before.
        """
        victims: list[Job] = []
        sequences, cells = cache.sequences_free, cache.room(running)
        need = cache.need(job, match)
        for other in sorted(running, key=lambda one: -one.order):
            if sequences >= len(job.live) and cells >= need:
                break
            if self._comes_before(job, other, victims, running, cache.now_ms):
                victims.append(other)
                sequences += len(other.live)
                cells += cache.claim(other) + cache.held_by(other)
        return [] if sequences < len(job.live) or cells < need else victims

    def _rank(self, job: Job, now_ms: float) -> int:
        """Rank a job by its class, and by how long it has been here."""
        aged = int((now_ms - job.submitted_ms) / self._limits.ageing_ms)
        return max(0, RANKS[job.priority] - aged)

    def _comes_before(
        self, job: Job, other: Job, victims: Sequence[Job], running: Sequence[Job], now_ms: float
    ) -> bool:
        """Say whether a running job must make way: a lower class, or more than its fair part."""
        if other.displaced >= _DISPLACED_MAX:
            return False
        if RANKS[job.priority] < self._rank(other, now_ms):
            return True
        if other.priority is not job.priority or other.client == job.client:
            return False
        sequences = {job.party: len(job.live), other.party: 0}
        for one in running:
            if one not in victims:
                sequences[one.party] = sequences.get(one.party, 0) + len(one.live)
        parties = sum(party.priority is job.priority for party in sequences)
        part = self._limits.sequences_max / parties
        return sequences[job.party] <= part < sequences[other.party]
