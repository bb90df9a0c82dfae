"""Cores are counted and divided; never more threads than cores while there are cores enough."""

from __future__ import annotations

import os

import pytest

from appliance.runtime.devices import cores_available, divide_threads


def test_there_is_a_core_and_no_more_than_the_affinity_allows() -> None:
    assert 1 <= cores_available() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("cores", "workers", "threads"),
    [(2, 1, (2,)), (2, 2, (1, 1)), (8, 3, (3, 3, 2)), (1, 3, (1, 1, 1)), (4, 0, ())],
)
def test_threads_are_divided(cores: int, workers: int, threads: tuple[int, ...]) -> None:
    assert divide_threads(cores, workers) == threads
