"""Devices whose queues another process serves (QEMU's docs/interop/vhost-user.rst)."""
