"""The signatures of files: the formats of QEMU's block drivers, and of archives.

Cerne must not use a disk of an unknown format as a raw one: the guest would overwrite its headers.
The magics are those that QEMU 7.2 probes for (block/*.c), and those of common archives (magic(5)).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

SECTOR = 512
"""Bytes at each end of a file that contain all signatures."""


@dataclass(frozen=True, slots=True)
class Signature:
    """The bytes that identify a format."""

    format: str
    """The name that qemu-img uses, or the name of the archive's program."""
    words: str
    """A description of such a file for people."""
    magic: bytes
    offset: int = 0
    """Bytes from the file's beginning; from its end where negative."""
    unpack: str = ""
    """The command that unpacks an archive, without the path; empty for a disk."""


SIGNATURES = (
    Signature("qcow", "a disk in the old format qcow", b"QFI\xfb\0\0\0\1"),
    Signature("qcow2", "a qcow2 disk", b"QFI\xfb"),
    Signature("qed", "a QED disk", b"QED\0"),
    Signature("vmdk", "a VMDK disk", b"KDMV"),
    Signature("vmdk", "a VMDK disk of ESX", b"COWD"),
    Signature("vmdk", "a VMDK disk of ESX (SESparse)", b"\xbe\xba\xfe\xca\0\0\0\0"),
    Signature("vmdk", "a VMDK descriptor", b"# Disk DescriptorFile"),
    Signature("vdi", "a VDI disk", b"\x7f\x10\xda\xbe", 64),
    Signature("vhdx", "a VHDX disk", b"vhdxfile"),
    Signature("vpc", "a VHD disk", b"conectix"),
    Signature("vpc", "a VHD disk", b"conectix", -512),
    # Virtual PC before 2004 wrote a footer that is a byte shorter.
    Signature("vpc", "a VHD disk", b"conectix", -511),
    Signature("parallels", "a Parallels disk", b"WithoutFreeSpace"),
    Signature("parallels", "a Parallels disk", b"WithouFreSpacExt"),
    Signature("bochs", "a Bochs disk", b"Bochs Virtual HD Image"),
    Signature("cloop", "a cloop disk", b"#!/bin/sh\n#V2.0 Format\n"),
    Signature("dmg", "a DMG disk", b"koly", -512),
    Signature("luks", "an encrypted disk (LUKS)", b"LUKS\xba\xbe"),
    Signature("gzip", "a gzip archive", b"\x1f\x8b", 0, "gunzip --keep"),
    Signature("xz", "an xz archive", b"\xfd7zXZ\0", 0, "unxz --keep"),
    Signature("zstd", "a zstd archive", b"\x28\xb5\x2f\xfd", 0, "unzstd"),
    Signature("bzip2", "a bzip2 archive", b"BZh", 0, "bunzip2 --keep"),
    Signature("lz4", "an lz4 archive", b"\x04\x22\x4d\x18", 0, "unlz4"),
    Signature("zip", "a zip archive", b"PK\3\4", 0, "unzip"),
    Signature("7z", "a 7z archive", b"7z\xbc\xaf\x27\x1c", 0, "7z x"),
    Signature("rar", "a RAR archive", b"Rar!\x1a\x07", 0, "unrar x"),
    Signature("tar", "a tar archive (OVA files are tar archives)", b"ustar", 257, "tar -xf"),
)

# QEMU takes these for a descriptor too, after any comments (block/vmdk.c).
_DESCRIPTOR = Signature("vmdk", "a VMDK descriptor", b"version=")
_DESCRIPTOR_TEXT = re.compile(rb"(?:#[^\n]*\n| *\r?\n)*version=[123]\r?\n")


def signature_of(head: bytes, tail: bytes) -> Signature | None:
    """The signature of a file that begins with `head` and ends with `tail`; None for a raw disk.

    Each is the file's first or last `SECTOR` bytes, or the whole file if it is shorter.
    """
    for signature in SIGNATURES:
        if _has(signature, head, tail):
            return signature
    return _DESCRIPTOR if _DESCRIPTOR_TEXT.match(head) else None


def _has(signature: Signature, head: bytes, tail: bytes) -> bool:
    if signature.offset >= 0:
        return head.startswith(signature.magic, signature.offset)
    at = len(tail) + signature.offset
    return at >= 0 and tail.startswith(signature.magic, at)
