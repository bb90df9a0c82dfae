"""Whose time it is: equal parts inside a class, a share for those below, and nobody left out."""

from __future__ import annotations

import math
import random

import pytest

from appliance.domain import Priority
from appliance.runtime.fairness import REMEMBERED_MAX, Fairness, Party

A = Party(Priority.NORMAL, "a")
B = Party(Priority.NORMAL, "b")
TOP = Party(Priority.INTERACTIVE, "a")
LOW = Party(Priority.BATCH, "a")


def fairness() -> Fairness:
    shares = {Priority.INTERACTIVE: 1.0, Priority.NORMAL: 0.3, Priority.BATCH: 0.1}
    return Fairness(shares=shares, credit_ms_max=300.0, debt_ms_max=1000.0)


def test_the_party_that_was_given_least_is_due_and_others_have_a_bounded_lead() -> None:
    accounts, both = fairness(), {A: 1.0, B: 1.0}
    accounts.charge({A: 10}, both, step_ms=100.0, alone_ms=100.0, row_ms=10.0)
    allowed = accounts.allowances(both, 30.0)
    assert allowed[B] == math.inf
    assert allowed[A] == pytest.approx(-70.0)


def test_others_pay_what_they_add_and_the_due_one_a_part_of_what_a_small_step_costs() -> None:
    accounts, both = fairness(), {A: 1.0, B: 1.0}
    accounts.charge({A: 10}, both, step_ms=100.0, alone_ms=100.0, row_ms=10.0)
    accounts.charge({A: 1, B: 1}, both, step_ms=40.0, alone_ms=27.0, row_ms=10.0)
    assert accounts.served(A) == pytest.approx(100.0 + 13.0)  # what its row added
    assert accounts.served(B) == pytest.approx(10.0 + 0.15 * 17.0)


def test_nobody_owes_more_than_the_bound() -> None:
    accounts, both = fairness(), {A: 1.0, B: 1.0}
    accounts.charge({A: 1000}, both, step_ms=10_000.0, alone_ms=10_000.0, row_ms=10.0)
    assert accounts.served(A) == 1000.0


def test_time_is_shared_by_weight() -> None:
    accounts, parties = fairness(), {A: 3.0, B: 1.0}
    given = {A: 0.0, B: 0.0}
    for _ in range(4000):
        allowed = accounts.allowances(parties, 0.0)
        due = next(party for party in (A, B) if allowed[party] == math.inf)
        accounts.charge({due: 1}, parties, step_ms=10.0, alone_ms=10.0, row_ms=10.0)
        given[due] += 10.0
    assert given[A] / given[B] == pytest.approx(3.0, rel=0.01)


def test_a_party_that_comes_back_neither_claims_its_absence_nor_loses_its_debt() -> None:
    accounts = fairness()
    accounts.charge({A: 50}, {A: 1.0}, step_ms=500.0, alone_ms=500.0, row_ms=10.0)
    accounts.arrive(B, [A])
    assert accounts.served(B) == accounts.served(A)
    accounts.charge({B: 50}, {A: 1.0, B: 1.0}, step_ms=500.0, alone_ms=500.0, row_ms=10.0)
    accounts.arrive(B, [A])
    assert accounts.served(B) == 2 * accounts.served(A)


def test_a_lower_class_lives_on_a_share_of_the_time_it_lets_pass() -> None:
    accounts, parties = fairness(), {TOP: 1.0, LOW: 1.0}
    passed_ms = spent_ms = 0.0
    for _ in range(3000):
        allowed = accounts.allowances(parties, 10.0)
        assert allowed[TOP] == math.inf
        rows = {TOP: 1}
        if allowed[LOW] >= 50.0:
            rows[LOW] = 5
            spent_ms += 50.0
        step_ms = 10.0 + 10.0 * rows.get(LOW, 0)
        passed_ms += step_ms
        accounts.charge(rows, parties, step_ms=step_ms, alone_ms=10.0, row_ms=10.0)
    assert spent_ms / passed_ms == pytest.approx(0.1, rel=0.1)


def test_alone_a_lower_class_is_not_held_back() -> None:
    assert fairness().allowances({LOW: 1.0}, 10.0) == {LOW: math.inf}


def test_the_accounts_of_those_who_are_away_are_bounded() -> None:
    accounts, rng = fairness(), random.Random(1)
    for number in range(REMEMBERED_MAX + 500):
        party = Party(Priority.NORMAL, f"{number}")
        accounts.arrive(party, [])
        accounts.charge(
            {party: rng.randrange(1, 9)}, {party: 1.0}, step_ms=10.0, alone_ms=10.0, row_ms=1.0
        )
    assert len(accounts._served) <= REMEMBERED_MAX  # noqa: SLF001 - the bound is the rule
