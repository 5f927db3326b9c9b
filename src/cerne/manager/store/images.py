"""Which machines, snapshots and pools are made of which image."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from cerne.manager.store.database import Repository
from cerne.manager.store.rows import ImageUsers


class Images(Repository):
    """What is known of images in the store: their files are in `cerne.images`."""

    @contextlib.contextmanager
    def image_users(self, digest: str) -> Iterator[ImageUsers]:
        """What is made of an image; in this block nothing is added that is."""
        with self._database.transaction() as connection:
            machines = connection.execute(
                "SELECT name FROM machines WHERE digest = ? ORDER BY name", (digest,)
            )
            # A manifest that cannot be read may be of any image.
            snapshots = connection.execute(
                "SELECT name FROM snapshots WHERE CASE WHEN json_valid(manifest)"
                " THEN json_extract(manifest, '$.digest') = ? ELSE 1 END ORDER BY name",
                (digest,),
            )
            pools = connection.execute("SELECT name, spec FROM pools ORDER BY name")
            yield ImageUsers(
                machines=tuple(row["name"] for row in machines),
                snapshots=tuple(row["name"] for row in snapshots),
                pools={row["name"]: row["spec"] for row in pools},
            )
