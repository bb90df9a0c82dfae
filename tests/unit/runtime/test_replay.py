"""The rules of blame, and a seeded simulation of crashes."""

from __future__ import annotations

import random

import pytest

from appliance.runtime.replay import JOIN_STEPS_MAX, Judgement, Place, Replay


def _running(count: int, replays_max: int = 5) -> Replay:
    """Admit, submit and show tickets 0 to count-1."""
    replay = Replay(replays_max)
    for ticket in range(count):
        replay.admit(ticket)
    assert replay.take_next() == tuple(range(count))
    for ticket in range(count):
        replay.show(ticket)
    return replay


def _blame(replay: Replay, ticket: int) -> tuple[int, int, int]:
    record = replay.record(ticket)
    return record.losses_certain, record.losses_suspected, record.losses_shared


def _rejoin_until(replay: Replay, last: int) -> list[int]:
    """Let tickets go back until `last` is joining and has not shown itself."""
    order: list[int] = []
    while ids := replay.take_next():
        order += ids
        if ids == (last,):
            break
        replay.show(ids[0])
    return order


def _rejoin(replay: Replay) -> list[int]:
    """Let tickets go back one at a time; return the order."""
    order: list[int] = []
    while ids := replay.take_next():
        assert len(ids) == 1
        order += ids
        replay.show(ids[0])
    return order


def test_new_tickets_are_submitted_together_and_in_order() -> None:
    replay = Replay(5)
    for ticket in (3, 1, 2):
        replay.admit(ticket)
    assert replay.take_next() == (3, 1, 2)
    assert replay.take_next() == ()


def test_a_loss_shared_by_many_blames_nobody_alone() -> None:
    replay = _running(3)
    assert set(replay.lose().values()) == {Judgement.REPLAY}
    assert [_blame(replay, t) for t in range(3)] == [(0, 0, 1)] * 3


def test_replays_join_one_at_a_time_started_ones_first() -> None:
    replay = Replay(5)
    for ticket in range(3):
        replay.admit(ticket)
    replay.take_next()
    replay.show(2)
    replay.lose()
    assert replay.take_next() == (2,)
    assert replay.take_next() == ()  # not before the first one has shown itself
    replay.show(2)
    assert replay.take_next() == (0,)


def test_a_loss_while_one_joins_makes_that_one_suspected() -> None:
    replay = _running(3)
    replay.lose()
    assert replay.take_next() == (0,)
    replay.show(0)
    assert replay.take_next() == (1,)
    replay.lose()
    assert [_blame(replay, t) for t in range(3)] == [(0, 0, 2), (0, 1, 1), (0, 0, 1)]


def test_a_suspected_ticket_is_tried_alone_and_then_convicts_itself() -> None:
    replay = _running(2)
    replay.lose()
    assert _rejoin_until(replay, 1) == [0, 1]
    replay.lose()  # 1 was joining
    assert _rejoin(replay) == [0]  # 1 waits until nothing else is inside
    replay.end(0)
    assert replay.take_next() == (1,)
    assert replay.lose() == {1: Judgement.UNSAFE}


def test_one_that_joined_by_chance_when_another_killed_the_worker_is_not_convicted() -> None:
    replay = _running(2)
    for _ in range(2):
        replay.lose()
        replay.take_next()
        replay.show(0)
        replay.take_next()  # 1 joins, as far as it may; then 0 kills the worker
    verdicts = replay.lose()
    assert verdicts[1] is Judgement.REPLAY


def test_two_losses_blamed_alone_are_unsafe() -> None:
    replay = _running(1)
    assert replay.lose() == {0: Judgement.REPLAY}
    assert _rejoin(replay) == [0]
    assert replay.lose() == {0: Judgement.UNSAFE}
    assert len(replay) == 0


def test_tickets_that_never_started_are_replayed_without_blame() -> None:
    replay = _running(1)
    replay.admit(1)
    assert replay.take_next() == (1,)
    replay.lose()
    assert _rejoin_until(replay, 1) == [0, 1]
    for _ in range(JOIN_STEPS_MAX):
        replay.step()  # 1 waits for room: it is not joining any more
    assert replay.lose()[1] is Judgement.REPLAY
    assert _blame(replay, 1) == (0, 0, 0)
    assert replay.record(1).replays == 0


def test_replays_are_bounded() -> None:
    replay = _running(2, replays_max=2)
    judged = []
    for _ in range(3):
        judged.append(replay.lose())
        _rejoin_alone_or_not(replay)
    assert judged[-1] == {0: Judgement.EXHAUSTED, 1: Judgement.EXHAUSTED}


def _rejoin_alone_or_not(replay: Replay) -> None:
    """Show every ticket although some should run alone: a worker that lies about steps."""
    for ticket in range(2):
        if ticket < len(replay):
            replay.record(ticket).place = Place.RUNNING


def test_losses_shared_too_often_make_a_ticket_run_alone() -> None:
    replay = _running(3)
    for _ in range(3):
        replay.lose()
        order = _rejoin(replay)
    assert order == [0]  # the others wait until it has ended
    replay.end(0)
    assert replay.take_next() == (1,)


def test_a_new_ticket_waits_until_the_replays_have_joined() -> None:
    replay = _running(2)
    replay.lose()
    replay.admit(7)
    assert _rejoin(replay) == [0, 1, 7]
    assert replay.take_next() == ()
    assert not replay.recovering


def test_a_cancelled_ticket_holds_nobody_up() -> None:
    replay = _running(2)
    replay.lose()
    assert replay.take_next() == (0,)
    replay.end(0)
    assert replay.take_next() == (1,)


class Simulation:
    """Twelve tickets in a worker that one of them kills, or that is killed from outside.

    Time is steps of the engine. `poison` None: nobody is guilty.
    """

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.count = 12
        self.poison = self.dice.randrange(self.count) if seed % 2 else None
        self.fuse = self.dice.randrange(30)  # steps the poison runs before it kills
        self.work = {ticket: self.dice.randrange(5, 40) for ticket in range(self.count)}
        self.replay = Replay(50)
        self.admitted = 0
        self.inside: dict[int, int] = {}  # ticket → steps in this worker
        self.ends: dict[int, Judgement | None] = {}  # None: ended well

    def step(self) -> None:
        if self.admitted < self.count and self.dice.random() < 0.5:
            self.replay.admit(self.admitted)
            self.admitted += 1
        self.inside |= dict.fromkeys(self.replay.take_next(), 0)
        if self._is_killed():
            self.inside.clear()
            for ticket, judgement in self.replay.lose().items():
                if judgement is not Judgement.REPLAY:
                    self._end(ticket, judgement)
            return
        for ticket in list(self.inside):
            self.inside[ticket] += 1
            self.replay.show(ticket)
            self.work[ticket] -= ticket != self.poison
            if self.work[ticket] <= 0:
                del self.inside[ticket]
                self.replay.end(ticket)
                self._end(ticket, None)
        self.replay.step()

    def _is_killed(self) -> bool:
        if self.poison is None:
            return len(self.inside) > 1 and self.dice.random() < 0.01
        return self.inside.get(self.poison, -1) >= self.fuse

    def _end(self, ticket: int, judgement: Judgement | None) -> None:
        assert ticket not in self.ends
        self.ends[ticket] = judgement


@pytest.mark.parametrize("seed", range(40))
def test_every_ticket_ends_once_and_the_innocent_are_never_unsafe(seed: int) -> None:
    simulation = Simulation(seed)
    for _ in range(20_000):
        simulation.step()
        if len(simulation.ends) == simulation.count:
            break
    expected: dict[int, Judgement | None] = dict.fromkeys(range(simulation.count))
    if simulation.poison is not None:
        expected[simulation.poison] = Judgement.UNSAFE
    assert simulation.ends == expected
    assert len(simulation.replay) == 0
