"""The rules of a session: rounds end in time, unless so many were asked for; sides take turns."""

from __future__ import annotations

from pathlib import Path

import psutil

from benchmarks.harness import Options, Session, Side
from benchmarks.servers import Running


def session(place: Path, rounds: int = 0) -> Session:
    return Session(Options(cache=place, twin=True, rounds=rounds), place, lambda _: None)


def side(name: str) -> Side:
    server = Running(name=name, url="", process=psutil.Process(), command=(), extra={})
    return Side(name=name, server=server, way="rest")


def test_a_slow_machine_gets_fewer_rounds_and_a_note(tmp_path: Path) -> None:
    with session(tmp_path) as one:
        assert list(one.rounds(5, within_s=0.0)) == [0]
        assert one.notes
        assert "1 of 5 rounds" in one.notes[0]
        assert list(one.rounds(5, within_s=60.0)) == [0, 1, 2, 3, 4]


def test_as_many_rounds_as_were_asked_for_are_run_however_long_they_take(tmp_path: Path) -> None:
    with session(tmp_path, rounds=3) as one:
        assert list(one.rounds(5, within_s=0.0)) == [0, 1, 2]
        assert one.notes == []


def test_sides_take_turns_in_alternating_order(tmp_path: Path) -> None:
    with session(tmp_path, rounds=2) as one:
        taken = [(number, turn.name) for number, turn in one.turns([side("a"), side("b")], 1, 1.0)]
    assert taken == [(0, "a"), (0, "b"), (1, "b"), (1, "a")]
