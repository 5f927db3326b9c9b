"""Limits of a QEMU machine's disks: one throttle group of all of them (docs/throttle.txt of QEMU).

A bucket is full at first and holds what its rate gives in a tenth of a second, as in our own VMM
(`cerne.devices.limiter`). QEMU has no such limit for network cards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cerne.engine.qmp import QmpClient
from cerne.engine.qmp.answers import mappings

if TYPE_CHECKING:
    from cerne.spec.resources import DiskResources

_GROUP = "cerne"
_NO_LIMIT = 0


def limit_disks(qmp: QmpClient, disk: DiskResources) -> None:
    """Limit all disks together, or remove the limits.

    Raises:
        EngineError: QEMU refuses it.
    """
    blocks = qmp.execute("query-block")
    limits = {"bps": disk.rate or _NO_LIMIT, "iops": disk.iops or _NO_LIMIT}
    # Limits of only reads or writes are not set.
    for one_way in ("bps_rd", "bps_wr", "iops_rd", "iops_wr"):
        limits[one_way] = _NO_LIMIT
    for block in mappings(blocks):
        if "inserted" in block and "qdev" in block:
            target = {"id": str(block["qdev"]), "group": _GROUP}
            qmp.execute("block_set_io_throttle", {**target, **limits})
