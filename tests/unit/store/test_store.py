"""The databases: durable, one writer, and never in the way when they fail."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlite_utils

from appliance.config import Store as Settings
from appliance.errors import StoreError
from appliance.store import Migration, Store, Transaction
from appliance.store.database import Database, read, sqlite_version

STEPS = (Migration("notes.0001", ("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)",)),)
QUICK = Settings(busy_timeout_s=0.05, reopen_s=0.001, queue_intents=16)
WAIT_S = 20.0


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Callable[..., Store]]:
    stores: list[Store] = []

    def make(
        name: str = "notes.db",
        steps: tuple[Migration, ...] = STEPS,
        settings: Settings = QUICK,
    ) -> Store:
        store = Store(tmp_path / name, steps, settings)
        stores.append(store)
        return store

    yield make
    for store in stores:
        assert store.close(WAIT_S)


def insert(text: str) -> Callable[[Transaction], int]:
    def intent(transaction: Transaction) -> int:
        transaction.execute("INSERT INTO notes (text) VALUES (?)", (text,))
        return int(str(transaction.execute("SELECT max(id) FROM notes")[0][0]))

    return intent


def reason(error: pytest.ExceptionInfo[StoreError]) -> str:
    return str(error.value.fields["reason"])


def test_what_was_acknowledged_is_read_back_by_another_sqlite(
    open_store: Callable[..., Store],
) -> None:
    store = open_store()
    assert store.submit(insert("a")).result(WAIT_S) == 1
    assert store.read("SELECT id, text FROM notes") == [(1, "a")]
    assert store.close(WAIT_S)
    connection = sqlite3.connect(store.path)
    assert connection.execute("SELECT text FROM notes").fetchall() == [("a",)]
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_the_sqlite_in_use_does_not_have_the_wal_reset_bug(
    open_store: Callable[..., Store],
) -> None:
    store = open_store()
    assert store.wait_open() == ""
    assert store.read("SELECT sqlite_version()") == [(sqlite_version(),)]
    assert tuple(map(int, sqlite_version().split("."))) >= (3, 51, 3)


def test_the_library_above_drives_the_same_sqlite() -> None:
    assert sqlite_utils.Database(memory=True).execute("SELECT sqlite_version()").fetchone() == (
        sqlite_version(),
    )


_OPEN = """
import sys
from pathlib import Path
from appliance.store.database import Database
database = Database(Path(sys.argv[1]), (), 1.0)
database.open(0)
database.close()
"""


def test_a_plugin_of_the_library_is_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "intruder-1.dist-info").mkdir()
    (tmp_path / "intruder-1.dist-info" / "METADATA").write_text("Name: intruder\nVersion: 1\n")
    (tmp_path / "intruder-1.dist-info" / "entry_points.txt").write_text(
        "[sqlite_utils]\nintruder = intruder\n"
    )
    (tmp_path / "intruder.py").write_text("raise SystemExit('loaded')\n")
    done = subprocess.run(
        [sys.executable, "-c", _OPEN, str(tmp_path / "notes.db")],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_an_intent_that_raises_leaves_nothing_behind(open_store: Callable[..., Store]) -> None:
    store = open_store()

    def half(transaction: Transaction) -> None:
        insert("half")(transaction)
        raise KeyError("ours")

    with pytest.raises(KeyError):
        store.submit(half).result(WAIT_S)
    assert store.submit(insert("whole")).result(WAIT_S) == 1
    assert store.read("SELECT text FROM notes") == [("whole",)]


def test_a_refused_statement_is_a_typed_error_and_is_counted(
    open_store: Callable[..., Store],
) -> None:
    store = open_store()
    with pytest.raises(StoreError, match="no such table"):
        store.submit(lambda tx: tx.execute("SELECT * FROM absent")).result(WAIT_S)
    assert store.failures == 1


def test_a_reader_can_not_write(open_store: Callable[..., Store]) -> None:
    store = open_store()
    store.submit(insert("a")).result(WAIT_S)
    with pytest.raises(StoreError, match="can't be written"):
        store.read("DELETE FROM notes")


def test_a_full_queue_refuses_at_once(open_store: Callable[..., Store]) -> None:
    store = open_store()
    release, running = threading.Event(), threading.Event()

    def hold(_: Transaction) -> bool:
        running.set()
        return release.wait(WAIT_S)

    held = store.submit(hold)
    assert running.wait(WAIT_S)
    waiting = [store.submit(insert("x")) for _ in range(QUICK.queue_intents - 1)]
    with pytest.raises(StoreError, match="16 writes are waiting"):
        store.submit(insert("y")).result(0)
    release.set()
    assert held.result(WAIT_S)
    assert [future.result(WAIT_S) for future in waiting] == list(range(1, 16))
    assert store.submit(insert("z")).result(WAIT_S) == 16


def test_a_closed_store_commits_what_was_queued_and_refuses_more(
    open_store: Callable[..., Store],
) -> None:
    store = open_store()
    queued = [store.submit(insert("x")) for _ in range(5)]
    assert store.close(WAIT_S)
    assert [future.result(0) for future in queued] == [1, 2, 3, 4, 5]
    with pytest.raises(StoreError, match="is closed"):
        store.submit(insert("y")).result(0)


_LOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_lock_held_by_another_process_fails_the_write_and_not_the_next(
    open_store: Callable[..., Store],
) -> None:
    store = open_store()
    store.submit(insert("a")).result(WAIT_S)
    with subprocess.Popen(
        [sys.executable, "-c", _LOCKER, str(store.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(StoreError) as error:
            store.submit(insert("b")).result(WAIT_S)
        assert reason(error) == "is locked by another process"
        other.communicate(timeout=WAIT_S)
    assert store.submit(insert("c")).result(WAIT_S) == 2


@pytest.mark.parametrize(
    "damage", [b"not a database at all" * 100, b"SQLite format 3\0" + b"\xff" * 4096]
)
def test_a_damaged_file_is_set_aside_and_a_fresh_one_made(
    open_store: Callable[..., Store], tmp_path: Path, damage: bytes
) -> None:
    (tmp_path / "notes.db").write_bytes(damage)
    store = open_store()
    assert store.wait_open() == ""
    assert store.set_aside is not None
    assert store.set_aside.read_bytes() == damage
    assert store.submit(insert("a")).result(WAIT_S) == 1


def test_pages_damaged_before_an_unclean_start_are_noticed(
    open_store: Callable[..., Store], tmp_path: Path
) -> None:
    store = open_store()
    for _ in range(8):
        store.submit(insert("x" * 3000)).result(WAIT_S)
    store.close(WAIT_S)
    data = bytearray(store.path.read_bytes())
    data[4096 * 3 :] = b"\x5a" * (len(data) - 4096 * 3)
    store.path.write_bytes(data)
    (tmp_path / "notes.db-wal").write_bytes(b"")  # the mark of an unclean end
    again = open_store()
    assert again.wait_open() == ""
    assert again.set_aside is not None
    assert again.read("SELECT count(*) FROM notes") == [(0,)]


def test_a_file_of_a_newer_program_is_refused_and_kept(open_store: Callable[..., Store]) -> None:
    newer = (*STEPS, Migration("notes.0002", ("CREATE TABLE more (id INTEGER)",)))
    first = open_store(steps=newer)
    assert first.wait_open() == ""
    first.close(WAIT_S)
    older = open_store()
    assert older.wait_open() == "was written by a newer program (step notes.0002)"
    with pytest.raises(StoreError):
        older.submit(insert("a")).result(WAIT_S)
    assert older.set_aside is None


def test_a_step_edited_after_it_was_applied_is_refused(open_store: Callable[..., Store]) -> None:
    open_store().close(WAIT_S)
    edited = (Migration("notes.0001", ("CREATE TABLE notes (id INTEGER PRIMARY KEY)",)),)
    assert "is not the one" in open_store(steps=edited).wait_open()


def test_a_failing_step_is_undone_with_its_record(open_store: Callable[..., Store]) -> None:
    broken = (*STEPS, Migration("notes.0002", ("CREATE TABLE more (id INTEGER)", "NONSENSE")))
    assert "syntax error" in open_store(steps=broken).wait_open()
    mended = (*STEPS, Migration("notes.0002", ("CREATE TABLE more (id INTEGER, text TEXT)",)))
    store = open_store(steps=mended)
    assert store.wait_open() == ""
    assert store.read(
        "SELECT substr(name, 1, 10), length(name) FROM _sqlite_migrations ORDER BY id"
    ) == [("notes.0001", 75), ("notes.0002", 75)]  # a space and 64 hex digits


def test_a_directory_that_comes_back_is_used_again(
    open_store: Callable[..., Store], tmp_path: Path
) -> None:
    store = open_store("later/notes.db")
    assert store.wait_open() == "can't be opened"
    with pytest.raises(StoreError):
        store.submit(insert("a")).result(WAIT_S)
    (tmp_path / "later").mkdir()

    def until_open() -> int:
        for _ in range(1000):
            future = store.submit(insert("b"))
            if future.exception(WAIT_S) is None:
                return future.result()
        raise AssertionError("never opened")

    assert until_open() == 1
    assert store.fault == ""


OPENS = """
import sys
from pathlib import Path
from appliance.config import Store as Settings
from appliance.store import Migration, Store
print("ready", flush=True)
sys.stdin.read()
for name in range(20):
    step = Migration("0001-made", ("CREATE TABLE made (n INTEGER) STRICT",))
    store = Store(Path(sys.argv[1]) / f"{name}.db", (step,), Settings())
    fault = store.wait_open()
    store.close(60.0)
    if fault:
        sys.exit(str(fault))
"""


def test_processes_that_make_one_file_at_once_wait_for_each_other(tmp_path: Path) -> None:
    openers = [
        subprocess.Popen(
            [sys.executable, "-c", OPENS, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for opener in openers:
        assert opener.stdout is not None
        assert opener.stdout.readline() == "ready\n"
    for opener in openers:
        assert opener.stdin is not None
        opener.stdin.close()
        opener.stdin = None
    faults = [opener.communicate(timeout=60)[1] for opener in openers]
    assert [opener.returncode for opener in openers] == [0] * 4, faults


def test_reading_a_file_that_is_not_there_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="can't be opened"):
        read(tmp_path / "none.db", "SELECT 1", busy_timeout_s=0.01)


_FULL = """
import resource, sys
from pathlib import Path
from appliance.store.database import Database
from appliance.store import Migration
from appliance.errors import StoreError
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
steps = (Migration("notes.0001", ("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)",)),)
database = Database(Path(sys.argv[1]), steps, 0.1)
database.open(0)
sql = "INSERT INTO notes (text) VALUES (?)"
write = lambda: database.transact(lambda tx: tx.execute(sql, ("x" * 100000,)))
write()
resource.setrlimit(resource.RLIMIT_FSIZE, (200000, resource.RLIM_INFINITY))
reasons = []
for _ in range(3):
    try:
        write()
    except StoreError as error:
        reasons.append(error.fields["reason"])
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
write()
print(reasons)
"""


def test_a_disk_that_takes_no_more_fails_writes_until_there_is_room(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FULL, str(tmp_path / "notes.db")],
        capture_output=True,
        text=True,
        timeout=WAIT_S * 3,
        check=True,
    )
    reasons = done.stdout.strip()
    assert "the disk" in reasons
    assert read(tmp_path / "notes.db", "PRAGMA integrity_check", busy_timeout_s=1) == [("ok",)]


_WRITER = """
import sys
from pathlib import Path
from appliance.config import Store as Settings
from appliance.store import Migration, Store
steps = (Migration("notes.0001", ("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)",)),)
store = Store(Path(sys.argv[1]), steps, Settings())
sql = "INSERT INTO notes (text) VALUES ('x') RETURNING id"
while True:
    future = store.submit(lambda tx: tx.execute(sql))
    print(future.result()[0][0], flush=True)
"""


@pytest.mark.parametrize("acknowledged_min", [1, 7, 50])
def test_a_killed_writer_loses_nothing_it_acknowledged(
    tmp_path: Path, acknowledged_min: int
) -> None:
    path = tmp_path / "notes.db"
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        seen = [int(process.stdout.readline()) for _ in range(acknowledged_min)]
        process.send_signal(signal.SIGKILL)
        seen += [int(line) for line in process.stdout.read().split("\n")[:-1]]
        assert process.wait(WAIT_S) == -signal.SIGKILL
    database = Database(path, STEPS, 1.0)
    assert database.open(0) is None
    count = database.transact(lambda tx: tx.execute("SELECT count(*), max(id) FROM notes"))
    database.close()
    assert seen == list(range(1, len(seen) + 1))
    assert count[0] in {(len(seen), len(seen)), (len(seen) + 1, len(seen) + 1)}
