"""The services that a cloud gives to its own machines, which no guest of theirs may have.

The metadata services of 169.254.0.0/16 are link-local, and closed with that range.
"""

from __future__ import annotations

SERVICES4 = ("100.100.100.200/32", "168.63.129.16/32")
"""Alibaba, Azure."""
SERVICES6 = ("fd00:ec2::/32", "fd20:ce::254/128")
"""Amazon, Google."""
