"""Share the time of one engine between classes and clients.

What this room does: keeps how much engine time each client was given, and tells before each step
how many milliseconds each may add to it.
What it knows: classes, clients and their weights; milliseconds of engine time.
What it never does: choose rows (`compose` does), or read a clock.

A party is a client in a class. Inside a class the party that was given least, for its weight, is
due: it may add what it likes. Another may add as much as it is behind of being a lead ahead of the
due one. (Some rows of each party of the highest class ride now and then all the same, see
`compose`: its stream goes on.) A party that comes back is level with the least served one: what it
did not use while it was away is gone, what it owes is not. But nobody owes more than `debt_ms_max`:
a long prompt does not bar its client for as long again.

A class below another one lives on a credit: a share of the time of each step that it lets pass.
So it never stops altogether, and hardly delays those above.

A step belongs to the party that is due. The others pay what their rows add to it. The due one pays
for its rows what they cost in a large step; what they cost beyond that alone, they cost because
they are few: a lone row takes most of what sixteen take. Of that it is charged a part, not all of
it, since there was nobody to share it with.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from appliance.domain import Priority

RANKS = {priority: rank for rank, priority in enumerate(Priority)}  # 0 comes first
REMEMBERED_MAX = 4096  # clients whose debts are remembered while they are away
_SOLITUDE = 0.15


class Party(NamedTuple):
    """A client in a class."""

    priority: Priority
    client: str


class Fairness:
    """The accounts of one engine. Not thread-safe."""

    def __init__(
        self, *, shares: Mapping[Priority, float], credit_ms_max: float, debt_ms_max: float
    ) -> None:
        """Give each class, where it is below the highest one present, its share of the time."""
        self._shares = shares
        self._debt_ms_max = debt_ms_max
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

    def due(self, parties: Iterable[Party]) -> Party:
        """Find the one whose step it is: of the highest class, who was given least."""
        return min(parties, key=lambda party: (RANKS[party.priority], self.served(party)))

    def charge(
        self,
        rows: Mapping[Party, int],
        parties: Mapping[Party, float],
        *,
        step_ms: float,
        alone_ms: float,
        row_ms: float,
    ) -> None:
        """Book a step: its duration, and how many of its rows each party had.

        parties: all that run, with their weights. alone_ms: how long a step of only the due
        party's rows takes. row_ms: what a row costs in a large step.
        """
        if not sum(rows.values()):
            return
        top = min(RANKS[party.priority] for party in parties)
        due = self.due(rows)
        others = sum(rows.values()) - rows[due]
        alone_ms = min(alone_ms, step_ms) if others else step_ms
        spent = {
            party: count / others * (step_ms - alone_ms)
            for party, count in rows.items()
            if party != due
        }
        own_ms = rows[due] * min(row_ms, alone_ms / max(1, rows[due]))
        spent[due] = own_ms + _SOLITUDE * (alone_ms - own_ms)
        for party, spent_ms in spent.items():
            self._served[party] = self.served(party) + spent_ms / parties[party]
        for priority in {party.priority for party in parties}:
            self._bound_debts([party for party in parties if party.priority is priority])
            if RANKS[priority] > top:
                own_ms = sum(ms for party, ms in spent.items() if party.priority is priority)
                credit_ms = self._credit_ms[priority] + self._shares[priority] * step_ms - own_ms
                self._credit_ms[priority] = min(credit_ms, self._credit_ms_max)

    def _bound_debts(self, peers: list[Party]) -> None:
        least = min(self.served(party) for party in peers)
        for party in peers:
            self._served[party] = min(self.served(party), least + self._debt_ms_max)
