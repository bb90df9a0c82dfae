"""Every cell is booked once, however many sequences share it, and freed with the last of them."""

from __future__ import annotations

import random

import pytest

from appliance.runtime.ledger import Ledger


def test_a_fork_costs_no_cell_and_its_cells_are_freed_with_the_last_holder() -> None:
    ledger = Ledger(100)
    ledger.open(0)
    ledger.grow(0, 40)
    ledger.fork(0, 1)
    ledger.fork(0, 2)
    assert ledger.used == 40
    ledger.grow(0, 5)
    ledger.grow(1, 7)
    assert (ledger.used, ledger.held(0), ledger.held(1), ledger.held(2)) == (52, 45, 47, 40)
    assert ledger.close(0) == 5
    assert ledger.close(2) == 0
    assert ledger.close(1) == 47
    assert ledger.is_empty


def test_more_cells_than_are_free_can_not_be_booked() -> None:
    ledger = Ledger(10)
    ledger.open(3)
    ledger.grow(3, 10)
    with pytest.raises(AssertionError):
        ledger.grow(3, 1)


def test_a_sequence_is_opened_once() -> None:
    ledger = Ledger(10)
    ledger.open(1)
    with pytest.raises(AssertionError):
        ledger.open(1)
    with pytest.raises(AssertionError):
        ledger.fork(1, 1)


@pytest.mark.parametrize("seed", range(30))
def test_random_lives_agree_with_cells_counted_one_by_one(seed: int) -> None:
    rng = random.Random(seed)
    ledger = Ledger(500)
    cells: dict[int, set[int]] = {}
    next_cell = 0
    for _ in range(400):
        act = rng.choice(["open", "grow", "grow", "fork", "close"])
        fresh = next(seq_id for seq_id in range(999) if seq_id not in cells)
        if act == "open" or not cells:
            ledger.open(fresh)
            cells[fresh] = set()
        elif act == "grow":
            count = rng.randint(0, min(9, ledger.free))
            seq_id = rng.choice(sorted(cells))
            ledger.grow(seq_id, count)
            cells[seq_id] |= set(range(next_cell, next_cell + count))
            next_cell += count
        elif act == "fork":
            source = rng.choice(sorted(cells))
            ledger.fork(source, fresh)
            cells[fresh] = set(cells[source])
        else:
            seq_id = rng.choice(sorted(cells))
            others = set().union(*(held for key, held in cells.items() if key != seq_id))
            assert ledger.close(seq_id) == len(cells.pop(seq_id) - others)
        assert ledger.used == len(set().union(*cells.values())) == ledger.recount()
        assert all(ledger.held(seq_id) == len(held) for seq_id, held in cells.items())
