"""Tokens, devices and reports in the hub's database: real SQLite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from appliance.config import Store as Settings
from appliance.contract.enrolment import DeviceName
from appliance.contract.fleet import Report
from appliance.errors import EnrolmentRefused
from appliance.hub import inventory
from appliance.hub.inventory import DeviceStatus, Taken
from appliance.store import Store, Transaction

T = TypeVar("T")
KEY, OTHER_KEY = "a" * 64, "b" * 64
OUTBOX = "0" * 32
REPORT = Report(outbox=OUTBOX, seq=1, utc_ms=5, kind="state", body=b"{}")


class Rows:
    def __init__(self, store: Store) -> None:
        self.store = store

    def do(self, intent: Callable[[Transaction], T]) -> T:
        return self.store.submit(intent).result(10)

    def token(self, secret: str, device: str = "", expires: int = 100) -> None:
        self.do(lambda rows: inventory.add_token(rows, secret, "lab", device, (0, expires)))

    def take(self, secret: str, key: str, now: int = 1) -> tuple[DeviceName, str]:
        return self.do(lambda rows: inventory.take_token(rows, secret, key, now))

    def greet(self, outbox: str = OUTBOX) -> int:
        return self.do(lambda rows: inventory.greeted(rows, "box", "1.0", outbox, 7))

    def report(self, report: Report, kept: int = 3) -> Taken:
        return self.do(lambda rows: inventory.take_report(rows, "box", report, 9, kept))


@pytest.fixture
def rows(tmp_path: Path) -> Iterator[Rows]:
    store = Store(tmp_path / "hub.db", inventory.MIGRATIONS, Settings())
    yield Rows(store)
    store.close(10)


@pytest.fixture
def greeted(rows: Rows) -> Rows:
    rows.token("s", "box")
    rows.take("s", KEY)
    assert rows.greet() == 0
    return rows


def test_a_token_is_spent_by_its_first_key(rows: Rows) -> None:
    rows.token("s")
    name, cohort = rows.take("s", KEY)
    assert (name.device, name.generation, cohort) == (f"device-{KEY[:12]}", 1, "lab")
    assert rows.take("s", KEY) == (name, cohort)
    with pytest.raises(EnrolmentRefused, match="used before"):
        rows.take("s", OTHER_KEY)
    with pytest.raises(EnrolmentRefused, match="no such token"):
        rows.take("t", KEY)


def test_a_token_ends(rows: Rows) -> None:
    rows.token("s", expires=100)
    with pytest.raises(EnrolmentRefused, match="expired"):
        rows.take("s", KEY, now=100)
    rows.take("s", KEY, now=99)
    with pytest.raises(EnrolmentRefused, match="expired"):
        rows.take("s", KEY, now=100)


def test_a_secret_is_not_in_the_database(rows: Rows, tmp_path: Path) -> None:
    rows.token("a-secret-that-nobody-may-read")
    rows.store.close(10)
    for path in tmp_path.iterdir():
        assert b"a-secret" not in path.read_bytes()


def test_a_named_device_that_comes_again_is_of_the_next_generation(rows: Rows) -> None:
    rows.token("s", "box")
    rows.token("t", "box")
    assert rows.take("s", KEY)[0].generation == 1
    assert rows.take("t", OTHER_KEY)[0].generation == 2
    assert [one.device for one in inventory.devices(rows.store)] == ["box"]
    assert inventory.devices(rows.store, "other") == []


def test_a_revoked_device_does_not_come_back_by_its_old_token(rows: Rows) -> None:
    rows.token("s", "box")
    rows.take("s", KEY)
    assert rows.do(lambda all_: inventory.set_status(all_, "box", DeviceStatus.REVOKED))
    assert not rows.do(lambda all_: inventory.set_status(all_, "nobody", DeviceStatus.REVOKED))
    with pytest.raises(EnrolmentRefused, match="revoked"):
        rows.take("s", KEY)


def test_a_report_is_taken_once(greeted: Rows) -> None:
    assert greeted.report(REPORT) is Taken.NEW
    assert greeted.report(REPORT) is Taken.KNOWN
    assert greeted.greet() == 1
    assert inventory.reports(greeted.store, "box", 10) == [REPORT]


def test_a_replayed_report_is_refused(greeted: Rows) -> None:
    other = msgspec.structs.replace(REPORT, body=b'{"state": "committed"}')
    assert greeted.report(msgspec.structs.replace(REPORT, seq=5)) is Taken.NEW
    assert greeted.report(msgspec.structs.replace(other, seq=5)) is Taken.REPLAYED
    assert greeted.report(msgspec.structs.replace(other, seq=4)) is Taken.REPLAYED
    assert greeted.report(msgspec.structs.replace(other, outbox="1" * 32, seq=9)) is Taken.REPLAYED
    assert [one.seq for one in inventory.reports(greeted.store, "box", 10)] == [5]


def test_an_outbox_that_was_left_is_not_begun_again(greeted: Rows) -> None:
    greeted.report(REPORT)
    assert greeted.greet("1" * 32) == 0
    assert greeted.greet(OUTBOX) == 1
    assert greeted.report(msgspec.structs.replace(REPORT, body=b"other")) is Taken.REPLAYED


def test_so_many_reports_are_kept_of_each_device(greeted: Rows) -> None:
    for seq in range(1, 8):
        assert greeted.report(msgspec.structs.replace(REPORT, seq=seq)) is Taken.NEW
    assert [one.seq for one in inventory.reports(greeted.store, "box", 10)] == [7, 6, 5]
    assert greeted.report(msgspec.structs.replace(REPORT, seq=1)) is Taken.REPLAYED
