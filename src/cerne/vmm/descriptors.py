"""How many descriptors a process of ours may have, and be sent at once."""

from __future__ import annotations

import resource

DESCRIPTORS_AT_ONCE = 253
"""As many as the kernel passes with one message (SCM_MAX_FD)."""
LARGEST_LIMIT = 1 << 20
"""As many as the kernel lets a process have by default (fs.nr_open)."""
NO_DESCRIPTORS_LEFT = (
    "the machine's process may not have so many files open: raise its hard limit (ulimit -Hn)"
)


def raise_limit() -> None:
    """Let this process have as many open as it ever may (RLIMIT_NOFILE).

    For processes that start no programs and never call select(2), which knows the first 1024 alone.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, LARGEST_LIMIT), most))
