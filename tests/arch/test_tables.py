"""What a guest is told of its machine: ACPI tables, the MP table, CPUID."""

from __future__ import annotations

import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from cerne.arch.x86 import layout
from cerne.arch.x86.acpi.tables import PciIrq, Table, build_tables
from cerne.arch.x86.bootparams import memory_map
from cerne.arch.x86.cpuid import guest_cpuid
from cerne.arch.x86.mptable import write_mp_table
from cerne.errors import InputError
from cerne.host.programs import find_program, install_command
from cerne.kvm.abi import kvm_cpuid_entry2
from cerne.kvm.memory import GuestAddress, GuestMemory
from cerne.units import GIB, MIB


def _tables(most: int = 0) -> list[Table]:
    return build_tables(4, (PciIrq(1, 0, 16),), most)


def test_every_table_sums_to_zero_and_none_overlaps() -> None:
    tables = _tables()
    assert tables[0].signature == b"RSD PTR "
    for table in tables:
        assert sum(table.content) & 0xFF == 0
        assert table.content.startswith(table.signature)
    ends = [table.address + len(table.content) for table in tables]
    assert all(end <= layout.GENERATION_ID for end in ends)
    for one, end in zip(tables, ends, strict=True):
        assert not any(one.address < other.address < end for other in tables)


@pytest.mark.parametrize("most", [0, 8, 255])
@pytest.mark.parametrize("signature", ["DSDT", "FACP", "APIC", "MCFG", "XSDT"])
def test_acpicas_compiler_reads_every_table(tmp_path: Path, signature: str, most: int) -> None:
    text = _disassembled(tmp_path, signature, most)
    if signature == "DSDT":
        again = subprocess.run(
            [str(find_program("iasl")), "-ve", tmp_path / f"{signature}.dsl"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert again.returncode == 0, again.stdout + again.stderr
        assert all(name in text for name in ("PNP0A08", "PNP0C0C", "ACPI0013", "_S5", "_EJ0"))
        assert text.count("ACPI0007") == most


def _disassembled(directory: Path, signature: str, most: int) -> str:
    iasl = find_program("iasl")
    if iasl is None:
        pytest.skip(f"iasl is not installed: {install_command('iasl')}")
    table = next(each for each in _tables(most) if each.signature == signature.encode())
    path = directory / f"{signature}.aml"
    path.write_bytes(table.content)
    read = subprocess.run([iasl, "-d", path], capture_output=True, text=True, check=False)
    assert read.returncode == 0, read.stderr
    text = path.with_suffix(".dsl").read_text()
    assert "Invalid" not in text
    assert "Warning" not in text
    return text


def test_processors_that_may_come_are_described(tmp_path: Path) -> None:
    apic = next(each.content for each in _tables(6) if each.signature == b"APIC")
    entries = [apic[44 + 8 * index : 52 + 8 * index] for index in range(6)]
    assert [(entry[0], entry[2], entry[4]) for entry in entries] == [
        (0, index, 1 if index < 4 else 2) for index in range(6)
    ]
    words = " ".join(_disassembled(tmp_path, "DSDT", 6).split())
    assert "If ((0x05 < CPRS)) { Return (0x0F) } Return (Zero)" in words
    assert "(0x05 < Local0) && " in words
    assert "{ Notify (C005, One) // Device Check }" in words
    assert "CANN = Local0" in words
    assert "If ((Local0 & 0x08)) { \\_SB.CPUS.CSCN () }" in words
    # Without room for others nothing of this is there.
    assert "CPUS" not in _disassembled(tmp_path, "DSDT", 0)


def test_more_processors_than_the_tables_hold_are_refused() -> None:
    with pytest.raises(InputError):
        build_tables(20_000)
    with pytest.raises(InputError):
        build_tables(1, most=2000)
    with (
        GuestMemory.anonymous([(GuestAddress(0), MIB)]) as memory,
        pytest.raises(InputError, match="MP table"),
    ):
        write_mp_table(memory, 60, 0x800F12)


def test_the_memory_map_has_all_memory_and_no_overlap() -> None:
    for size in (32 * MIB, 3 * GIB, 8 * GIB):
        entries = sorted(memory_map(size), key=lambda entry: entry.address)
        ram = sum(entry.size for entry in entries if entry.kind == 1)
        assert ram == size - (layout.HIGH_START - layout.LOW_END)
        for one, other in pairwise(entries):
            assert one.address + one.size <= other.address


def test_the_mp_table_names_every_processor() -> None:
    with GuestMemory.anonymous([(GuestAddress(0), MIB)]) as memory:
        write_mp_table(memory, 3, 0x800F12)
        pointer = memory.read(layout.MP_TABLE, 16)
        assert pointer[:4] == b"_MP_"
        assert sum(pointer) & 0xFF == 0
        table = int.from_bytes(pointer[4:8], "little")
        length = memory.read_u16(table + 4)
        content = memory.read(table, length)
        assert content[:4] == b"PCMP"
        assert sum(content) & 0xFF == 0
        processors = [content[44 + 20 * index : 64 + 20 * index] for index in range(3)]
        assert [(entry[0], entry[1]) for entry in processors] == [(0, 0), (0, 1), (0, 2)]
        routes = memory.read(layout.PCI_ROUTING_TABLE, 32)
        assert (routes[:8], sum(routes) & 0xFF) == (b"$PIR\0\1\x20\0", 0)


def test_every_processor_has_its_own_number() -> None:
    supported = [kvm_cpuid_entry2(function=0x1), kvm_cpuid_entry2(function=0xB, index=0)]
    for index in range(3):
        leaves = guest_cpuid(supported, index, 3)
        features = next(leaf for leaf in leaves if leaf.function == 0x1)
        assert features.ebx >> 24 == index
        assert features.ebx >> 16 & 0xFF == 3
        cores = next(leaf for leaf in leaves if leaf.function == 0xB and leaf.index == 1)
        assert (cores.eax, cores.ebx, cores.edx) == (2, 3, index)
    assert supported[0].ebx == 0
