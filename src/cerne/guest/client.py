"""The host's side of the guest agent: commands, files, clean shutdown (``docs/agent.md``)."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import IOBase
from pathlib import Path
from signal import SIGKILL
from typing import BinaryIO

from cerne.errors import GuestError, GuestTimeoutError, InputError
from cerne.guest import files, wire
from cerne.guest.process import ExecResult, GuestProcess, Stream, TerminalSize
from cerne.guest.session import Session
from cerne.guest.wire import FrameType
from cerne.units import MIB, counted

_ANSWER_TIMEOUT = 30.0
_POWER_OFF, _REBOOT = b"\x01", b"\x02"
_MAX_ENTROPY = 512
_LONGEST_HOSTNAME = 64
_MAX_ARGUMENTS = 65535 - 2
_LONGEST_FREEZE = 3600
_MOST_GATHERED = 256 * MIB
_LONGEST_NAME = 256
_LONGEST_RENEWAL = 4096
_INFO_NAMES = ("hostname", "kernel", "architecture", "system", "boot_id", "agent_version")


@dataclass(frozen=True, slots=True)
class GuestInfo:
    """A guest's description of itself, which is as untrusted as the guest."""

    hostname: str
    kernel: str
    """The output of ``uname -r``."""
    architecture: str
    system: str
    """The distribution's pretty name."""
    boot_id: str
    uptime: float
    """Seconds since the guest booted."""
    agent_version: str


@dataclass(frozen=True, slots=True)
class Renewal:
    """What a guest did that was told who it is."""

    clone: bool
    """Whether its disk was another machine's, whose identity it has given up."""
    failed: tuple[str, ...]
    """The steps of that which failed: files, programs and hooks of the guest."""
    kept: bool = False
    """Whether its agent is older, and left all of that as it was."""


class GuestAgent:
    """The agent of one guest, which this host reaches by the sockets of its ports.

    Each call uses one free port until it ends, so that as many calls run at the same time as there
    are sockets; a lock file beside each socket keeps other processes from it. Any call may raise
    `GuestTimeoutError` if the agent does not answer, `GuestError` if the guest is gone or reports a
    failure, and `BusyError` if all ports are in use.
    """

    def __init__(self, sockets: Sequence[Path]) -> None:
        self._sockets = tuple(sockets)

    def wait_ready(self, timeout: float, alive: Callable[[], bool] = lambda: True) -> None:
        """Wait until the agent answers, at most `timeout` seconds.

        `alive` is called repeatedly; it returns whether the machine still runs, and may raise.

        Raises:
            GuestTimeoutError: the agent did not answer in time.
            GuestError: the machine ended first, or the agent speaks another version.
        """
        try:
            self._open(timeout, alive).close()
        except GuestTimeoutError as error:
            raise GuestTimeoutError(
                f"the guest was not ready after {timeout:g} s: {error.message}"
            ) from error

    def info(self) -> GuestInfo:
        """The guest's description of itself."""
        return _parse_info(self._ask(FrameType.INFO))

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        stdin: bytes | BinaryIO | Iterable[bytes] | None = None,
        timeout: float | None = None,
        answer_timeout: float = _ANSWER_TIMEOUT,
        started: Callable[[GuestProcess], None] | None = None,
    ) -> ExecResult:
        """Run a command and collect its output, up to 256 MiB.

        Args:
            argv: the program, which is searched in PATH, and its arguments.
            env: variables in addition to the guest's own (PATH, HOME, USER, LOGNAME, SHELL).
            cwd: its working directory, an absolute path; by default the user's home.
            user: ``NAME``, ``UID``, ``NAME:GROUP`` or ``UID:GID``; by default root.
            stdin: its standard input; by default empty.
            timeout: seconds after which the command is killed.
            answer_timeout: seconds that the agent has to answer and to start it.
            started: is called with the process when it runs; another thread may signal it.

        Raises:
            InputError: there is no program, or an argument has a zero byte or is too long.
            GuestTimeoutError: the command was killed at `timeout`.
            GuestError: the guest failed to start it (in the guest's words), or went away.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self.popen(
            argv, env=env, cwd=cwd, user=user, answer_timeout=answer_timeout
        ) as process:
            if started is not None:
                started(process)
            feeder = _Feeder(process, stdin)
            try:
                gathered = _gather(process, deadline)
            except GuestTimeoutError as error:
                process.signal(SIGKILL)
                raise GuestTimeoutError(
                    f"{argv[0]} was killed after {timeout:g} s in the guest"
                ) from error
            feeder.finish()
        return gathered

    def popen(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        terminal: TerminalSize | None = None,
        answer_timeout: float = _ANSWER_TIMEOUT,
    ) -> GuestProcess:
        """Start a command, with streams or on a terminal; otherwise as `run`."""
        variables = _variables(env or {})
        _check_words(argv)
        _check_directory(cwd)
        size = terminal or TerminalSize(0, 0)
        request = wire.EXEC.pack(
            terminal is not None,
            size.rows,
            size.columns,
            min(len(argv), _MAX_ARGUMENTS),
            len(variables),
        )
        strings = [cwd or "", user or "", *argv, *variables]
        if len(argv) > _MAX_ARGUMENTS:
            raise InputError(f"{len(argv)} arguments are too many for a command in a guest")
        session = self._open(answer_timeout)
        try:
            session.send_strings(strings)
            session.send(FrameType.EXEC, request)
            started = _started(session, cwd, answer_timeout)
            return GuestProcess(session, _count(started))
        except BaseException:
            session.close()
            raise

    def push(self, local: Path, remote: str) -> None:
        """Copy a file or a directory into the guest.

        If `remote` is a directory, the copy goes into it; otherwise the copy gets the name
        `remote`. A relative path starts at the guest's root directory. Modes, times and symbolic
        links are kept; a file is replaced whole or not at all. Sockets, FIFOs and devices are not
        copied.

        Raises:
            NotFoundError: there is nothing at `local`.
            InputError: `local` is not readable.
            GuestError: the guest failed to write it (in its words).
        """
        with self._open(_ANSWER_TIMEOUT) as session:
            files.push(session, local, remote)

    def pull(self, remote: str, local: Path) -> None:
        """Copy a file or a directory out of the guest.

        If `local` is a directory, the copy goes into it; otherwise the copy gets the name `local`.
        The guest cannot write outside of `local`. Sockets, FIFOs and devices are not copied.

        Raises:
            NotFoundError: there is no directory to write into.
            GuestError: the guest failed to read it, or broke the protocol.
            StorageError: this host failed to write it.
        """
        with self._open(_ANSWER_TIMEOUT) as session:
            files.pull(session, remote, local)

    def shutdown(self, *, reboot: bool = False) -> None:
        """Ask the guest to shut down, or to reboot; returns once it has agreed."""
        self._ask(FrameType.SHUTDOWN, _REBOOT if reboot else _POWER_OFF)

    def set_time(self) -> None:
        """Set the guest's clock to this host's."""
        # The time is read after the session is open, because opening may take long.
        with self._open(_ANSWER_TIMEOUT) as session:
            session.send(FrameType.SET_TIME, wire.TIME.pack(*divmod(time.time_ns(), 10**9)))
            session.expect(FrameType.DONE, _ANSWER_TIMEOUT)

    def add_entropy(self, data: bytes) -> None:
        """Give the guest's random number generator up to 512 bytes of entropy, and reseed it.

        Raises:
            InputError: there is no data, or too much.
        """
        if not 0 < len(data) <= _MAX_ENTROPY:
            raise InputError(
                f"the entropy has {counted(len(data), 'byte')}; the agent takes 1 to {_MAX_ENTROPY}"
            )
        self._ask(FrameType.ENTROPY, data)

    def renew(
        self,
        *,
        hostname: str,
        mac: str | None = None,
        machine: str = "",
        machine_id: str = "",
        timeout: float = _ANSWER_TIMEOUT,
    ) -> Renewal:
        """Give a forked or restored guest its own identity, in one request.

        The guest gets fresh entropy, this host's time, its name, and the address of its first
        network card if `mac` is given (six bytes in hexadecimal, with colons between). If `machine`
        is given and the guest's disk says that it is another machine's, it gets this `machine_id`
        (machine-id(5)) and new keys of SSH, and its hooks are run.

        Raises:
            InputError: the host name or the address is not valid.
            GuestTimeoutError: the guest does not answer within `timeout` seconds.
            GuestError: a step failed in the guest, which did not do the later steps.
        """
        name = hostname.encode()
        if not 0 < len(name) <= _LONGEST_HOSTNAME:
            raise InputError(f"{hostname!r} is not a host name")
        entropy = os.urandom(wire.RENEWED_ENTROPY)
        address = b"" if mac is None else _address(mac)
        deadline = time.monotonic() + timeout
        with self._open(timeout) as session:
            now = divmod(time.time_ns(), 10**9)
            renewal = wire.RENEWAL.pack(*now, mac is not None, address, entropy)
            knows = session.version >= wire.IDENTITY_VERSION
            strings = b"\0".join((name, machine.encode(), machine_id.encode(), b""))
            session.send(FrameType.RENEW, renewal + (strings if knows else name))
            said = session.expect(FrameType.DONE, max(0.0, deadline - time.monotonic()))
        return _renewal(said, knows=knows or not machine)

    def grow_root(self) -> None:
        """Have the guest grow its root file system to the size of its disk.

        Raises:
            GuestError: it is of a kind that does not grow, or is on a partition; or the agent is
                older.
        """
        with self._open(_ANSWER_TIMEOUT) as session:
            if session.version < wire.IDENTITY_VERSION:
                raise GuestError("the guest's agent is older, and does not grow file systems")
            session.send(FrameType.GROW)
            session.expect(FrameType.DONE, _ANSWER_TIMEOUT)

    def freeze(self, timeout: float = 10.0) -> int:
        """Freeze the guest's file systems for at most `timeout` seconds; return their number."""
        if not 0 < timeout <= _LONGEST_FREEZE:
            raise InputError(
                f"{timeout:g} s is not a time for which file systems freeze",
                hint=f"give more than 0 s and at most {_LONGEST_FREEZE} s",
            )
        return _count(self._ask(FrameType.FREEZE, wire.COUNT.pack(int(timeout * 1000))))

    def thaw(self) -> int:
        """Thaw the guest's file systems; return how many were frozen."""
        return _count(self._ask(FrameType.THAW))

    def _open(self, timeout: float, alive: Callable[[], bool] = lambda: True) -> Session:
        return Session.open(self._sockets, timeout, alive)

    def _ask(self, kind: FrameType, payload: bytes = b"") -> bytes:
        with self._open(_ANSWER_TIMEOUT) as session:
            session.send(kind, payload)
            return session.expect(FrameType.DONE, _ANSWER_TIMEOUT)


class _Feeder:
    """Writes a process's standard input, in another thread than the one that reads its output."""

    def __init__(
        self, process: GuestProcess, stdin: bytes | BinaryIO | Iterable[bytes] | None
    ) -> None:
        self._process = process
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None
        if stdin is None:
            process.close_stdin()
        else:
            self._thread = threading.Thread(target=self._feed, args=(_chunks(stdin),), daemon=True)
            self._thread.start()

    def _feed(self, chunks: Iterable[bytes]) -> None:
        try:
            for chunk in chunks:
                self._process.write(chunk)
                if self._process.has_ended:
                    # The input may have no end.
                    return
            self._process.close_stdin()
        except GuestError:
            return  # The thread that reads its output meets the same error, and reports it.
        except Exception as error:  # noqa: BLE001 - raised again in finish(), whatever it is
            self._error = error
            with contextlib.suppress(GuestError):
                self._process.signal(SIGKILL)

    def finish(self) -> None:
        """Raise the error of the input, if any; called after the process has ended.

        A source that has more data is not read further, as in a shell's pipe.
        """
        if self._error is not None:
            raise self._error


def _chunks(stdin: bytes | BinaryIO | Iterable[bytes]) -> Iterable[bytes]:
    if isinstance(stdin, bytes):
        return (stdin,)
    if isinstance(stdin, IOBase):
        return iter(lambda: stdin.read(wire.MAX_PAYLOAD), b"")
    return stdin


def _gather(process: GuestProcess, deadline: float | None) -> ExecResult:
    # One buffer per stream: a guest may send single bytes, and each object takes dozens.
    streams = {Stream.STDOUT: bytearray(), Stream.STDERR: bytearray()}
    while True:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            # A command that writes for ever would always have more output.
            raise GuestTimeoutError("the process in the guest still runs")
        output = process.read(left)
        if output is None:
            break
        if sum(map(len, streams.values())) + len(output.data) > _MOST_GATHERED:
            raise GuestError(
                f"the command wrote more than {_MOST_GATHERED // MIB} MiB",
                hint="stream it with popen(), or write it to a file and pull that",
            )
        streams[output.stream] += output.data
    end = process.wait()
    return ExecResult(
        end.status, end.signal, bytes(streams[Stream.STDOUT]), bytes(streams[Stream.STDERR])
    )


def _check_words(argv: Sequence[str]) -> None:
    if isinstance(argv, str):
        raise InputError(
            f"the command {argv!r} is one string; a command is a list of words",
            hint=f"write it as {argv.split()!r}, or have a shell read it: {['sh', '-c', argv]!r}",
        )
    if not argv or not argv[0]:
        raise InputError("the command is empty")
    for word in argv:
        if not isinstance(word, str):
            raise InputError(
                f"{word!r} in the command is not a string", hint=f"write it as {str(word)!r}"
            )


def _check_directory(cwd: str | None) -> None:
    if cwd is not None and not cwd.startswith("/"):
        raise InputError(
            f"the working directory {cwd!r} is not an absolute path of the guest",
            hint="begin it with a slash, as in /srv; without one the command runs in its user's"
            " home",
        )


def _started(session: Session, cwd: str | None, timeout: float = _ANSWER_TIMEOUT) -> bytes:
    """The agent's answer about a command that it has started."""
    try:
        return session.expect(FrameType.STARTED, timeout)
    except GuestError as error:
        if cwd is None or error.message != f"cannot start in {cwd}: Not a directory":
            raise
        raise GuestError(
            f"the working directory {cwd} does not exist in the guest, or is not a directory",
            hint=f"make it first: mkdir -p {cwd}",
        ) from error


def _variables(env: Mapping[str, str]) -> list[str]:
    for name in env:
        if not name or "=" in name:
            raise InputError(f"{name!r} is not a name for an environment variable")
    return [f"{name}={value}" for name, value in env.items()]


def _address(mac: str) -> bytes:
    try:
        address = bytes.fromhex(mac.replace(":", ""))
    except ValueError:
        address = b""
    if len(address) != 6:
        raise InputError(f"{mac!r} is not the address of a network card")
    return address


def _count(payload: bytes) -> int:
    if len(payload) != wire.COUNT.size:
        raise wire.nonsense("a number of a wrong length")
    number: int = wire.COUNT.unpack(payload)[0]
    return number


def _renewal(said: bytes, *, knows: bool) -> Renewal:
    lines = [wire.readable(line, _LONGEST_NAME) for line in said[:_LONGEST_RENEWAL].splitlines()]
    return Renewal(bool(lines), tuple(lines[1:]), kept=not knows)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{text!r} is not a number of seconds")
    return seconds


def _parse_info(payload: bytes) -> GuestInfo:
    lines = payload.decode(errors="replace").splitlines()
    said = dict(line.split("=", 1) for line in lines if "=" in line)
    try:
        return GuestInfo(
            uptime=_seconds(said.pop("uptime")),
            **{name: wire.readable(said[name].encode(), _LONGEST_NAME) for name in _INFO_NAMES},
        )
    except (KeyError, ValueError) as error:
        raise wire.nonsense("a description of itself that is not valid") from error
