"""An image's parts as JSON, whose digest names the image. Files are named by their digests."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass

from cerne.errors import DamagedError
from cerne.images.image import SYSTEMD

_VERSION = 1
_DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Manifest:
    """The parts of an image. Digests are SHA-256 in hexadecimal."""

    kernel: str | None
    initrd: str | None
    command_line: str
    disk: str | None
    disk_format: str
    disk_size: int
    """Bytes, as the guest sees them."""
    agent: bool
    least_memory: int = 0
    """The least memory with which it boots, in bytes; 0 if that is unknown."""
    init: str = ""
    """``systemd`` if that is its first process; empty if it is the agent, or unknown."""

    def files(self) -> set[str]:
        """The digests of all its files."""
        return {digest for digest in (self.kernel, self.initrd, self.disk) if digest}

    def encoded(self) -> bytes:
        """The manifest as JSON; the same parts make the same bytes."""
        fields = {"version": _VERSION, **asdict(self)}
        if not self.least_memory:
            # Manifests from before this field existed keep their digest.
            del fields["least_memory"]
        if not self.init:
            del fields["init"]
        return json.dumps(fields, sort_keys=True, indent=1).encode()

    def digest(self) -> str:
        """Its SHA-256 digest, in hexadecimal."""
        return hashlib.sha256(self.encoded()).hexdigest()


def decoded(text: bytes, origin: str) -> Manifest:
    """Decode a manifest from JSON.

    Raises:
        DamagedError: it is not a manifest, or has another version.
    """
    try:
        fields: dict[str, object] = dict(json.loads(text))
        version = fields.pop("version")
        if version == _VERSION:
            return _checked(fields)
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{origin} is not an image manifest: {error}") from error
    raise DamagedError(
        f"{origin} has version {version}, and this Cerne reads version {_VERSION}",
        hint="use the Cerne that made it",
    )


def _checked(fields: dict[str, object]) -> Manifest:
    kernel, initrd, disk = (_digest(fields.pop(part)) for part in ("kernel", "initrd", "disk"))
    command_line, disk_format = fields.pop("command_line"), fields.pop("disk_format")
    disk_size, agent = fields.pop("disk_size"), fields.pop("agent")
    least_memory = fields.pop("least_memory", 0)
    init = fields.pop("init", "")
    if fields:
        raise ValueError(f"{', '.join(fields)} is unknown")
    if not isinstance(command_line, str) or disk_format not in ("raw", "qcow2"):
        raise ValueError("its command line or its disk's format is not valid")
    if not isinstance(disk_size, int) or not isinstance(agent, bool) or disk_size < 0:
        raise ValueError("its disk's size or its agent is not valid")
    if not isinstance(least_memory, int) or least_memory < 0:
        raise ValueError("its least memory is not valid")
    if init not in ("", SYSTEMD):
        raise ValueError("its first process is unknown")
    return Manifest(
        kernel,
        initrd,
        command_line,
        disk,
        str(disk_format),
        disk_size,
        agent,
        least_memory,
        str(init),
    )


def _digest(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise ValueError(f"{value!r} is not a digest")
    return value
