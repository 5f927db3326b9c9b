"""Disks for a block device: bytes by offset, in any file format."""
