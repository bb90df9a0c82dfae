"""Cores are counted and divided; never more threads than cores while there are cores enough."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from appliance.runtime.devices import (
    cores_available,
    divide_threads,
    node_cores,
    parse_cpus,
    physical_cores,
    throttled_ms,
)


def test_there_is_a_core_and_no_more_than_the_affinity_allows() -> None:
    assert 1 <= cores_available() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("cores", "workers", "threads"),
    [(2, 1, (2,)), (2, 2, (1, 1)), (8, 3, (3, 3, 2)), (1, 3, (1, 1, 1)), (4, 0, ())],
)
def test_threads_are_divided(cores: int, workers: int, threads: tuple[int, ...]) -> None:
    assert divide_threads(cores, workers) == threads


@pytest.mark.parametrize(
    ("text", "cpus"), [("0-3,8\n", {0, 1, 2, 3, 8}), ("5", {5}), ("\n", set()), ("0-1", {0, 1})]
)
def test_a_list_of_cpus_is_read(text: str, cpus: set[int]) -> None:
    assert parse_cpus(text) == cpus


def test_siblings_are_one_core(tmp_path: Path) -> None:
    for cpu in range(4):
        topology = tmp_path / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{cpu % 2},{cpu % 2 + 2}\n")
    assert physical_cores(frozenset(range(4)), tmp_path) == 2
    assert physical_cores(frozenset({0, 2}), tmp_path) == 1
    assert physical_cores(frozenset({7, 8}), tmp_path) == 2  # the machine does not tell


def test_a_worker_keeps_to_the_node_with_most_free_memory_that_holds_its_threads(
    tmp_path: Path,
) -> None:
    for node, (cpus, free_kib) in enumerate((("0-7", 500), ("8-15", 900), ("16-17", 9000))):
        directory = tmp_path / f"node{node}"
        directory.mkdir()
        (directory / "cpulist").write_text(f"{cpus}\n")
        (directory / "meminfo").write_text(f"Node {node} MemFree:  {free_kib} kB\n")
    allowed = frozenset(range(18))
    assert node_cores(allowed, 4, tmp_path) == frozenset(range(8, 16))
    assert node_cores(allowed, 2, tmp_path) == frozenset({16, 17})
    assert node_cores(allowed, 9, tmp_path) == allowed
    assert node_cores(frozenset(range(12)), 6, tmp_path) == frozenset(range(8))
    assert node_cores(allowed, 4, tmp_path / "none") == allowed


def test_throttling_is_a_count_that_never_falls() -> None:
    assert 0.0 <= throttled_ms() <= throttled_ms()
