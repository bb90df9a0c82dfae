"""Read and write what is remembered of deployments, inside one transaction of state.db.

What this room does: the tables, what is read back from them at the start, and each thing written.
What it knows: bodies are JSON of the values themselves; columns beside them are what is asked for.
What it never does: begin a transaction, or decide what is written; `journal` does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import msgspec

from appliance.domain import Digest, Value
from appliance.store import Migration, Transaction
from appliance.sync.deployment import Deployment, Serving
from appliance.sync.eligibility import Attempts, Wish
from appliance.sync.host import Offer
from appliance.sync.states import Event, State

T = TypeVar("T")

# An end for these reasons is a try that may be repeated, not often.
COUNTED = frozenset(
    {
        Event.DEADLINE.value,
        Event.NO_ROOM.value,
        Event.RESTARTED_DIRTY.value,
        Event.RESTARTED_REBOOTED.value,
    }
)

MIGRATIONS = (
    Migration(
        "deployments.0001",
        (
            """CREATE TABLE deployments (
                id INTEGER PRIMARY KEY, model TEXT NOT NULL, digest TEXT NOT NULL,
                state TEXT NOT NULL, has_ended INTEGER NOT NULL, is_counted INTEGER NOT NULL,
                entered_utc_ms INTEGER NOT NULL, body TEXT NOT NULL) STRICT""",
            "CREATE TABLE serving (model TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT",
            "CREATE TABLE offers (digest TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT",
            """CREATE TABLE quarantine (
                digest TEXT PRIMARY KEY, reason TEXT NOT NULL) STRICT""",
            "CREATE TABLE wishes (model TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT",
            """CREATE TABLE runs (
                id INTEGER PRIMARY KEY CHECK (id = 1), boot_id TEXT NOT NULL,
                is_clean INTEGER NOT NULL) STRICT""",
        ),
    ),
)


class Memory(msgspec.Struct, kw_only=True):
    """What is remembered, by model or by digest. Only the journal changes it.

    committed: the last commit of each model, as the start found it: what may still be regretted.
    last_run: how the run before this one ended, as the event that deployments are told.
    """

    serving: dict[str, Serving] = msgspec.field(default_factory=dict)
    offers: dict[Digest, Offer] = msgspec.field(default_factory=dict)
    under_way: dict[str, Deployment] = msgspec.field(default_factory=dict)
    committed: dict[str, Deployment] = msgspec.field(default_factory=dict)
    quarantine: dict[Digest, str] = msgspec.field(default_factory=dict)
    attempts: dict[Digest, Attempts] = msgspec.field(default_factory=dict)
    wishes: dict[str, Wish] = msgspec.field(default_factory=dict)
    last_run: Event = Event.RESTARTED_CLEAN
    next_id: int = 1

    def named(self) -> frozenset[Digest]:
        """List the versions that serve, stand by, or are part of a deployment under way."""
        digests = {d for one in self.under_way.values() for d in (one.digest, one.previous)}
        digests |= {d for one in self.serving.values() for d in (one.active, one.standby)}
        return frozenset(digest for digest in digests if digest)


def recall(transaction: Transaction, boot_id: str) -> Memory:
    """Read all that is remembered."""
    read = transaction.execute
    serving = [value(row[0], Serving) for row in read("SELECT body FROM serving")]
    offers = [value(row[0], Offer) for row in read("SELECT body FROM offers")]
    live = [
        value(row[0], Deployment)
        for row in read("SELECT body FROM deployments WHERE has_ended = 0 ORDER BY id")
    ]
    committed = [
        value(row[0], Deployment)
        for row in read(
            "SELECT body FROM deployments WHERE id IN"
            " (SELECT max(id) FROM deployments WHERE state = ? GROUP BY model)",
            (State.COMMITTED.value,),
        )
    ]
    tried = read(
        "SELECT digest, count(*), max(entered_utc_ms) FROM deployments"
        " WHERE is_counted = 1 GROUP BY digest"
    )
    return Memory(
        serving={one.model: one for one in serving},
        offers={one.digest: one for one in offers},
        under_way={one.model: one for one in live},
        committed={one.model: one for one in committed},
        quarantine={
            Digest(str(digest)): str(reason)
            for digest, reason in read("SELECT digest, reason FROM quarantine")
        },
        attempts={
            Digest(str(digest)): Attempts(count=int(str(count)), ended_utc_ms=int(str(ended)))
            for digest, count, ended in tried
        },
        wishes={
            str(model): value(body, Wish) for model, body in read("SELECT model, body FROM wishes")
        },
        last_run=_last_run(transaction, boot_id),
        next_id=1 + int(str(read("SELECT coalesce(max(id), 0) FROM deployments")[0][0])),
    )


def _last_run(transaction: Transaction, boot_id: str) -> Event:
    rows = transaction.execute("SELECT boot_id, is_clean FROM runs")
    if not rows or rows[0][1]:
        return Event.RESTARTED_CLEAN
    return Event.RESTARTED_DIRTY if rows[0][0] == boot_id else Event.RESTARTED_REBOOTED


def put_deployment(to: Transaction, deployment: Deployment) -> None:
    """Write the state a deployment has entered."""
    to.execute(
        "INSERT OR REPLACE INTO deployments"
        " (id, model, digest, state, has_ended, is_counted, entered_utc_ms, body)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            deployment.id,
            deployment.model,
            deployment.digest,
            deployment.state.value,
            int(deployment.has_ended),
            int(deployment.has_ended and deployment.cause in COUNTED),
            deployment.entered_utc_ms,
            text(deployment),
        ),
    )


def put_serving(to: Transaction, serving: Serving) -> None:
    """Write who serves a model."""
    to.execute(
        "INSERT OR REPLACE INTO serving (model, body) VALUES (?, ?)", (serving.model, text(serving))
    )


def put_offer(to: Transaction, offer: Offer) -> None:
    """Write what a version is."""
    to.execute(
        "INSERT OR REPLACE INTO offers (digest, body) VALUES (?, ?)", (offer.digest, text(offer))
    )


def put_quarantine(to: Transaction, digest: Digest, reason: str) -> None:
    """Write that a version is left alone."""
    to.execute("INSERT OR REPLACE INTO quarantine (digest, reason) VALUES (?, ?)", (digest, reason))


def put_wish(to: Transaction, model: str, wish: Wish) -> None:
    """Write what the operator wants of a model."""
    to.execute("INSERT OR REPLACE INTO wishes (model, body) VALUES (?, ?)", (model, text(wish)))


def forgive(to: Transaction, digest: Digest) -> None:
    """Lift a quarantine, and forget how often the version was tried."""
    to.execute("DELETE FROM quarantine WHERE digest = ?", (digest,))
    to.execute("UPDATE deployments SET is_counted = 0 WHERE digest = ?", (digest,))


def let_go(to: Transaction, named: Iterable[Digest], oldest_id: int) -> None:
    """Delete versions that nobody names, and ended deployments before `oldest_id`."""
    kept = set(named)
    for (digest,) in to.execute("SELECT digest FROM offers"):
        if digest not in kept:
            to.execute("DELETE FROM offers WHERE digest = ?", (digest,))
    to.execute("DELETE FROM deployments WHERE has_ended = 1 AND id < ?", (oldest_id,))


def mark_run(to: Transaction, boot_id: str, *, is_clean: bool) -> None:
    """Write that a run has begun, or ended cleanly."""
    to.execute(
        "INSERT OR REPLACE INTO runs (id, boot_id, is_clean) VALUES (1, ?, ?)",
        (boot_id, int(is_clean)),
    )


def text(one: Value) -> str:
    """Write a value as JSON."""
    return msgspec.json.encode(one).decode()


def value(body: object, kind: type[T]) -> T:
    """Read what `text` wrote; another edition of a value comes with another migration."""
    return msgspec.json.decode(str(body), type=kind)
