"""Floors only rise, but where the root takes the signers' keys; documents stay as they were."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.config import Store as StoreSettings
from appliance.errors import StoreError, Untrusted
from appliance.store import Store
from appliance.sync import remembered as room
from appliance.sync.remembered import MIGRATIONS, Remembered
from appliance.sync.verified import Freshness, Seen, Verified

WAIT_S = 20.0
Keys = dict[str, frozenset[str]]
OLD, NEW = frozenset({"old"}), frozenset({"new"})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    opened = Store(tmp_path_factory.mktemp("state") / "state.db", MIGRATIONS, StoreSettings())
    assert opened.wait_open() == ""
    yield opened
    assert opened.close(WAIT_S)


@pytest.fixture
def remembered(store: Store) -> Remembered:
    return emptied(store)


def emptied(store: Store) -> Remembered:
    for table in ("trust_floors", "trust_documents", "trust_clock"):
        store.submit(lambda t, table=table: t.execute(f"DELETE FROM {table}")).result(WAIT_S)  # type: ignore[misc] # noqa: S608 # three names
    return Remembered(store, store_wait_s=WAIT_S)


def seen(keys: Keys | None = None, accepted: Keys | None = None, /, **versions: int) -> Seen:
    signers = {"timestamp": OLD, "snapshot": OLD} | (keys or {})
    may = {"timestamp": OLD | NEW, "snapshot": OLD | NEW} | (accepted or {})
    return Seen(
        versions={"root": 1, "timestamp": 5, "snapshot": 5, "targets": 5} | versions,
        signers=signers,
        accepted={role: (ids, 1) for role, ids in may.items()},
    )


@given(st.lists(st.dictionaries(st.sampled_from(["root", "timestamp", "snapshot", "targets", "x"]),
                                st.integers(1, 4), min_size=5), max_size=8))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_no_floor_falls_while_its_keys_stand(store: Store, steps: list[dict[str, int]]) -> None:
    remembered = emptied(store)
    model: dict[str, int] = {}
    for step in steps:
        if all(step.get(role, 0) >= floor for role, floor in model.items()):
            remembered.raise_floors(seen(**step))
            model = step
        else:
            with pytest.raises(Untrusted, match="was seen before"):
                remembered.raise_floors(seen(**step))
        assert remembered.floors() == model


def test_a_floor_ends_where_the_root_takes_its_signers_keys(remembered: Remembered) -> None:
    remembered.raise_floors(seen())
    new = {"timestamp": NEW, "snapshot": NEW}
    lower = {"timestamp": 1, "snapshot": 1, "targets": 1}
    with pytest.raises(Untrusted):  # new keys beside the old ones are no reason
        remembered.raise_floors(seen(new, **lower))
    with pytest.raises(Untrusted, match="targets is not trusted"):  # the snapshot's keys stand
        remembered.raise_floors(seen(new, {"timestamp": NEW}, **lower))
    remembered.raise_floors(seen({"timestamp": NEW}, {"timestamp": NEW}, timestamp=1, snapshot=1))
    assert remembered.floors()["targets"] == 5
    remembered.raise_floors(seen(new, {"timestamp": NEW, "snapshot": NEW}, **lower))
    assert remembered.floors() == {"root": 1} | lower
    with pytest.raises(Untrusted, match="root is not trusted: is gone"):
        remembered.raise_floors(seen(new, {"timestamp": NEW, "snapshot": NEW}, root=0, **lower))


def test_what_was_not_reached_keeps_its_floor(remembered: Remembered) -> None:
    remembered.raise_floors(seen())
    accepted = {"timestamp": (OLD, 1), "snapshot": (OLD, 1)}
    remembered.raise_floors(Seen(versions={"root": 2}, signers={}, accepted=accepted))
    assert remembered.floors() == {"root": 2, "timestamp": 5, "snapshot": 5, "targets": 5}


def release(number: int) -> Verified:
    data = b"%d" % number
    digest = sha256(data).hexdigest()
    path = f"models/demo/{number}/release.json"
    return Verified(path=path, signer="publisher-acme", sha256=digest, data=data)


def test_the_latest_releases_stay_and_those_that_are_pinned(
    remembered: Remembered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "RELEASES_MAX", 2)
    for number in range(5):
        fresh = Freshness(learnt_utc_ms=number)
        remembered.keep([release(number)], fresh, pinned={release(1).sha256})
    kept = [n for n in range(5) if remembered.data(release(n).path) is not None]
    assert kept == [1, 3, 4]


def test_the_signed_time_never_goes_back(remembered: Remembered) -> None:
    remembered.keep([], Freshness(signed_utc_ms=7, learnt_utc_ms=8, expires_utc_ms=9), ())
    remembered.keep([], Freshness(signed_utc_ms=3, learnt_utc_ms=4, expires_utc_ms=5), ())
    known = remembered.freshness()
    assert (known.signed_utc_ms, known.learnt_utc_ms, known.expires_utc_ms) == (7, 4, 5)


def test_a_document_that_changed_in_the_database_is_noticed(
    remembered: Remembered, store: Store
) -> None:
    remembered.keep([release(1)], Freshness(), ())
    change = "UPDATE trust_documents SET data = X'00'"
    store.submit(lambda transaction: transaction.execute(change)).result(WAIT_S)
    with pytest.raises(StoreError, match="has changed in it"):
        remembered.data(release(1).path)
