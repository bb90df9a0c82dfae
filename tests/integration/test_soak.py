"""The short form of `make soak`: seconds of mixed load leave no trace."""

from __future__ import annotations

import pytest

from benchmarks.soak import Results, soak

SECONDS = 4.0


@pytest.fixture(scope="module")
def results() -> Results:
    """Run it once."""
    return soak(minutes=SECONDS / 60, seed=3, threads=1)


def test_mixed_load_leaves_nothing_behind(results: Results) -> None:
    assert results.unexpected == []
    assert [check.line for check in results.checks if not check.holds] == []
    assert {"KV cells held at the end", "files left open by daemon", "memory, growth of worker"} < {
        check.name for check in results.checks
    }


def test_every_kind_of_client_took_part_and_cells_ran_short(results: Results) -> None:
    assert all(results.outcomes.values())
    assert results.outcomes["goes, gRPC"].keys() == {"left"}
    assert results.outcomes["too long, REST"].keys() == {"refused"}
    assert results.outcomes["schemas"].keys() == {"ended"}
