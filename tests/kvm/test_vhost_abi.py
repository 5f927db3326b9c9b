"""The declared interface to vhost, against golden values and this machine's kernel headers."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from cerne.kvm import vhost_abi
from cerne.kvm.vhost_abi import VhostIoctl

_HEADER = Path("/usr/include/linux/vhost.h")


def _layout() -> dict[str, tuple[int, int]]:
    """Each field's offset and size here, by its path in C."""
    found = {}
    for name, kind in vars(vhost_abi).items():
        if not name.startswith("vhost_") or not issubclass(kind, ctypes.Structure):
            continue
        found[name] = (0, ctypes.sizeof(kind))
        for field, field_kind, *_ in kind._fields_:
            found[f"{name}.{field}"] = (getattr(kind, field).offset, ctypes.sizeof(field_kind))
    return found


def _program() -> str:
    lines = ["#include <linux/vhost.h>", "#include <stddef.h>", "#include <stdio.h>"]
    lines.append("int main(void) {")
    lines += [f'printf("{each.name} %lu 0\\n", (unsigned long){each.name});' for each in VhostIoctl]
    for path in _layout():
        structure, _, field = path.partition(".")
        where = f"offsetof(struct {structure}, {field})" if field else "(size_t)0"
        what = f"((struct {structure} *)0)->{field}" if field else f"struct {structure}"
        lines.append(f'printf("{path} %zu %zu\\n", {where}, sizeof({what}));')
    return "\n".join([*lines, "return 0;", "}"])


def test_it_is_that_of_the_headers(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None or not _HEADER.exists():
        pytest.skip("there is no C compiler with the kernel's headers")
    source = tmp_path / "abi.c"
    source.write_text(_program())
    subprocess.run([compiler, "-o", tmp_path / "abi", source], check=True)
    ran = subprocess.run([tmp_path / "abi"], check=True, capture_output=True, text=True)
    said = {}
    for line in ran.stdout.splitlines():
        name, first, second = line.split()
        said[name] = (int(first), int(second))
    assert said == {each.name: (int(each), 0) for each in VhostIoctl} | _layout()
    assert len(said) == 11 + 5 + 16


@pytest.mark.parametrize(
    ("ioctl", "number"),
    [
        (VhostIoctl.VHOST_GET_FEATURES, 0x8008AF00),
        (VhostIoctl.VHOST_SET_FEATURES, 0x4008AF00),
        (VhostIoctl.VHOST_SET_OWNER, 0xAF01),
        (VhostIoctl.VHOST_SET_MEM_TABLE, 0x4008AF03),
        (VhostIoctl.VHOST_SET_VRING_NUM, 0x4008AF10),
        (VhostIoctl.VHOST_SET_VRING_ADDR, 0x4028AF11),
        (VhostIoctl.VHOST_SET_VRING_BASE, 0x4008AF12),
        (VhostIoctl.VHOST_GET_VRING_BASE, 0xC008AF12),
        (VhostIoctl.VHOST_SET_VRING_KICK, 0x4008AF20),
        (VhostIoctl.VHOST_SET_VRING_CALL, 0x4008AF21),
        (VhostIoctl.VHOST_NET_SET_BACKEND, 0x4008AF30),
    ],
)
def test_golden_ioctls(ioctl: VhostIoctl, number: int) -> None:
    assert ioctl == number
