"""Which source is asked next, and how long one rests."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from appliance.sync.bundle import open_bundle
from appliance.sync.bundle_source import BundleSource
from appliance.sync.sources import Ranking, SourceFailed
from tests.unit.sync.hostile import QUICK

SETTINGS = msgspec.structs.replace(
    QUICK, backoff_ms=100.0, backoff_ms_max=1000.0, retry_after_s_max=60.0
)


class Moment:
    """A clock that is set."""

    ms = 0.0


@pytest.fixture
def at() -> Moment:
    return Moment()


@pytest.fixture
def ranking(tmp_path: Path, at: Moment) -> Ranking:
    sources = []
    for name in ("mirror", "hub"):
        (tmp_path / name).mkdir()
        sources.append(BundleSource(open_bundle(tmp_path / name)))
    return Ranking(sources, SETTINGS, now_ms=lambda: at.ms, draw=lambda: 0.5)


def _best(ranking: Ranking, excluded: set[str] | None = None) -> tuple[str, float] | None:
    found = ranking.best(excluded or set())
    return found and (Path(found[0].source.name).name, found[1])


def test_the_order_holds_until_one_fails_and_again_when_it_has_rested(
    ranking: Ranking, at: Moment
) -> None:
    assert _best(ranking) == ("mirror", 0)
    mirror, hub = ranking.standings
    ranking.failed(mirror, SourceFailed("down"))
    assert _best(ranking) == ("hub", 0)
    ranking.failed(hub, SourceFailed("down", retry_after_s=7))
    assert _best(ranking) == ("mirror", 50)
    at.ms = 50
    assert _best(ranking) == ("mirror", 0)


def test_a_rest_doubles_up_to_a_bound_and_counts_once_for_all_connections(
    ranking: Ranking, at: Moment
) -> None:
    mirror, hub = ranking.standings
    ranking.failed(hub, SourceFailed("closed", retry_after_s=10**6))
    assert hub.rests_until_ms == 60_000
    rests = []
    for _ in range(6):
        ranking.failed(mirror, SourceFailed("down"))
        ranking.failed(mirror, SourceFailed("down"))  # another connection, at the same moment
        rests.append(mirror.rests_until_ms - at.ms)
        at.ms = mirror.rests_until_ms
    assert rests == [50, 100, 200, 400, 500, 500]
    mirror.delivered()
    ranking.failed(mirror, SourceFailed("down"))
    assert mirror.rests_until_ms - at.ms == 50


def test_who_sent_wrong_bytes_comes_after_all_who_did_not(ranking: Ranking) -> None:
    ranking.standings[0].wrong_count = 1
    assert _best(ranking) == ("hub", 0)
    everyone = {one.source.name for one in ranking.standings}
    assert _best(ranking, everyone) is None


def test_a_source_is_put_first_and_taken_away(ranking: Ranking, tmp_path: Path) -> None:
    (tmp_path / "stick").mkdir()
    standing = ranking.put_first(BundleSource(open_bundle(tmp_path / "stick")))
    assert _best(ranking) == ("stick", 0)
    ranking.remove(standing)
    assert _best(ranking) == ("mirror", 0)
