"""What is known of machines across commands: SQLite in WAL mode, one transaction a change.

The store says what was asked for and what was last seen. Whether a machine runs is told by its
process alone (`ProcessIdentity`), never by a row.
"""

from cerne.manager.store.changes import Changes
from cerne.manager.store.events import working_on
from cerne.manager.store.machines import name_in_use
from cerne.manager.store.networks import unknown_network
from cerne.manager.store.rows import (
    HELPERS,
    IMAGE,
    TEMPLATE,
    CardRow,
    Event,
    ImageUsers,
    NetworkRow,
    OperationRow,
    OperationState,
    PoolRow,
    Record,
    SnapshotRow,
    State,
    Subject,
)
from cerne.manager.store.snapshots import snapshot_name_in_use
from cerne.manager.store.store import Store

__all__ = [
    "HELPERS",
    "IMAGE",
    "TEMPLATE",
    "CardRow",
    "Changes",
    "Event",
    "ImageUsers",
    "NetworkRow",
    "OperationRow",
    "OperationState",
    "PoolRow",
    "Record",
    "SnapshotRow",
    "State",
    "Store",
    "Subject",
    "name_in_use",
    "snapshot_name_in_use",
    "unknown_network",
    "working_on",
]
