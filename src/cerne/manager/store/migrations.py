"""What brings a store of each version to the next; a new store goes through all of them.

A function each, numbered by its place in `MIGRATIONS`, run in one transaction
(https://sqlite.org/pragma.html#pragma_user_version). One that has been released is not changed any
more: stores have gone through it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

Migration = Callable[[sqlite3.Connection], None]


def _machines_and_events(database: sqlite3.Connection) -> None:
    database.execute("""
        CREATE TABLE machines (
            id TEXT PRIMARY KEY,
            name TEXT NOT NULL UNIQUE,
            spec TEXT NOT NULL,
            image TEXT NOT NULL,
            digest TEXT NOT NULL,
            cpus INTEGER NOT NULL,
            memory INTEGER NOT NULL,
            state TEXT NOT NULL,
            reason TEXT NOT NULL DEFAULT '',
            engine TEXT NOT NULL DEFAULT '',
            pid INTEGER,
            start_time INTEGER,
            boot_id TEXT,
            created REAL NOT NULL,
            started REAL,
            ready REAL
        ) STRICT""")
    database.execute("""
        CREATE TABLE events (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            time REAL NOT NULL,
            machine TEXT NOT NULL,
            name TEXT NOT NULL,
            kind TEXT NOT NULL,
            detail TEXT NOT NULL DEFAULT ''
        ) STRICT""")
    database.execute("CREATE INDEX events_of_machine ON events (machine)")


def _snapshots(database: sqlite3.Connection) -> None:
    database.execute("ALTER TABLE machines ADD COLUMN parent TEXT NOT NULL DEFAULT ''")
    database.execute("""
        CREATE TABLE snapshots (
            id TEXT PRIMARY KEY,
            name TEXT NOT NULL UNIQUE,
            layer TEXT NOT NULL,
            manifest TEXT NOT NULL,
            created REAL NOT NULL
        ) STRICT""")


def _pools(database: sqlite3.Connection) -> None:
    database.execute("""
        CREATE TABLE pools (
            name TEXT PRIMARY KEY,
            spec TEXT NOT NULL,
            ready INTEGER NOT NULL,
            created REAL NOT NULL
        ) STRICT""")
    database.execute("""
        CREATE TABLE pool_members (
            machine TEXT PRIMARY KEY,
            pool TEXT NOT NULL
        ) STRICT""")


def _what_guests_are_told(database: sqlite3.Connection) -> None:
    database.execute("ALTER TABLE machines ADD COLUMN untold TEXT NOT NULL DEFAULT ''")
    database.execute("ALTER TABLE machines ADD COLUMN doing TEXT NOT NULL DEFAULT ''")


def _clients(database: sqlite3.Connection) -> None:
    database.execute("ALTER TABLE machines ADD COLUMN client_pid INTEGER")
    database.execute("ALTER TABLE machines ADD COLUMN client_start_time INTEGER")
    database.execute("ALTER TABLE machines ADD COLUMN client_boot_id TEXT")


MIGRATIONS: tuple[Migration, ...] = (
    _machines_and_events,
    _snapshots,
    _pools,
    _what_guests_are_told,
    _clients,
)

VERSION = len(MIGRATIONS)
"""The version of the store that this code reads and writes."""


def migrate(database: sqlite3.Connection, version: int) -> None:
    """Bring a store of an older version to `VERSION`, in the transaction that is open."""
    for migration in MIGRATIONS[version:]:
        migration(database)
    database.execute(f"PRAGMA user_version = {VERSION}")
