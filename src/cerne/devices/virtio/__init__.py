"""Virtio devices, their queues and their PCI transport (virtio 1.2, OASIS)."""
