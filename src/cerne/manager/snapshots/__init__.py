"""Snapshots of machines: taking them, going back to them, carrying them to other hosts."""
