"""The loop: nobody who asks all the time keeps others from their turn."""

from __future__ import annotations

import os

from cerne.vmm.loop import Loop


def test_who_asks_again_and_again_does_not_starve_descriptors() -> None:
    loop = Loop()
    readable, writable = os.pipe()
    asked = 0

    def again() -> None:
        nonlocal asked
        asked += 1
        assert asked < 1000
        loop.ask(again)

    loop.watch(readable, loop.stop)
    os.write(writable, b"x")
    loop.ask(again)
    loop.run()
    loop.close()
    os.close(readable)
    os.close(writable)
