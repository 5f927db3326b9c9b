"""The loop of a VMM's main thread: it waits for descriptors and for calls of other threads.

All work except running vCPUs and serving disks (`cerne.vmm.disk_thread`) happens on this thread, so
that the host sides of the other devices need no locks.
"""

from __future__ import annotations

import heapq
import itertools
import os
import selectors
import time
from collections import deque
from collections.abc import Callable

Ready = Callable[[], None]


class Loop:
    """Calls back when a descriptor is readable or writable, or when a thread asks for it."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._asked: deque[Ready] = deque()
        # Ordered by time; the numbers keep the order of calls with the same time.
        self._timers: list[tuple[float, int, Ready]] = []
        self._numbers = itertools.count()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._running = True
        self.watch(self._bell, self._answer_bell)

    def watch(self, descriptor: int, readable: Ready | None, writable: Ready | None = None) -> None:
        """Call back while a descriptor is readable or writable; with neither, forget it."""
        events = selectors.EVENT_READ if readable else 0
        events |= selectors.EVENT_WRITE if writable else 0
        known = descriptor in self._selector.get_map()
        if not events:
            if known:
                self._selector.unregister(descriptor)
        elif known:
            self._selector.modify(descriptor, events, (readable, writable))
        else:
            self._selector.register(descriptor, events, (readable, writable))

    def ask(self, action: Ready) -> None:
        """Call a function on the loop's thread soon; from any thread."""
        self._asked.append(action)
        os.eventfd_write(self._bell, 1)

    def after(self, seconds: float, action: Ready) -> None:
        """Call a function after so many seconds; from the loop's thread."""
        due = time.monotonic() + seconds
        heapq.heappush(self._timers, (due, next(self._numbers), action))

    def stop(self) -> None:
        """End `run`; from the loop's own thread."""
        self._running = False

    def run(self) -> None:
        """Call back until stopped."""
        while self._running:
            for key, events in self._selector.select(self._patience()):
                readable, writable = key.data
                # An earlier callback may have forgotten this descriptor.
                if events & selectors.EVENT_READ and readable and self._knows(key.fd):
                    readable()
                if events & selectors.EVENT_WRITE and writable and self._knows(key.fd):
                    writable()
            self._do_what_is_due()

    def close(self) -> None:
        """Close its own descriptors."""
        self._selector.close()
        os.close(self._bell)

    def _patience(self) -> float | None:
        """Seconds until the next call is due; None if there is none."""
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _do_what_is_due(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()

    def _knows(self, descriptor: int) -> bool:
        return descriptor in self._selector.get_map()

    def _answer_bell(self) -> None:
        os.eventfd_read(self._bell)
        # Later calls ring again, so that descriptors have their turn first.
        for _ in range(len(self._asked)):
            self._asked.popleft()()
