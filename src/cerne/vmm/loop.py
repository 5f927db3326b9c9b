"""The loop of a VMM's main thread: it waits for descriptors and for calls of other threads.

All work except running vCPUs and serving disks (`cerne.vmm.disk_thread`) happens on this thread, so
that the host sides of the other devices need no locks.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import select
import time
from collections import deque
from collections.abc import Callable

Ready = Callable[[], None]

_NONE = (None, None)


class Loop:
    """Calls back when a descriptor is readable or writable, or when a thread asks for it."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._watched: dict[int, tuple[Ready | None, Ready | None]] = {}
        self._asked: deque[Ready] = deque()
        # Ordered by time; the numbers keep the order of calls with the same time.
        self._timers: list[tuple[float, int, Ready]] = []
        self._numbers = itertools.count()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._running = True
        self.watch(self._bell, self._answer_bell)

    def watch(self, descriptor: int, readable: Ready | None, writable: Ready | None = None) -> None:
        """Call back while a descriptor is readable or writable; with neither, forget it."""
        wanted, former = (readable, writable), self._watched.get(descriptor, _NONE)
        events, present = _events(*wanted), _events(*former)
        if not events:
            self._watched.pop(descriptor, None)
            if present:
                # A descriptor that was closed before is forgotten already.
                with contextlib.suppress(OSError):
                    self._poll.unregister(descriptor)
            return
        if not present:
            self._poll.register(descriptor, events)
        elif events != present:
            self._poll.modify(descriptor, events)
        self._watched[descriptor] = wanted

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
        watched = self._watched
        while self._running:
            for descriptor, events in self._poll.poll(self._patience()):
                # An earlier callback may have forgotten this descriptor.
                if events & ~select.EPOLLOUT and (readable := watched.get(descriptor, _NONE)[0]):
                    readable()
                if events & ~select.EPOLLIN and (writable := watched.get(descriptor, _NONE)[1]):
                    writable()
            if self._timers:
                self._do_what_is_due()

    def close(self) -> None:
        """Close its own descriptors."""
        self._poll.close()
        os.close(self._bell)

    def _patience(self) -> float | None:
        """Seconds until the next call is due; None if there is none."""
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _do_what_is_due(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()

    def _answer_bell(self) -> None:
        os.eventfd_read(self._bell)
        # Later calls ring again, so that descriptors have their turn first.
        for _ in range(len(self._asked)):
            self._asked.popleft()()


def _events(readable: Ready | None, writable: Ready | None) -> int:
    return (select.EPOLLIN if readable else 0) | (select.EPOLLOUT if writable else 0)
