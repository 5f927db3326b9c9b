"""Which machines, snapshots and pools are made of which image."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator

from cerne.manager.store.database import Repository
from cerne.manager.store.rows import HELPERS, ImageUsers

_HELPS = f"parent IN ({', '.join(repr(each) for each in HELPERS)})"


class Images(Repository):
    """The images that something is made of. What they are is in files (`cerne.images`)."""

    @contextlib.contextmanager
    def image_users(self, reference: str, digest: str) -> Iterator[ImageUsers]:
        """What is made of the image of this name and digest.

        In the block nothing is added that is. After it the image is forgotten, unless something is
        made of it still.
        """
        with self._database.transaction() as connection:
            yield ImageUsers(
                machines=_names(connection, f"machines WHERE NOT {_HELPS} AND digest = ?", digest),
                helpers=_parents(connection, digest),
                # One whose manifest could not be read may be of any image.
                snapshots=_names(connection, "snapshots WHERE ifnull(digest = ?, TRUE)", digest),
                pools=_names(connection, "pools WHERE image = ?", reference),
            )
            connection.execute(
                "DELETE FROM images WHERE digest = ?1"
                " AND NOT EXISTS (SELECT 1 FROM machines WHERE digest = ?1)"
                " AND NOT EXISTS (SELECT 1 FROM snapshots WHERE digest = ?1)",
                (digest,),
            )


def refer_to_image(connection: sqlite3.Connection, digest: str) -> None:
    """Know an image in the transaction that is open, which adds what is made of it."""
    connection.execute("INSERT OR IGNORE INTO images (digest) VALUES (?)", (digest,))


def _names(connection: sqlite3.Connection, what: str, value: str) -> tuple[str, ...]:
    rows = connection.execute(f"SELECT name FROM {what} ORDER BY name", (value,))
    return tuple(row["name"] for row in rows)


def _parents(connection: sqlite3.Connection, digest: str) -> tuple[str, ...]:
    what = f"SELECT DISTINCT parent FROM machines WHERE {_HELPS} AND digest = ? ORDER BY parent"
    return tuple(row["parent"] for row in connection.execute(what, (digest,)))
