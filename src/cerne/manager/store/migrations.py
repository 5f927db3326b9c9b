"""What brings a store of each version to the next; a new store goes through all of them.

A function each, numbered by its place in `MIGRATIONS`, run in one transaction
(https://sqlite.org/pragma.html#pragma_user_version). One that has been released is not changed any
more: stores have gone through it.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path

from cerne.manager.store.found import found_layers

_LAYER = re.compile("[0-9a-f]{12}", re.ASCII)

Migration = Callable[[sqlite3.Connection, Path], None]
"""Changes the tables; the path is of the directory that the store is in."""


def _machines_and_events(database: sqlite3.Connection, _home: Path) -> None:
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


def _snapshots(database: sqlite3.Connection, _home: Path) -> None:
    database.execute("ALTER TABLE machines ADD COLUMN parent TEXT NOT NULL DEFAULT ''")
    database.execute("""
        CREATE TABLE snapshots (
            id TEXT PRIMARY KEY,
            name TEXT NOT NULL UNIQUE,
            layer TEXT NOT NULL,
            manifest TEXT NOT NULL,
            created REAL NOT NULL
        ) STRICT""")


def _pools(database: sqlite3.Connection, _home: Path) -> None:
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


def _what_guests_are_told(database: sqlite3.Connection, _home: Path) -> None:
    database.execute("ALTER TABLE machines ADD COLUMN untold TEXT NOT NULL DEFAULT ''")
    database.execute("ALTER TABLE machines ADD COLUMN doing TEXT NOT NULL DEFAULT ''")


def _clients(database: sqlite3.Connection, _home: Path) -> None:
    database.execute("ALTER TABLE machines ADD COLUMN client_pid INTEGER")
    database.execute("ALTER TABLE machines ADD COLUMN client_start_time INTEGER")
    database.execute("ALTER TABLE machines ADD COLUMN client_boot_id TEXT")


def _references(database: sqlite3.Connection, home: Path) -> None:
    """What refers to what becomes rows; a machine that is not complete says so itself."""
    for table in _REFERENCES:
        database.execute(table)
    database.execute("INSERT INTO images SELECT DISTINCT digest FROM machines")
    _copy_machines(database)
    _copy_snapshots(database, home)
    _copy_pools(database)
    _copy_events(database)
    for old, new in (
        ("pool_members", "new_pool_members"),
        ("pools", "new_pools"),
        ("snapshots", "new_snapshots"),
        ("machines", "new_machines"),
        ("events", "new_events"),
    ):
        database.execute(f"DROP TABLE {old}")
        database.execute(f"ALTER TABLE {new} RENAME TO {old}")
    for index in _INDEXES:
        database.execute(index)


_REFERENCES = (
    """
    CREATE TABLE images (
        digest TEXT PRIMARY KEY
    ) STRICT""",
    """
    CREATE TABLE layers (
        id TEXT PRIMARY KEY,
        parent TEXT REFERENCES layers (id)
    ) STRICT""",
    """
    CREATE TABLE new_machines (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        spec TEXT NOT NULL,
        image TEXT NOT NULL,
        digest TEXT NOT NULL REFERENCES images (digest),
        cpus INTEGER NOT NULL,
        memory INTEGER NOT NULL,
        state TEXT NOT NULL,
        incomplete INTEGER NOT NULL DEFAULT 0,
        reason TEXT NOT NULL DEFAULT '',
        engine TEXT NOT NULL DEFAULT '',
        pid INTEGER,
        start_time INTEGER,
        boot_id TEXT,
        created REAL NOT NULL,
        started REAL,
        ready REAL,
        parent TEXT NOT NULL DEFAULT '',
        untold TEXT NOT NULL DEFAULT '',
        doing TEXT NOT NULL DEFAULT '',
        client_pid INTEGER,
        client_start_time INTEGER,
        client_boot_id TEXT,
        generation INTEGER NOT NULL DEFAULT 1
    ) STRICT""",
    """
    CREATE TABLE machine_layers (
        machine TEXT NOT NULL REFERENCES new_machines (id) ON DELETE CASCADE,
        layer TEXT NOT NULL REFERENCES layers (id),
        PRIMARY KEY (machine, layer)
    ) STRICT, WITHOUT ROWID""",
    """
    CREATE TABLE new_snapshots (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        digest TEXT REFERENCES images (digest),
        layer TEXT REFERENCES layers (id),
        manifest TEXT NOT NULL,
        created REAL NOT NULL
    ) STRICT""",
    """
    CREATE TABLE snapshot_layers (
        snapshot TEXT NOT NULL REFERENCES new_snapshots (id) ON DELETE CASCADE,
        layer TEXT NOT NULL REFERENCES layers (id),
        PRIMARY KEY (snapshot, layer)
    ) STRICT, WITHOUT ROWID""",
    """
    CREATE TABLE new_pools (
        name TEXT PRIMARY KEY,
        image TEXT NOT NULL,
        spec TEXT NOT NULL,
        ready INTEGER NOT NULL,
        created REAL NOT NULL
    ) STRICT""",
    """
    CREATE TABLE new_pool_members (
        machine TEXT PRIMARY KEY REFERENCES new_machines (id) ON DELETE CASCADE,
        pool TEXT NOT NULL REFERENCES new_pools (name) ON DELETE CASCADE
    ) STRICT""",
    """
    CREATE TABLE new_events (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        time REAL NOT NULL,
        subject_kind TEXT NOT NULL,
        subject TEXT NOT NULL,
        name TEXT NOT NULL,
        kind TEXT NOT NULL,
        detail TEXT NOT NULL DEFAULT '{}',
        operation TEXT
    ) STRICT""",
    """
    CREATE TABLE operations (
        id TEXT PRIMARY KEY,
        kind TEXT NOT NULL,
        subject_kind TEXT NOT NULL,
        subject TEXT NOT NULL,
        state TEXT NOT NULL,
        stage TEXT NOT NULL DEFAULT '',
        done INTEGER NOT NULL DEFAULT 0,
        total INTEGER,
        result TEXT,
        error TEXT,
        cancel INTEGER NOT NULL DEFAULT 0,
        pid INTEGER,
        start_time INTEGER,
        boot_id TEXT,
        created REAL NOT NULL,
        ended REAL
    ) STRICT""",
)

# Columns that refer to another table: without an index each removal there reads all of this one.
_INDEXES = (
    "CREATE INDEX layers_of_parent ON layers (parent)",
    "CREATE INDEX machines_of_image ON machines (digest)",
    "CREATE INDEX machines_of_layer ON machine_layers (layer)",
    "CREATE INDEX snapshots_of_image ON snapshots (digest)",
    "CREATE INDEX snapshots_of_root_layer ON snapshots (layer)",
    "CREATE INDEX snapshots_of_layer ON snapshot_layers (layer)",
    "CREATE INDEX members_of_pool ON pool_members (pool)",
    "CREATE INDEX pools_of_image ON pools (image)",
    "CREATE INDEX events_of_subject ON events (subject_kind, subject, number)",
    "CREATE INDEX events_by_time ON events (time)",
    "CREATE INDEX operations_of_subject ON operations (subject_kind, subject)",
    # What each command asks for, and is true of few machines.
    "CREATE INDEX machines_by_state ON machines (state, memory)",
    "CREATE INDEX incomplete_machines ON machines (incomplete) WHERE incomplete",
    "CREATE INDEX bound_machines ON machines (client_pid) WHERE client_pid IS NOT NULL",
)


def _copy_machines(database: sqlite3.Connection) -> None:
    kept = (
        "id, name, spec, image, digest, cpus, memory, state, reason, engine, pid, start_time,"
        " boot_id, created, started, ready, parent, untold, doing, client_pid, client_start_time,"
        " client_boot_id"
    )
    database.execute(
        f"INSERT INTO new_machines ({kept}, incomplete)"
        f" SELECT {kept}, parent != '' AND state = 'starting' AND started IS NULL FROM machines"
    )


def _copy_snapshots(database: sqlite3.Connection, home: Path) -> None:
    """The snapshots with their layers; one that is unreadable may be on any layer."""
    snapshots = database.execute(
        "SELECT id, name, layer, manifest, created FROM snapshots"
    ).fetchall()
    layers = home / "layers"
    all_layers = [path.stem for path in layers.glob("*.qcow2")]
    references: list[tuple[str, str]] = []
    digests: dict[str, str | None] = {}
    for snapshot, _, layer, manifest, _ in snapshots:
        try:
            digests[snapshot], needed = _needs(layer, manifest)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            digests[snapshot], needed = None, {*all_layers}
        references += [(snapshot, each) for each in needed]
    found = found_layers(layers, home / "machines", (layer for _, layer in references))
    database.executemany("INSERT INTO layers (id) VALUES (?)", [(id_,) for id_ in found.parents])
    database.executemany("UPDATE layers SET parent = ?2 WHERE id = ?1", list(found.parents.items()))
    database.executemany(
        "INSERT INTO machine_layers SELECT ?1, ?2 FROM new_machines WHERE id = ?1",
        [(machine, layer) for machine, lower in found.machines.items() for layer in lower],
    )
    database.executemany(
        "INSERT OR IGNORE INTO images VALUES (?)",
        {(digest,) for digest in digests.values() if digest is not None},
    )
    database.executemany(
        "INSERT INTO new_snapshots VALUES (?, ?, ?, nullif(?, ''), ?, ?)",
        [
            (row[0], row[1], digests[row[0]], row[2] if row[2] in found.parents else "", *row[3:])
            for row in snapshots
        ],
    )
    database.executemany("INSERT INTO snapshot_layers VALUES (?, ?)", references)


def _needs(layer: str, manifest: str) -> tuple[str, set[str]]:
    """The digest of a snapshot's image, and the IDs of the layers that it is on.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, RecursionError: its row makes no sense.
    """
    read = json.loads(manifest)
    digest, layers = read["digest"], [*read.get("data_layers", {}).values()]
    if layer:
        layers.append(layer)
    # IDs become names of files.
    if not all(isinstance(each, str) and _LAYER.fullmatch(each) for each in layers):
        raise ValueError("an ID of a layer is none")
    if not isinstance(digest, str) or not digest.isascii() or not digest.isprintable():
        raise ValueError("the digest of an image is none")
    return digest, {*layers}


def _copy_pools(database: sqlite3.Connection) -> None:
    # One that is unreadable keeps no image.
    database.execute(
        "INSERT INTO new_pools SELECT name, CASE WHEN json_valid(spec)"
        " THEN coalesce(json_extract(spec, '$.image'), '') ELSE '' END, spec, ready, created"
        " FROM pools"
    )
    database.execute(
        "INSERT INTO new_pool_members SELECT machine, pool FROM pool_members"
        " WHERE machine IN (SELECT id FROM machines) AND pool IN (SELECT name FROM pools)"
    )


def _copy_events(database: sqlite3.Connection) -> None:
    database.execute(
        "INSERT INTO new_events (number, time, subject_kind, subject, name, kind, detail)"
        " SELECT number, time, 'machine', machine, name, kind,"
        " iif(detail = '', '{}', json_object('text', detail)) FROM events"
    )


def _instances(database: sqlite3.Connection, _home: Path) -> None:
    """What leads to a machine that runs."""
    database.execute("ALTER TABLE machines ADD COLUMN instance TEXT NOT NULL DEFAULT ''")


def _running_operations(database: sqlite3.Connection, _home: Path) -> None:
    # Each operation that begins looks for those whose process was killed.
    database.execute("CREATE INDEX running_operations ON operations (id) WHERE ended IS NULL")


def _promises(database: sqlite3.Connection, home: Path) -> None:
    """What is promised to each machine, and how much of the host may be promised."""
    database.execute("""
        CREATE TABLE promises (
            machine TEXT NOT NULL REFERENCES machines (id) ON DELETE CASCADE,
            resource TEXT NOT NULL,
            amount INTEGER NOT NULL,
            PRIMARY KEY (machine, resource)
        ) STRICT, WITHOUT ROWID""")
    database.execute("CREATE INDEX promises_of_resource ON promises (resource, amount)")
    database.execute("""
        CREATE TABLE overcommit (
            resource TEXT PRIMARY KEY,
            ratio REAL NOT NULL
        ) STRICT, WITHOUT ROWID""")
    database.execute(
        "INSERT INTO promises SELECT id, 'memory', memory FROM machines"
        " WHERE memory > 0 AND state IN ('starting', 'running', 'paused', 'saving', 'stopping')"
    )
    for (machine,) in database.execute("SELECT id FROM machines").fetchall():
        sizes = [_virtual_size(disk) for disk in (home / "machines" / machine).glob("*.qcow2")]
        if any(sizes):
            database.execute("INSERT INTO promises VALUES (?, 'disk', ?)", (machine, sum(sizes)))


def _virtual_size(disk: Path) -> int:
    """The size that a disk has for its guest (QEMU, docs/interop/qcow2.rst); 0 if unreadable."""
    try:
        with disk.open("rb") as file:
            header = file.read(32)
    except OSError:
        return 0
    size = int.from_bytes(header[24:32], "big")
    return size if header[:4] == b"QFI\xfb" and size < 1 << 62 else 0


def _networks(database: sqlite3.Connection, _home: Path) -> None:
    """Networks with names, and the cards of machines on them."""
    database.execute("""
        CREATE TABLE networks (
            id TEXT PRIMARY KEY,
            name TEXT NOT NULL UNIQUE,
            spec TEXT NOT NULL,
            ipv4 TEXT,
            ipv6 TEXT,
            pid INTEGER,
            start_time INTEGER,
            boot_id TEXT,
            created REAL NOT NULL
        ) STRICT""")
    database.execute("""
        CREATE TABLE cards (
            machine TEXT NOT NULL REFERENCES machines (id) ON DELETE CASCADE,
            number INTEGER NOT NULL,
            network TEXT NOT NULL REFERENCES networks (id),
            mac TEXT NOT NULL,
            ipv4 TEXT,
            ipv6 TEXT,
            PRIMARY KEY (machine, number),
            UNIQUE (network, mac),
            UNIQUE (network, ipv4),
            UNIQUE (network, ipv6)
        ) STRICT, WITHOUT ROWID""")
    database.execute("""
        CREATE TABLE card_ports (
            machine TEXT NOT NULL,
            number INTEGER NOT NULL,
            protocol TEXT NOT NULL,
            address TEXT NOT NULL,
            port INTEGER NOT NULL,
            PRIMARY KEY (protocol, port, address),
            FOREIGN KEY (machine, number) REFERENCES cards (machine, number) ON DELETE CASCADE
        ) STRICT, WITHOUT ROWID""")
    database.execute("CREATE INDEX ports_of_card ON card_ports (machine, number)")


MIGRATIONS: tuple[Migration, ...] = (
    _machines_and_events,
    _snapshots,
    _pools,
    _what_guests_are_told,
    _clients,
    _references,
    _instances,
    _running_operations,
    _promises,
    _networks,
)

VERSION = len(MIGRATIONS)
"""The version of the store that this code reads and writes."""


def migrate(database: sqlite3.Connection, version: int, home: Path) -> None:
    """Bring a store of an older version to `VERSION`, in the transaction that is open.

    The disks of its machines are in the directory `home`.
    """
    for migration in MIGRATIONS[version:]:
        migration(database, home)
    database.execute(f"PRAGMA user_version = {VERSION}")
