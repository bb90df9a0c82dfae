"""Open the local databases: one writing connection and one thread each.

Start with `writer.Store`: what the rest of the house holds. `database` is the gate to SQLite;
`migrations` says how a schema grows; `files` writes everything that is not a database.
"""

from appliance.store.database import Row, SqlValue, Transaction
from appliance.store.files import (
    make_directory,
    remove_unfinished,
    sync_directory,
    write_durably,
)
from appliance.store.migrations import Migration
from appliance.store.writer import Store

__all__ = [
    "Migration",
    "Row",
    "SqlValue",
    "Store",
    "Transaction",
    "make_directory",
    "remove_unfinished",
    "sync_directory",
    "write_durably",
]
