"""The limits of descriptors: in a process of ours, and in one message."""

from __future__ import annotations

import resource

DESCRIPTORS_AT_ONCE = 253
"""The most descriptors that the kernel passes with one message (SCM_MAX_FD)."""
LARGEST_LIMIT = 1 << 20
"""The most descriptors of a process by default (fs.nr_open)."""
NO_DESCRIPTORS_LEFT = "raise the hard limit of open files for the machine's process: ulimit -Hn"


def raise_limit() -> None:
    """Raise this process's limit of descriptors to its hard limit (RLIMIT_NOFILE).

    For processes that start no programs and never call select(2), which handles only the first
    1024.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, LARGEST_LIMIT), most))
