"""Supervises passt for one network card, and stands between the two.

It is a supervisor (`cerne.engine.supervisor`) that also carries the frames between the card and
passt. So it judges what the guest sends (`cerne.network.guest_frames`) and asks the host's name
servers for it, and the card's connection stays when passt ends and is started again. The machine's
end, and the card's removal, are the end of that connection.

passt (2023-03) takes what it reads at once for whole frames. So each `send` to it has whole frames
only, and less than the kernel divides.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Sequence

from cerne.engine.supervisor import GOOD, CardTask, Supervisor, Task, run, status_of
from cerne.network.guest_frames import (
    GuestFrames,
    Verdict,
    arp_request,
    echo_reply,
    framed,
    frames_in,
    goes_on,
    refusal,
    udp_payload,
    udp_reply,
)
from cerne.network.names import Answer, NameServers
from cerne.network.own_addresses import OwnAddresses
from cerne.network.user import ADDRESS, GATEWAY

_AT_ONCE = 32 * 1024
"""Bytes that the kernel keeps together on a stream (net/unix/af_unix.c: one buffer)."""
_READ = 256 * 1024
_LARGEST = 128 * 1024
"""Bytes of a longest frame; a longer one means that the other side is not what it should be."""
_MOST_WAITING = 4 * 1024 * 1024
"""Bytes for the card that may wait; passt waits then, and answers of our own are lost."""
_SECOND = 1.0
_MEMORY = 5.0
"""Seconds for which a judgement of an address is kept."""


class _Way:
    """The way of frames to one socket, with what waits for room in it."""

    def __init__(self, link: socket.socket, *, whole: bool) -> None:
        """If it is `whole`, the other side takes each part of what is sent for whole frames."""
        link.setblocking(False)
        self.link = link
        self._whole = whole
        self._waiting: deque[bytes | memoryview] = deque()
        self._size = 0

    @property
    def waits(self) -> bool:
        """Whether data waits for room."""
        return bool(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether so much waits that more would be a burden."""
        return self._size > _MOST_WAITING

    def put(self, data: bytes | memoryview) -> None:
        """Send, or keep what the socket does not take.

        Raises:
            OSError: the other side has ended.
        """
        if not self._waiting:
            sent = self._sent(data)
            if sent == len(data):
                return
            # A view, because the rest of much may be sent in many parts.
            data = memoryview(data)[sent:]
        self._waiting.append(data)
        self._size += len(data)

    def flush(self) -> None:
        """Send what waits.

        Raises:
            OSError: the other side has ended.
        """
        while self._waiting:
            data = self._waiting[0]
            sent = self._sent(data)
            self._size -= sent
            if sent < len(data):
                self._waiting[0] = data[sent:]
                return
            self._waiting.popleft()

    def _sent(self, data: bytes | memoryview) -> int:
        """Send as much as there is room for."""
        try:
            sent = self.link.send(data, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        if self._whole and sent < len(data):
            raise ConnectionError("the kernel has divided a message")
        return sent


class _Watched:
    """A poll that is changed only where what is waited for changes."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._events: dict[int, int] = {}

    def set(self, wanted: dict[int, int]) -> None:
        """Wait for these events of these descriptors, and for the end of each."""
        if wanted == self._events:
            return
        for descriptor in self._events.keys() - wanted.keys():
            self._poll.unregister(descriptor)
        for descriptor, events in wanted.items():
            if self._events.get(descriptor) != events:
                self._poll.register(descriptor, events)
        self._events = wanted

    def wait(self, seconds: float | None) -> dict[int, int]:
        """The events that came."""
        return dict(self._poll.poll(None if seconds is None else seconds * 1000))


class _Passt:
    """One run of passt."""

    def __init__(self, child: int, link: socket.socket, ready: int) -> None:
        self.child = child
        self.way = _Way(link, whole=True)
        self.ready: int | None = ready
        self.rest = b""
        """The beginning of a frame whose end has not come yet."""
        self.talks = True
        """Whether its socket is open."""


class CardSupervisor(Supervisor):
    """Supervises one passt, and carries the frames of its card."""

    def __init__(self, task: Task, card: CardTask) -> None:
        super().__init__(task)
        self._mac = bytes.fromhex(card.mac.replace(":", ""))
        self._card = _Way(socket.socket(fileno=card.link), whole=False)
        self._rest = b""
        self._room = memoryview(bytearray(_READ))
        self._frames = GuestFrames(OwnAddresses().has, card.host_access)
        self._names = NameServers()
        self._forgotten = self._repeated = 0.0

    def _has_ended(self, patience: float) -> bool:
        poll = select.poll()
        poll.register(self._card.link.fileno(), select.POLLRDHUP)
        return bool(poll.poll(patience * 1000))

    def _serve(self) -> int | None:
        """Run passt once; return its status, or None if the card is gone."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        # passt loses what has no room, and sends it again; the kernel gives less than this.
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MOST_WAITING)
        reading, writing = os.pipe()
        with ours, os.fdopen(reading, "rb") as ready:
            with theirs, os.fdopen(writing, "wb"):
                child = self._start(theirs.fileno(), writing)
            watch = os.pidfd_open(child)
            try:
                return self._carry(_Passt(child, ours, ready.fileno()), watch)
            finally:
                os.close(watch)

    def _carry(self, passt: _Passt, watch: int) -> int | None:
        """Carry frames until passt or the machine ends; return as `_serve`."""
        watched = _Watched()
        former: tuple[object, ...] = ()
        # The first frame of a card says where passt finds it, even if its guest is silent.
        self._to_passt(passt, [framed(arp_request(self._mac, ADDRESS, GATEWAY))])
        while True:
            state = self._state(passt)
            if state != former:
                former = state
                watched.set({watch: select.POLLIN, **self._waited(passt)})
            found = watched.wait(self._patience())
            if watch in found:
                return status_of(passt.child)
            if passt.ready in found:
                self._hear(passt)
            try:
                self._serve_card(found.get(self._card.link.fileno(), 0), passt)
                self._serve_passt(found.get(passt.way.link.fileno(), 0), passt)
                self._serve_names(found)
                self._repeat()
            except _CardGoneError:
                self._end(passt.child, watch)
                return None

    def _state(self, passt: _Passt) -> tuple[object, ...]:
        """What decides what is waited for; most frames leave it as it is."""
        card, names = self._card, self._names.descriptors()
        return card.waits, card.is_full, passt.way.waits, passt.talks, passt.ready, names

    def _patience(self) -> float | None:
        """Seconds until something is due."""
        if not (self._frames.waits or self._names.waits):
            return None
        due = [_SECOND] if self._frames.waits else []
        if self._names.waits and (wait := self._names.wait(time.monotonic())) is not None:
            due.append(wait)
        return min(due, default=None)

    def _repeat(self) -> None:
        if self._frames.waits and (now := time.monotonic()) > self._repeated + _SECOND:
            self._repeated = now
            for frame in self._frames.repeated():
                self._answer(frame)

    def _waited(self, passt: _Passt) -> dict[int, int]:
        # What comes from one side is read while there is room for it at the other.
        wanted = {self._card.link.fileno(): _events(not passt.way.waits, self._card.waits)}
        if passt.talks:
            wanted[passt.way.link.fileno()] = _events(not self._card.is_full, passt.way.waits)
        if passt.ready is not None:
            wanted[passt.ready] = select.POLLIN
        return {**wanted, **dict.fromkeys(self._names.descriptors(), select.POLLIN)}

    def _hear(self, passt: _Passt) -> None:
        assert passt.ready is not None
        if os.read(passt.ready, 100):
            self._say(GOOD)
        passt.ready = None

    def _serve_card(self, events: int, passt: _Passt) -> None:
        if events & select.POLLOUT:
            self._to_card(b"")
        if not events & ~select.POLLOUT:
            return
        try:
            data = self._received(self._card.link)
        except BlockingIOError:
            return
        except OSError as error:
            raise _CardGoneError from error
        if not data:
            raise _CardGoneError
        buffer = self._rest + data
        try:
            frames, end = frames_in(buffer, _LARGEST)
        except ValueError as error:
            raise _CardGoneError from error
        self._rest = buffer[end:]
        self._to_passt(passt, self._passed(buffer, frames))

    def _passed(self, buffer: bytes, frames: list[tuple[int, int]]) -> list[bytes]:
        """The frames for passt, in batches; others are answered here, or dropped."""
        if (now := time.monotonic()) > self._forgotten + _MEMORY:
            self._forgotten = now
            self._frames.forget()
        batches: list[bytes] = []
        first = last = 0
        goes_out = self._frames.goes_out
        for start, end in frames:
            if goes_out(buffer, start, end) or self._passes(buffer[start:end]):
                if start - 4 != last or end - first > _AT_ONCE:
                    batches.append(buffer[first:last])
                    first = start - 4
                last = end
        batches.append(buffer[first:last])
        return [batch for batch in batches if batch]

    def _passes(self, frame: bytes) -> bool:
        match self._frames.judge(frame):
            case Verdict.PASS:
                return True
            case Verdict.ECHO:
                self._answer(echo_reply(frame))
            case Verdict.REFUSE:
                self._answer(refusal(frame))
            case Verdict.NAME:
                self._answer_names(self._names.ask(udp_payload(frame), frame, time.monotonic()))
            case Verdict.DROP:
                pass
        return False

    def _serve_passt(self, events: int, passt: _Passt) -> None:
        if events & select.POLLOUT:
            self._to_passt(passt, [])
        if not events & ~select.POLLOUT:
            return
        try:
            data = self._received(passt.way.link)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._hang_up(passt)
            return
        buffer = passt.rest + data
        try:
            frames, end = frames_in(buffer, _LARGEST)
        except ValueError:
            self._hang_up(passt)
            return
        for start, after in frames:
            if not goes_on(buffer, start, after):
                self._frames.note(buffer[start:after])
        # A part of a frame would stay in the card's stream if passt ended now.
        passt.rest = buffer[end:]
        if end:
            self._to_card(buffer[:end])

    def _received(self, link: socket.socket) -> bytes:
        # Memory of this size, made for each read, would take longer than the read.
        size = link.recv_into(self._room)
        return bytes(self._room[:size])

    def _serve_names(self, found: dict[int, int]) -> None:
        if not self._names.waits:
            return
        now = time.monotonic()
        for descriptor in [each for each in self._names.descriptors() if each in found]:
            self._answer_names(self._names.receive(descriptor, now))
        self._answer_names(self._names.tick(now))

    def _answer_names(self, answers: list[Answer]) -> None:
        for answer in answers:
            self._answer(udp_reply(answer.origin, answer.payload))

    def _answer(self, frame: bytes) -> None:
        if not self._card.is_full:
            self._to_card(framed(frame))

    def _to_card(self, data: bytes) -> None:
        try:
            if data:
                self._card.put(data)
            else:
                self._card.flush()
        except OSError as error:
            raise _CardGoneError from error

    def _to_passt(self, passt: _Passt, batches: list[bytes]) -> None:
        try:
            for batch in batches:
                passt.way.put(batch)
            passt.way.flush()
        except OSError:
            self._hang_up(passt)

    def _hang_up(self, passt: _Passt) -> None:
        """Let it end: its process is waited for."""
        passt.talks = False
        os.kill(passt.child, signal.SIGKILL)


class _CardGoneError(Exception):
    """The machine has ended, or the card was removed."""


def _events(reads: bool, writes: bool) -> int:
    return (select.POLLIN if reads else 0) | (select.POLLOUT if writes else 0)


def main(words: Sequence[str]) -> int:
    """Supervise passt for the task and the card in the words."""
    task = Task.from_word(words[0])
    return run(CardSupervisor(task, CardTask.from_word(words[1])), task)
