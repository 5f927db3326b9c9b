"""The loop: who asks all the time keeps nobody from their turn, and what is due is done."""

from __future__ import annotations

import itertools
import os
import socket
from functools import partial

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


def test_what_a_descriptor_is_waited_for_changes() -> None:
    loop, done = Loop(), list[str]()
    ours, theirs = socket.socketpair()
    theirs.send(b"x")

    def writable() -> None:
        done.append("writable")
        loop.watch(ours.fileno(), readable, None)

    def readable() -> None:
        done.append("readable")
        loop.watch(ours.fileno(), None)
        loop.watch(ours.fileno(), None)
        loop.after(0.001, loop.stop)

    loop.watch(ours.fileno(), None, writable)
    loop.run()
    assert done == ["writable", "readable"]
    loop.watch(number := ours.fileno(), loop.stop)
    ours.close()
    # The kernel has forgotten it with the descriptor.
    loop.watch(number, None)
    loop.close()
    theirs.close()


def test_one_callback_forgets_another_descriptor_of_the_same_turn() -> None:
    loop, done = Loop(), list[int]()
    pipes = [os.pipe() for _ in range(2)]

    def forget(other: int) -> None:
        done.append(other)
        loop.watch(other, None)
        loop.stop()

    for (reading, writing), (other, _) in zip(pipes, reversed(pipes), strict=True):
        loop.watch(reading, partial(forget, other))
        os.write(writing, b"x")
    loop.run()
    assert len(done) == 1
    loop.close()
    for descriptor in itertools.chain(*pipes):
        os.close(descriptor)
