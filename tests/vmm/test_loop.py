"""The loop: who asks all the time keeps nobody from their turn, and what is due is done."""

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


def test_what_is_due_is_done_in_its_order() -> None:
    loop, done = Loop(), list[str]()

    def first() -> None:
        done.append("first")
        loop.after(0.001, lambda: done.append("again"))

    loop.after(0.03, loop.stop)
    loop.after(0.02, lambda: done.append("last"))
    loop.after(0.0, first)
    loop.ask(lambda: done.append("asked"))
    loop.run()
    loop.close()
    assert sorted(done) == ["again", "asked", "first", "last"]
    assert [each for each in done if each != "asked"] == ["first", "again", "last"]
