"""/dev/vhost-net: the kernel serves the queues of a network card by itself (drivers/vhost).

Methods are named after the ioctls and add no policy. A refusal raises `KvmError`. The kernel works
in the memory of the process that called `set_owner`.
"""

from __future__ import annotations

from ctypes import c_uint64

from cerne.kvm._address import address_of
from cerne.kvm._descriptor import Descriptor
from cerne.kvm._ioctl import ioctl
from cerne.kvm.memory import GuestMemory
from cerne.kvm.vhost_abi import (
    VhostIoctl,
    vhost_memory,
    vhost_memory_region,
    vhost_vring_addr,
    vhost_vring_file,
    vhost_vring_state,
)

_NOTHING = -1


class VhostNet(Descriptor):
    """An open /dev/vhost-net, which it takes over. Queue 0 receives, queue 1 transmits."""

    def set_owner(self) -> None:
        """Let it work in this process's memory from now on."""
        ioctl(self._descriptor, VhostIoctl.VHOST_SET_OWNER)

    def get_features(self) -> int:
        """The virtio features that it has, of rings and of frames' headers."""
        features = c_uint64()
        ioctl(self._descriptor, VhostIoctl.VHOST_GET_FEATURES, features)
        return features.value

    def set_features(self, features: int) -> None:
        """The features that the driver negotiated, of those; no queue may be served."""
        ioctl(self._descriptor, VhostIoctl.VHOST_SET_FEATURES, c_uint64(features))

    def set_mem_table(self, memory: GuestMemory) -> None:
        """Set the mapping of guest addresses; the memory must exist while a queue is served."""
        regions = [
            vhost_memory_region(
                guest_phys_addr=region.start,
                memory_size=region.size,
                # The memory owns the mapping, and the caller keeps the memory.
                userspace_addr=address_of(region.view),
            )
            for region in memory.regions
        ]
        table = bytearray(b"".join(map(bytes, [vhost_memory(nregions=len(regions)), *regions])))
        ioctl(self._descriptor, VhostIoctl.VHOST_SET_MEM_TABLE, table)

    def set_vring_num(self, index: int, size: int) -> None:
        """Set the number of entries of a queue."""
        state = vhost_vring_state(index=index, num=size)
        ioctl(self._descriptor, VhostIoctl.VHOST_SET_VRING_NUM, state)

    def set_vring_base(self, index: int, next_available: int) -> None:
        """Set the index in the driver's ring at which it continues."""
        state = vhost_vring_state(index=index, num=next_available)
        ioctl(self._descriptor, VhostIoctl.VHOST_SET_VRING_BASE, state)

    def get_vring_base(self, index: int) -> int:
        """The index at which a stopped queue would continue."""
        state = vhost_vring_state(index=index)
        ioctl(self._descriptor, VhostIoctl.VHOST_GET_VRING_BASE, state)
        return int(state.num)

    def set_vring_addr(
        self, index: int, memory: GuestMemory, descriptors: int, driver: int, device: int
    ) -> None:
        """Set the guest addresses of a queue's rings.

        Raises:
            GuestMemoryError: a ring is not in memory.
        """
        request = vhost_vring_addr(
            index=index,
            # The kernel checks the length of each ring.
            desc_user_addr=address_of(memory.view(descriptors, 1)),
            avail_user_addr=address_of(memory.view(driver, 1)),
            used_user_addr=address_of(memory.view(device, 1)),
        )
        ioctl(self._descriptor, VhostIoctl.VHOST_SET_VRING_ADDR, request)

    def set_vring_kick(self, index: int, eventfd: int) -> None:
        """The eventfd that the guest's doorbell writes."""
        file = vhost_vring_file(index=index, fd=eventfd)
        ioctl(self._descriptor, VhostIoctl.VHOST_SET_VRING_KICK, file)

    def set_vring_call(self, index: int, eventfd: int) -> None:
        """The eventfd that interrupts the guest."""
        file = vhost_vring_file(index=index, fd=eventfd)
        ioctl(self._descriptor, VhostIoctl.VHOST_SET_VRING_CALL, file)

    def net_set_backend(self, index: int, tap: int | None) -> None:
        """Serve a queue with the frames of a tap; None stops it, and waits for pending frames."""
        file = vhost_vring_file(index=index, fd=_NOTHING if tap is None else tap)
        ioctl(self._descriptor, VhostIoctl.VHOST_NET_SET_BACKEND, file)
