"""Decide, when a worker ends, who is blamed, who is tried again, and in which order.

What this room does: keeps, per ticket, whether it may be inside the worker and what it has been
suspected of; says which tickets to submit next; passes judgement on a loss.
What it knows: a worker's end takes all its tickets with it, and at most one of them caused it.
What it never does: I/O, clocks, or hold what a ticket asks for.

The theory. While nothing has gone wrong, tickets are submitted as they come. After a loss they go
back one at a time, those that had started first: the next one is submitted once the one before has
shown itself (the engine evaluated a part of it and lives). A loss with a single ticket inside is
that ticket's for certain. A loss while one is joining makes that one suspected; but one that runs
may have caused it just then, so a suspected ticket is next tried alone, after the others, where a
second loss is certain. Any other loss is shared, and sharing never convicts: a ticket that shared
in many runs alone from then on, so that the guilty one convicts itself and the others go on. Two
losses blamed on one ticket, the last one for certain or while joining, are enough: unsafe.

| state   | meaning                               | next                                     |
|---------|---------------------------------------|------------------------------------------|
| HELD    | not in the worker                     | JOINING (recovering), SENT (otherwise)   |
| SENT    | submitted, not yet seen               | RUNNING when seen                        |
| JOINING | submitted alone, not yet seen         | RUNNING when seen, SENT after many steps |
| RUNNING | the engine evaluated a part of it     |                                          |
A loss puts every state back to HELD. The end of a ticket removes it.
"""

from __future__ import annotations

import dataclasses
import enum

LOSSES_ALONE_MAX = 2
JOIN_STEPS_MAX = 8  # a ticket that waits for room this long is waiting, not joining


class Place(enum.Enum):
    """Where a ticket is."""

    HELD = "held"
    SENT = "sent"
    JOINING = "joining"
    RUNNING = "running"


class Judgement(enum.Enum):
    """What becomes of a ticket after a loss."""

    REPLAY = "replay"
    UNSAFE = "unsafe"
    EXHAUSTED = "exhausted"


@dataclasses.dataclass(slots=True)
class Record:
    """What is known of one ticket. Counts are over its whole life."""

    place: Place = Place.HELD
    has_started: bool = False
    is_new: bool = True  # admitted after the last loss
    losses_certain: int = 0
    losses_suspected: int = 0
    losses_shared: int = 0
    replays: int = 0
    join_steps: int = 0


class Replay:
    """The tickets of one worker, through all its lives."""

    def __init__(self, replays_max: int) -> None:
        """Bound the replays of a ticket, whatever caused them."""
        self._replays_max = replays_max
        self._alone_from = max(1, replays_max - LOSSES_ALONE_MAX)
        self._records: dict[int, Record] = {}
        self._recovering = False

    def __len__(self) -> int:
        """Count the tickets that have not ended."""
        return len(self._records)

    @property
    def recovering(self) -> bool:
        """Tell whether tickets still go back one at a time."""
        return self._recovering

    def record(self, ticket: int) -> Record:
        """Show what is known of a ticket that has not ended."""
        return self._records[ticket]

    def admit(self, ticket: int) -> None:
        """Add a ticket that has never been submitted."""
        self._records[ticket] = Record()

    def end(self, ticket: int) -> None:
        """Forget a ticket; idempotent."""
        self._records.pop(ticket, None)

    def show(self, ticket: int) -> None:
        """Note that the engine evaluated a part of this ticket and lives."""
        record = self._records.get(ticket)
        if record is not None and record.place is not Place.HELD:
            record.place = Place.RUNNING
            record.has_started = True

    def step(self) -> None:
        """Note one more step of the engine: a ticket can't be joining for ever."""
        if not self._recovering:
            return
        for record in self._records.values():
            if record.place is Place.JOINING:
                record.join_steps += 1
                if record.join_steps >= JOIN_STEPS_MAX:
                    record.place = Place.SENT

    def take_next(self) -> tuple[int, ...]:
        """Choose the tickets to submit now, in order, and count them as submitted."""
        held = [(t, r) for t, r in self._records.items() if r.place is Place.HELD]
        if not held:
            if not any(r.place is Place.JOINING for r in self._records.values()):
                self._recovering = self._recovering and self._somebody_is_alone()
            return ()
        if not self._recovering:
            for _, record in held:
                record.place = Place.SENT
            return tuple(ticket for ticket, _ in held)
        # New tickets go last: the suspected would otherwise wait for as long as there are new ones.
        ticket, record = min(
            held, key=lambda item: (item[1].is_new, self._alone(item[1]), not item[1].has_started)
        )
        inside = [r for r in self._records.values() if r.place is not Place.HELD]
        if any(r.place is Place.JOINING or self._alone(r) for r in inside):
            return ()
        if self._alone(record) and inside:
            return ()
        record.place = Place.JOINING
        record.join_steps = 0
        return (ticket,)

    def lose(self) -> dict[int, Judgement]:
        """Judge every ticket after the worker's end. Those not to be replayed are forgotten.

        Only tickets that were inside are judged anything but REPLAY.
        """
        inside = {t: r for t, r in self._records.items() if r.place is not Place.HELD}
        self._blame(inside)
        verdicts = dict.fromkeys(self._records, Judgement.REPLAY)
        for ticket, record in inside.items():
            record.place = Place.HELD
            if record.losses_certain + record.losses_suspected >= LOSSES_ALONE_MAX:
                verdicts[ticket] = Judgement.UNSAFE
            elif record.has_started and record.replays >= self._replays_max:
                verdicts[ticket] = Judgement.EXHAUSTED
            elif record.has_started:
                record.replays += 1
        if Judgement.UNSAFE in verdicts.values():
            for record in self._records.values():
                record.losses_shared = record.losses_suspected = 0  # the guilty one is found
        for ticket, verdict in verdicts.items():
            if verdict is not Judgement.REPLAY:
                del self._records[ticket]
        for record in self._records.values():
            record.is_new = False
        self._recovering = bool(self._records)
        return verdicts

    def _blame(self, inside: dict[int, Record]) -> None:
        if len(inside) == 1:
            next(iter(inside.values())).losses_certain += 1
            return
        for record in inside.values():
            if record.place is Place.JOINING:
                record.losses_suspected += 1
            elif record.place is Place.RUNNING:
                record.losses_shared += 1

    def _alone(self, record: Record) -> bool:
        return record.losses_suspected > 0 or record.losses_shared >= self._alone_from

    def _somebody_is_alone(self) -> bool:
        return any(self._alone(record) for record in self._records.values())
