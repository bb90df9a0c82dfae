"""The record of who did what: complete, chained, bounded, and never in the way."""

from __future__ import annotations

import itertools
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.access.audit import FIELD_CHARS_MAX, GENESIS, MIGRATIONS, Audit
from appliance.access.policy import Verb
from appliance.config import Store as Settings
from appliance.domain import Client, ClientKind
from appliance.errors import StoreError
from appliance.store import Store, Transaction

WAIT_S = 20.0
CLIENT = Client(id="uid:1000", kind=ClientKind.LOCAL_SOCKET)
SETTINGS = Settings(busy_timeout_s=1, reopen_s=0.001, audit_records_max=1000, audit_pending=2000)
MakeStore = Callable[..., Store]


@pytest.fixture
def make_store(tmp_path: Path) -> Iterator[MakeStore]:
    stores: list[Store] = []

    def make(name: str = "events.db") -> Store:
        stores.append(Store(tmp_path / name, MIGRATIONS, SETTINGS))
        return stores[-1]

    yield make
    for store in stores:
        assert store.close(WAIT_S)


def make_audit(store: Store, settings: Settings = SETTINGS) -> Audit:
    return Audit(store, settings, utc_ms=itertools.count(1000).__next__)


def test_records_are_written_in_order_and_chained(make_store: MakeStore) -> None:
    store = make_store()
    audit = make_audit(store)
    for name in ("a", "b", "c"):
        audit.record(CLIENT, Verb.GENERATE, name, "ok")
    audit.flush().result(WAIT_S)
    rows = store.read("SELECT seq, utc_ms, client, kind, verb, object, result FROM audit")
    assert rows == [
        (seq, 999 + seq, "uid:1000", "local_socket", "generate", name, "ok")
        for seq, name in enumerate("abc", start=1)
    ]
    assert audit.verify() is None
    assert audit.head()[0] == 3


def test_the_chain_goes_on_after_a_restart(make_store: MakeStore) -> None:
    store = make_store()
    make_audit(store).record(CLIENT, Verb.SERVE, "*", "ok")
    store.close(WAIT_S)
    again = make_audit(make_store())
    again.record(CLIENT, Verb.STOP, "*", "ok")
    again.flush().result(WAIT_S)
    assert again.head()[0] == 2
    assert again.verify() is None


def test_an_empty_record_is_in_order(make_store: MakeStore) -> None:
    audit = make_audit(make_store())
    assert audit.flush().result(WAIT_S) == 0
    assert audit.head() == (0, GENESIS)
    assert audit.verify() is None


@pytest.mark.parametrize(
    ("damage", "first_wrong"),
    [
        ("UPDATE audit SET result = 'x' WHERE seq = 3", 3),
        ("UPDATE audit SET utc_ms = 0 WHERE seq = 1", 1),
        ("DELETE FROM audit WHERE seq = 2", 2),
        ("UPDATE audit SET hash = (SELECT hash FROM audit WHERE seq = 5) WHERE seq = 4", 4),
    ],
)
def test_a_changed_or_removed_record_shows(
    make_store: MakeStore, damage: str, first_wrong: int
) -> None:
    store = make_store()
    audit = make_audit(store)
    for index in range(5):
        audit.record(CLIENT, Verb.GENERATE, str(index), "ok")
    audit.flush().result(WAIT_S)
    with pytest.raises(StoreError, match="audit records are never"):
        store.submit(lambda tx: tx.execute(damage)).result(WAIT_S)
    assert audit.verify() is None
    store.close(WAIT_S)
    forger = sqlite3.connect(store.path)  # someone with the file can drop the triggers
    for trigger in ("audit_no_update", "audit_no_delete"):
        forger.execute(f"DROP TRIGGER {trigger}")
    forger.execute(damage)
    forger.commit()
    forger.close()
    assert make_audit(make_store()).verify() == first_wrong


def test_the_oldest_tenth_goes_when_the_bound_is_reached(make_store: MakeStore) -> None:
    store = make_store()
    audit = make_audit(store)
    for index in range(1001):
        audit.record(CLIENT, Verb.GENERATE, str(index), "ok")
        if index % 500 == 0:
            audit.flush().result(WAIT_S)
    audit.flush().result(WAIT_S)
    assert store.read("SELECT min(seq), max(seq) FROM audit") == [(102, 1001)]
    assert audit.verify() is None
    with pytest.raises(StoreError, match="never deleted"):
        store.submit(lambda tx: tx.execute("DELETE FROM audit WHERE seq = 500")).result(WAIT_S)
    with pytest.raises(StoreError, match="only rises"):
        store.submit(lambda tx: tx.execute("UPDATE audit_floor SET seq = 1")).result(WAIT_S)
    with pytest.raises(StoreError, match="stays"):
        store.submit(lambda tx: tx.execute("DELETE FROM audit_floor")).result(WAIT_S)


def test_what_could_not_be_written_waits_and_what_did_not_fit_is_counted(
    make_store: MakeStore, tmp_path: Path
) -> None:
    store = make_store("later/events.db")
    assert store.wait_open() != ""
    audit = make_audit(store, Settings(audit_pending=16, audit_records_max=1000))
    for index in range(20):
        audit.record(CLIENT, Verb.GENERATE, str(index), "ok")
    assert audit.lost == 4
    (tmp_path / "later").mkdir()
    for _ in range(1000):
        if audit.flush().exception(WAIT_S) is None:
            break
    audit.flush().result(WAIT_S)
    rows = store.read("SELECT object, verb FROM audit ORDER BY seq")
    assert rows == [*((str(index), "generate") for index in range(16)), ("4", "lost")]
    assert audit.verify() is None


def test_a_transaction_that_fails_is_tried_again_with_the_next_record(
    make_store: MakeStore,
) -> None:
    store = make_store()
    audit = make_audit(store)
    store.submit(lambda tx: tx.execute("ALTER TABLE audit RENAME TO hidden")).result(WAIT_S)
    audit.record(CLIENT, Verb.GENERATE, "first", "ok")
    store.submit(lambda _: None).result(WAIT_S)
    assert store.failures == 1
    store.submit(lambda tx: tx.execute("ALTER TABLE hidden RENAME TO audit")).result(WAIT_S)
    audit.record(CLIENT, Verb.GENERATE, "second", "ok")
    audit.flush().result(WAIT_S)
    assert store.read("SELECT object FROM audit") == [("first",), ("second",)]
    assert audit.lost == 0


def test_a_busy_writer_does_not_block_and_loses_nothing(make_store: MakeStore) -> None:
    store = make_store()
    audit = make_audit(store)
    release = threading.Event()

    def hold(_: Transaction) -> bool:
        return release.wait(WAIT_S)

    held = store.submit(hold)
    for index in range(900):
        audit.record(CLIENT, Verb.GENERATE, str(index), "ok")
    release.set()
    assert held.result(WAIT_S)
    audit.flush().result(WAIT_S)
    rows = store.read("SELECT object FROM audit ORDER BY seq")
    assert rows == [(str(index),) for index in range(900)]
    assert audit.lost == 0


def test_a_file_set_aside_is_the_first_thing_in_the_new_record(
    make_store: MakeStore, tmp_path: Path
) -> None:
    (tmp_path / "events.db").write_bytes(b"damaged" * 1000)
    store = make_store()
    assert store.wait_open() == ""
    assert store.set_aside is not None
    audit = make_audit(store)
    audit.flush().result(WAIT_S)
    rows = store.read("SELECT verb, object FROM audit")
    assert rows == [("set_aside", store.set_aside.name)]


def test_a_long_name_is_cut(make_store: MakeStore) -> None:
    store = make_store()
    audit = make_audit(store)
    audit.record(CLIENT, Verb.GENERATE, "x" * 10_000, "ok")
    audit.flush().result(WAIT_S)
    assert store.read("SELECT length(object) FROM audit") == [(FIELD_CHARS_MAX,)]


_RECORDER = """
import sys
from pathlib import Path
from appliance.access.audit import MIGRATIONS, Audit
from appliance.access.policy import Verb
from appliance.clock import utc_ms
from appliance.config import Store as Settings
from appliance.domain import Client, ClientKind
from appliance.store import Store
audit = Audit(Store(Path(sys.argv[1]), MIGRATIONS, Settings()), Settings(), utc_ms)
client = Client(id="c", kind=ClientKind.LOOPBACK)
for index in range(10**9):
    audit.record(client, Verb.GENERATE, str(index), "ok")
    audit.flush().result()
    print(index, flush=True)
"""


def test_the_chain_holds_after_the_process_is_killed(make_store: MakeStore, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _RECORDER, str(tmp_path / "events.db")], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        for _ in range(20):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        flushed = 20 + process.stdout.read().count(b"\n")
    audit = make_audit(make_store())
    audit.flush().result(WAIT_S)
    assert audit.verify() is None
    assert audit.head()[0] >= flushed
