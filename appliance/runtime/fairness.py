"""Share the time of one engine between classes and clients.

What this room does: keeps how much engine time each client was given, and tells before each step
how many milliseconds each may add to it.
What it knows: classes, clients and their weights; milliseconds of engine time.
What it never does: choose rows (`compose` does), or read a clock.

A party is a client in a class. Inside a class the party that was given least, for its weight, is
due: it may add what it likes. Another may add as much as it is behind of being a lead ahead of the
due one; so parties with one stream each share every step, and one with many streams waits while
the others catch up. A party that comes back is level with the least served one: what it did not
use while it was away is gone, what it owes is not.

A class below another one lives on a credit: a share of the time of each step that it lets pass.
So it never stops altogether, and hardly delays those above.

What a step costs beyond its rows is charged by half only. A lone row takes most of what sixteen
take, and that there was nobody to share the step with is not all its client's doing.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from appliance.domain import Priority

RANKS = {priority: rank for rank, priority in enumerate(Priority)}  # 0 comes first
REMEMBERED_MAX = 4096  # clients whose debts are remembered while they are away
_SOLITUDE = 0.5


class Party(NamedTuple):
    """A client in a class."""

    priority: Priority
    client: str


class Fairness:
    """The accounts of one engine. Not thread-safe."""

    def __init__(self, *, shares: Mapping[Priority, float], credit_ms_max: float) -> None:
        """Give each class, where it is below the highest one present, its share of the time."""
        self._shares = shares
        self._credit_ms_max = credit_ms_max
        self._credit_ms: dict[Priority, float] = dict.fromkeys(Priority, 0.0)
        self._served: OrderedDict[Party, float] = OrderedDict()  # ms for each unit of weight

    def served(self, party: Party) -> float:
        """Tell what a party was given, in ms for each unit of weight."""
        return self._served.get(party, 0.0)

    def arrive(self, party: Party, others: Iterable[Party]) -> None:
        """Let a party in that had nothing to do; `others` have, in whichever class."""
        peers = [
            self._served.get(other, 0.0)
            for other in others
            if other.priority is party.priority and other != party
        ]
        own = self._served.pop(party, 0.0)
        self._served[party] = max(own, min(peers, default=own))
        if len(self._served) > REMEMBERED_MAX:
            self._served.popitem(last=False)

    def allowances(self, parties: Mapping[Party, float], lead_ms: float) -> dict[Party, float]:
        """Tell how many ms each party (with its weight) may add to the next step.

        lead_ms: how far a party may be ahead of the due one. Infinite where nothing bounds it.
        """
        top = min((RANKS[party.priority] for party in parties), default=0)
        least: dict[Priority, float] = {}
        for party in parties:
            known = least.get(party.priority, math.inf)
            least[party.priority] = min(known, self.served(party))
        found: dict[Party, float] = {}
        for party, weight in parties.items():
            behind = least[party.priority] + lead_ms / weight - self.served(party)
            is_due = self.served(party) <= least[party.priority]
            allowed = math.inf if is_due else behind * weight
            if RANKS[party.priority] > top:
                allowed = min(allowed, self._credit_ms[party.priority])
            found[party] = allowed
        return found

    def is_saturated(self, priority: Priority) -> bool:
        """Say whether a class has as much credit as it can have, so that it must run now."""
        return self._credit_ms[priority] >= self._credit_ms_max

    def charge(
        self,
        rows: Mapping[Party, int],
        parties: Mapping[Party, float],
        step_ms: float,
        row_ms: float,
    ) -> None:
        """Book a step: its duration, and how many of its rows each party had.

        row_ms: what a row costs in a large step.
        """
        total = sum(rows.values())
        if not total:
            return
        bare_ms = min(step_ms, total * row_ms)
        each_ms = (bare_ms + _SOLITUDE * (step_ms - bare_ms)) / total
        top = min(RANKS[party.priority] for party in parties)
        for party, count in rows.items():
            self._served[party] = self.served(party) + count * each_ms / parties[party]
        for priority in {party.priority for party in parties}:
            if RANKS[priority] > top:
                own = sum(count for party, count in rows.items() if party.priority is priority)
                credit = self._credit_ms[priority] + self._shares[priority] * step_ms
                credit -= own * each_ms
                self._credit_ms[priority] = min(credit, self._credit_ms_max)
