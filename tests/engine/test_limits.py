"""The limits of a machine's devices, as each engine asks its process for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.engine.test_command_line import PLAN
from tests.engine.test_qmp import Message, Serve

from cerne.engine.native import launching as native
from cerne.engine.plan import DiskPlan
from cerne.engine.qemu.limits import limit_disks
from cerne.engine.qmp import QmpClient
from cerne.errors import InputError
from cerne.spec.resources import DiskResources, Resources
from cerne.units import MIB


def test_all_disks_of_qemu_are_in_one_group_and_an_empty_drive_is_in_none(serve: Serve) -> None:
    limited: list[object] = []

    def script(command: Message) -> list[Message]:
        if command["execute"] == "query-block":
            disks = [{"qdev": f"/machine/peripheral/vd{at}", "inserted": {}} for at in range(2)]
            return [{"return": [*disks, {"qdev": "floppy"}, {"inserted": {}}]}]
        if command["execute"] == "block_set_io_throttle":
            limited.append(command["arguments"])
        return [{"return": {}}]

    with QmpClient(serve(script).path) as qmp:
        limit_disks(qmp, DiskResources(rate=MIB, iops=100))
        limit_disks(qmp, DiskResources())
    one_way = {"bps_rd": 0, "bps_wr": 0, "iops_rd": 0, "iops_wr": 0}
    assert limited == [
        {"id": f"/machine/peripheral/vd{at}", "group": "cerne", "bps": bps, "iops": iops, **one_way}
        for bps, iops in ((MIB, 100), (0, 0))
        for at in range(2)
    ]


def test_a_disk_that_another_process_serves_has_no_limit_on_native(tmp_path: Path) -> None:
    disks = (DiskPlan(tmp_path / "disk.vmdk", "vmdk"),)
    plan = replace(PLAN, disks=disks)
    native._require_limits(plan)
    limited = replace(plan, resources=Resources(disk=DiskResources(iops=10)))
    with pytest.raises(InputError, match="served by another process, which has no limit") as said:
        native._require_limits(limited)
    assert "qemu-img convert" in said.value.hint
    native._require_limits(replace(limited, disks=(DiskPlan(tmp_path / "disk", "raw"),)))
