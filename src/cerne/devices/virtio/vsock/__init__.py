"""The socket device: connections between a guest and its host (virtio 1.2, section 5.10)."""
