"""Keep what the hub knows of appliances: tokens, devices, and the last of their reports.

What this room does: the tables of `hub.db` and the one transaction of each intent.
What it knows: a token is kept by its digest. A report is taken once: what a device sends again
after a lost acknowledgement is acknowledged again and changes nothing.
What it never does: make a certificate or a secret, or listen.
"""

from __future__ import annotations

import hashlib
from enum import Enum

import msgspec

from appliance.contract.enrolment import DeviceName
from appliance.contract.fleet import Report
from appliance.errors import EnrolmentRefused
from appliance.store import Migration, Row, SqlValue, Store, Transaction

MIGRATIONS = (
    Migration(
        "hub.0001",
        (
            """CREATE TABLE tokens (
                secret_sha256 TEXT PRIMARY KEY, cohort TEXT NOT NULL, device TEXT NOT NULL,
                made_utc_ms INTEGER NOT NULL, expires_utc_ms INTEGER NOT NULL,
                used_utc_ms INTEGER, key_sha256 TEXT NOT NULL DEFAULT '') STRICT""",
            """CREATE TABLE devices (
                device TEXT PRIMARY KEY, cohort TEXT NOT NULL, generation INTEGER NOT NULL,
                status TEXT NOT NULL CHECK (status IN ('active', 'revoked')),
                key_sha256 TEXT NOT NULL, enrolled_utc_ms INTEGER NOT NULL,
                certificate_ends_utc_ms INTEGER NOT NULL DEFAULT 0,
                seen_utc_ms INTEGER NOT NULL DEFAULT 0, program TEXT NOT NULL DEFAULT '',
                outbox TEXT NOT NULL DEFAULT '', acked_seq INTEGER NOT NULL DEFAULT 0) STRICT""",
            """CREATE TABLE reports (
                id INTEGER PRIMARY KEY, device TEXT NOT NULL, outbox TEXT NOT NULL,
                seq INTEGER NOT NULL, utc_ms INTEGER NOT NULL, received_utc_ms INTEGER NOT NULL,
                kind TEXT NOT NULL, body BLOB NOT NULL, UNIQUE (device, outbox, seq)) STRICT""",
        ),
    ),
)
DEVICES_SHOWN_MAX = 10_000


class DeviceStatus(Enum):
    """Whether an appliance may come in."""

    ACTIVE = "active"
    REVOKED = "revoked"


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the inventory. Times are UTC in ms; 0: never."""

    device: str
    cohort: str
    generation: int
    status: DeviceStatus
    enrolled_utc_ms: int
    certificate_ends_utc_ms: int
    seen_utc_ms: int
    program: str
    outbox: str
    acked_seq: int

    @property
    def name(self) -> DeviceName:
        """Name what its present certificates say."""
        return DeviceName(device=self.device, generation=self.generation)


class Taken(Enum):
    """What became of a report."""

    NEW = "new"
    KNOWN = "known"  # sent again: acknowledged, and nothing changed
    REPLAYED = "replayed"  # its number was taken by another report


_COLUMNS = (
    "device, cohort, generation, status, enrolled_utc_ms, certificate_ends_utc_ms, seen_utc_ms,"
    " program, outbox, acked_seq"
)


def add_token(
    transaction: Transaction, secret: str, cohort: str, device: str, times: tuple[int, int]
) -> None:
    """Remember a token by its digest. `device`: "" lets its key name it. `times`: made, expires."""
    transaction.execute(
        "INSERT INTO tokens (secret_sha256, cohort, device, made_utc_ms, expires_utc_ms)"
        " VALUES (?, ?, ?, ?, ?)",
        (_digest(secret), cohort, device, *times),
    )


def take_token(
    transaction: Transaction, secret: str, key_sha256: str, now_utc_ms: int
) -> tuple[DeviceName, str]:
    """Spend a token on a key; returns who the device is now, and its cohort.

    The same key may come again until the token expires: its first answer may have been lost.

    Raises:
        EnrolmentRefused: there is no such token, it is over, or another key has used it.
    """
    rows = transaction.execute(
        "SELECT cohort, device, expires_utc_ms, used_utc_ms, key_sha256 FROM tokens"
        " WHERE secret_sha256 = ?",
        (_digest(secret),),
    )
    if not rows:
        raise EnrolmentRefused(reason="it knows no such token")
    cohort, device, expires_utc_ms, used_utc_ms, used_by = rows[0]
    if used_utc_ms is not None and used_by != key_sha256:
        raise EnrolmentRefused(reason="the token was used before; each is good for one appliance")
    if now_utc_ms >= int(str(expires_utc_ms)):
        raise EnrolmentRefused(reason="the token has expired")
    device = str(device) or f"device-{key_sha256[:12]}"
    if used_utc_ms is None:
        transaction.execute(
            "UPDATE tokens SET used_utc_ms = ?, key_sha256 = ? WHERE secret_sha256 = ?",
            (now_utc_ms, key_sha256, _digest(secret)),
        )
        transaction.execute(
            "INSERT INTO devices (device, cohort, generation, status, key_sha256, enrolled_utc_ms)"
            " VALUES (?, ?, 1, 'active', ?, ?) ON CONFLICT (device) DO UPDATE SET"
            " cohort = excluded.cohort, generation = generation + 1, status = 'active',"
            " key_sha256 = excluded.key_sha256, enrolled_utc_ms = excluded.enrolled_utc_ms",
            (device, str(cohort), key_sha256, now_utc_ms),
        )
    found = _found(transaction.execute(*_one(device)))
    if found is None or found.status is DeviceStatus.REVOKED:
        raise EnrolmentRefused(reason="the appliance was revoked")
    return found.name, found.cohort


def certified(transaction: Transaction, device: str, key_sha256: str, ends_utc_ms: int) -> None:
    """Note until when the device's newest certificate is good."""
    transaction.execute(
        "UPDATE devices SET key_sha256 = ?, certificate_ends_utc_ms = ? WHERE device = ?",
        (key_sha256, ends_utc_ms, device),
    )


def set_status(transaction: Transaction, device: str, status: DeviceStatus) -> bool:
    """Revoke an appliance, or take that back; tells whether there is such a one."""
    rows = transaction.execute(
        "UPDATE devices SET status = ? WHERE device = ? RETURNING device", (status.value, device)
    )
    return bool(rows)


def move(transaction: Transaction, device: str, cohort: str) -> bool:
    """Put a device into another cohort, as it learns at its next renewal; tells whether it is."""
    rows = transaction.execute(
        "UPDATE devices SET cohort = ? WHERE device = ? RETURNING device", (cohort, device)
    )
    return bool(rows)


def greeted(
    transaction: Transaction, device: str, program: str, outbox: str, now_utc_ms: int
) -> int:
    """Note that a device is here; returns the last report of this outbox that was taken, or 0."""
    transaction.execute(
        "UPDATE devices SET seen_utc_ms = ?, program = ?,"
        " acked_seq = CASE WHEN outbox = ? THEN acked_seq ELSE coalesce("
        "(SELECT max(seq) FROM reports WHERE reports.device = devices.device"
        " AND reports.outbox = ?), 0) END, outbox = ? WHERE device = ?",
        (now_utc_ms, program, outbox, outbox, outbox, device),
    )
    found = _found(transaction.execute(*_one(device)))
    return found.acked_seq if found is not None else 0


def seen(transaction: Transaction, device: str, now_utc_ms: int) -> None:
    """Note that a device is still here."""
    transaction.execute("UPDATE devices SET seen_utc_ms = ? WHERE device = ?", (now_utc_ms, device))


def take_report(
    transaction: Transaction, device: str, report: Report, now_utc_ms: int, kept: int
) -> Taken:
    """Keep a report, the newest `kept` of each device, unless it was taken before."""
    found = _found(transaction.execute(*_one(device)))
    assert found is not None, "greet first"
    if report.outbox != found.outbox:
        return Taken.REPLAYED
    if report.seq <= found.acked_seq:
        rows = transaction.execute(
            "SELECT 1 FROM reports WHERE device = ? AND outbox = ? AND seq = ?"
            " AND utc_ms = ? AND kind = ? AND body = ?",
            (device, report.outbox, report.seq, report.utc_ms, report.kind, report.body),
        )
        return Taken.KNOWN if rows else Taken.REPLAYED
    values: tuple[SqlValue, ...] = (
        device,
        report.outbox,
        report.seq,
        report.utc_ms,
        now_utc_ms,
        report.kind,
        report.body,
    )
    transaction.execute(
        "INSERT INTO reports (device, outbox, seq, utc_ms, received_utc_ms, kind, body)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        values,
    )
    transaction.execute(
        "UPDATE devices SET acked_seq = ?, seen_utc_ms = ? WHERE device = ?",
        (report.seq, now_utc_ms, device),
    )
    transaction.execute(
        "DELETE FROM reports WHERE device = ? AND id <= (SELECT id FROM reports WHERE device = ?"
        " ORDER BY id DESC LIMIT 1 OFFSET ?)",
        (device, device, kept),
    )
    return Taken.NEW


def device_of(store: Store, device: str) -> Device | None:
    """Find a device; blocks.

    Raises:
        StoreError: the inventory can't be read.
    """
    return _found(store.read(*_one(device)))


def devices(store: Store, cohort: str = "") -> list[Device]:
    """List the devices, of one cohort or of all, by name; blocks. Raises as `device_of`."""
    rows = store.read(
        f"SELECT {_COLUMNS} FROM devices WHERE ? IN ('', cohort) ORDER BY device LIMIT ?",  # noqa: S608 - our own columns
        (cohort, DEVICES_SHOWN_MAX),
    )
    return [_device(row) for row in rows]


def reports(store: Store, device: str, count: int) -> list[Report]:
    """List the newest reports of a device, newest first; blocks. Raises as `device_of`."""
    rows = store.read(
        "SELECT outbox, seq, utc_ms, kind, body FROM reports WHERE device = ?"
        " ORDER BY id DESC LIMIT ?",
        (device, count),
    )
    return [msgspec.convert(dict(zip(_REPORT, row, strict=True)), Report) for row in rows]


_REPORT = ("outbox", "seq", "utc_ms", "kind", "body")


def _one(device: str) -> tuple[str, tuple[SqlValue, ...]]:
    return f"SELECT {_COLUMNS} FROM devices WHERE device = ?", (device,)  # noqa: S608 - our own columns


def _found(rows: list[Row]) -> Device | None:
    return _device(rows[0]) if rows else None


def _device(row: Row) -> Device:
    return msgspec.convert(dict(zip(Device.__struct_fields__, row, strict=True)), Device)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
