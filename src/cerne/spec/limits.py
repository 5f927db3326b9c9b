"""The limits of a machine's values, for the models and for the code that uses them."""

from __future__ import annotations

from cerne.units import GIB, MIB

SMALLEST_MEMORY = 32 * MIB
HUGEPAGE = 2 * MIB
"""Bytes of the hugepages that hold guests' memory."""
LARGEST_MEMORY = 64 * 1024 * GIB
MOST_CPUS = 255
LAST_NODE = 1023
"""The largest number of a NUMA node of Linux."""
SMALLEST_DISK = MIB
LARGEST_DISK = 64 * 1024 * GIB
MOST_LABELS = 256
LONGEST_LABEL = 4096
SLOTS = 8
"""How many disks and network cards can be attached to a machine while it runs."""
LEAST_WEIGHT, DEFAULT_WEIGHT, MOST_WEIGHT = 1, 100, 10_000
"""The values of cgroup v2's cpu.weight and io.weight."""
LEAST_PROCESSES, MOST_PROCESSES = 64, 1 << 22
"""The limits for a machine's pids.max: its own processes and threads need some."""
SMALLEST_RATE = 1024
"""Bytes a second: a slower disk or network card is of no use to a guest."""
ROOT_SERIAL = "root"
"""The serial of a machine's root disk."""
SERIAL = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,19}$"
"""The allowed serials of disks (virtio-blk has room for 20 bytes)."""
