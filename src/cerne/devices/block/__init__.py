"""Disks as a block device needs them: bytes by offset, whatever file format holds them."""
