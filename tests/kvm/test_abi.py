"""The declared interface, against golden values and against this machine's kernel headers."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

import pytest

from cerne.kvm import abi, vcpu
from cerne.kvm.abi import Ioctl

# What the headers of Linux 6.1 do not have yet.
NEWER = {
    "KVM_SET_USER_MEMORY_REGION2",
    "KVM_CAP_USER_MEMORY2",
    "KVM_CAP_GUEST_MEMFD",
    "KVM_EXIT_MEMORY_FAULT",
}
_NEWER_FIELDS = {
    "kvm_userspace_memory_region2": "KVM_SET_USER_MEMORY_REGION2",
    "kvm_run.memory_fault": "KVM_EXIT_MEMORY_FAULT",
}
# Padding that C leaves to the compiler.
_IMPLIED = {"kvm_run.fail_entry.pad", "kvm_run.mmio.pad"}
# Structures that C has inside of another only.
_NESTED = ("kvm_run_", "kvm_vcpu_events_", "kvm_irqchip_chip", "kvm_irq_routing_entry_u")

_PREFIXES: dict[type[IntEnum], str] = {
    abi.Ioctl: "",
    abi.Capability: "KVM_CAP_",
    abi.ExitReason: "KVM_EXIT_",
    abi.MpState: "KVM_MP_STATE_",
    abi.Irqchip: "KVM_IRQCHIP_",
    abi.RoutingType: "KVM_IRQ_ROUTING_",
    abi.InternalError: "KVM_INTERNAL_ERROR_",
}
_FLAG_PREFIXES = {
    abi.MemoryFlag: "KVM_MEM_",
    abi.IrqfdFlag: "KVM_IRQFD_FLAG_",
    abi.IoeventfdFlag: "KVM_IOEVENTFD_FLAG_",
    abi.ClockFlag: "KVM_CLOCK_",
    abi.CpuidFlag: "KVM_CPUID_FLAG_",
    abi.VcpuEventFlag: "KVM_VCPUEVENT_VALID_",
    abi.GuestDebug: "KVM_GUESTDBG_",
    abi.SyncRegs: "KVM_SYNC_X86_",
}

Layout = type[ctypes.Structure] | type[ctypes.Union]


def structures() -> dict[str, Layout]:
    return {
        name: kind
        for name, kind in vars(abi).items()
        if name.startswith("kvm_")
        and isinstance(kind, type)
        and issubclass(kind, ctypes.Structure | ctypes.Union)
        and not name.startswith(_NESTED)
    }


def fields(kind: Layout, path: str, start: int = 0) -> Iterator[tuple[str, int, int]]:
    """Each field's path in C, with its offset and size here."""
    for name, field_kind in ((field[0], field[1]) for field in kind._fields_):
        offset = start + getattr(kind, name).offset
        # The union of kvm_run has no name in C.
        nameless = kind is abi.kvm_run and name == "exit"
        field_path = path if nameless else f"{path}.{name}"
        if field_path in _IMPLIED:
            continue
        if not nameless:
            yield field_path, offset, ctypes.sizeof(field_kind)
        if issubclass(field_kind, ctypes.Structure | ctypes.Union):
            yield from fields(field_kind, field_path, offset)


def constants() -> dict[str, int]:
    named = {
        f"{prefix}{member.name}": int(member)
        for kind, prefix in _PREFIXES.items()
        for member in kind
    }
    flags = {
        f"{prefix}{flag.name}": int(flag)
        for kind, prefix in _FLAG_PREFIXES.items()
        for flag in kind
    }
    plain = {
        name: value
        for name, value in vars(abi).items()
        if name.startswith("KVM_") and isinstance(value, int)
    }
    return named | flags | plain


def layout() -> dict[str, tuple[int, int]]:
    found = {name: (0, ctypes.sizeof(kind)) for name, kind in structures().items()}
    for name, kind in structures().items():
        found.update((path, (offset, size)) for path, offset, size in fields(kind, name))
    return found


def program() -> str:
    lines = ["#include <linux/kvm.h>", "#include <stddef.h>", "#include <stdio.h>"]
    lines.append("int main(void) {")
    for name in constants():
        lines += [f"#ifdef {name}", f'printf("{name} %llu\\n", (unsigned long long){name});']
        lines.append("#endif")
    for path in layout():
        structure, _, field = path.partition(".")
        guard = next((flag for part, flag in _NEWER_FIELDS.items() if path.startswith(part)), None)
        lines.append(f"#ifdef {guard}" if guard else "#if 1")
        where = f"offsetof(struct {structure}, {field})" if field else "(size_t)0"
        what = f"((struct {structure} *)0)->{field}" if field else f"struct {structure}"
        lines += [f'printf("{path} %zu %zu\\n", {where}, sizeof({what}));', "#endif"]
    return "\n".join([*lines, "return 0;", "}"])


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, ...]]:
    """What the kernel headers of this machine say of every name that is declared."""
    compiler = shutil.which("cc")
    if compiler is None or not Path("/usr/include/linux/kvm.h").exists():
        pytest.skip("there is no C compiler with the kernel's headers")
    directory = tmp_path_factory.mktemp("abi")
    source = directory / "abi.c"
    source.write_text(program())
    subprocess.run([compiler, "-o", directory / "abi", source], check=True)
    ran = subprocess.run([directory / "abi"], check=True, capture_output=True, text=True)
    words = [line.split() for line in ran.stdout.splitlines()]
    return {name: tuple(map(int, numbers)) for name, *numbers in words}


def test_structures_are_laid_out_as_the_headers_have_them(
    headers: dict[str, tuple[int, ...]],
) -> None:
    ours = layout()
    assert len(ours) > 300
    newer = {path for path in ours if path.startswith(tuple(_NEWER_FIELDS))}
    assert {path: headers[path] for path in ours if path in headers} == {
        path: place for path, place in ours.items() if path in headers
    }
    assert set(ours) - set(headers) <= newer


def test_numbers_are_those_of_the_headers(headers: dict[str, tuple[int, ...]]) -> None:
    ours = constants()
    assert {name: headers[name] for name in ours if name in headers} == {
        name: (value,) for name, value in ours.items() if name in headers
    }
    assert set(ours) - set(headers) <= NEWER


def test_no_two_ioctls_have_one_number() -> None:
    assert len(Ioctl.__members__) == len(list(Ioctl))


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        (abi.kvm_regs, 144),
        (abi.kvm_sregs, 312),
        (abi.kvm_run, 2352),
        (abi.kvm_vcpu_events, 64),
        (abi.kvm_irqchip, 520),
        (abi.kvm_pit_state2, 112),
        (abi.kvm_clock_data, 48),
        (abi.kvm_userspace_memory_region, 32),
        (abi.kvm_userspace_memory_region2, 160),
    ],
)
def test_golden_sizes(kind: Layout, size: int) -> None:
    assert ctypes.sizeof(kind) == size


@pytest.mark.parametrize(
    ("ioctl", "number"),
    [
        (Ioctl.KVM_GET_API_VERSION, 0xAE00),
        (Ioctl.KVM_CREATE_VM, 0xAE01),
        (Ioctl.KVM_SET_USER_MEMORY_REGION, 0x4020AE46),
        (Ioctl.KVM_SET_USER_MEMORY_REGION2, 0x40A0AE49),
        (Ioctl.KVM_RUN, 0xAE80),
        (Ioctl.KVM_GET_REGS, 0x8090AE81),
        (Ioctl.KVM_SET_REGS, 0x4090AE82),
        (Ioctl.KVM_GET_SUPPORTED_CPUID, 0xC008AE05),
    ],
)
def test_golden_ioctls(ioctl: Ioctl, number: int) -> None:
    assert ioctl == number


def test_the_hot_path_reads_the_fields_that_are_declared() -> None:
    io = abi.kvm_run_io(direction=1, size=2, port=0x3F8, count=4, data_offset=5)
    assert vcpu._IO.unpack(bytes(io)) == (1, 2, 0x3F8, 4, 5)
    mmio = abi.kvm_run_mmio(phys_addr=1 << 40, len=8, is_write=1)
    assert vcpu._MMIO.unpack_from(bytes(mmio)) == (1 << 40, 8, 1)
