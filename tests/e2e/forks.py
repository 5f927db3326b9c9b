"""Runs commands as forks of one process that has imported ``cerne`` once.

A start of Python and the imports are a fifth of a second of each command; what a command does is
the same. The process ends with its parent, by the end of its standard input.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_LONGEST = 1 << 20
"""Bytes of a request: the words and the environment."""

_IMPORTED = ("cli", "client", "manager", "engine")


class Forks:
    """The process, and the commands that it runs."""

    def __init__(self, directory: Path) -> None:
        self._path = str(directory / "forks.sock")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(self._path)
            listener.listen(64)
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(listener.fileno())],
                stdin=subprocess.PIPE,
                pass_fds=[listener.fileno()],
                cwd=_ROOT,
            )

    def run(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        stdin: bytes,
        timeout: float,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end, as `subprocess.run` does."""
        ours, theirs = zip(os.pipe()[::-1], os.pipe(), os.pipe(), strict=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LONGEST)
            link.connect(self._path)
            request = json.dumps([list(words), dict(environment), str(Path.cwd())])
            socket.send_fds(link, [request.encode()], theirs)
            for descriptor in theirs:
                os.close(descriptor)
            with ThreadPoolExecutor(3) as workers:
                workers.submit(_write_all, ours[0], stdin)
                output, errors = (workers.submit(_read_all, each) for each in ours[1:])
                pid = int(link.recv(32))
                link.settimeout(timeout)
                try:
                    status = int(link.recv(32))
                except TimeoutError:
                    os.kill(pid, signal.SIGKILL)
                    raise subprocess.TimeoutExpired(list(words), timeout) from None
                except BaseException:
                    # Whoever ends the tests waits for no command.
                    os.kill(pid, signal.SIGKILL)
                    raise
            return subprocess.CompletedProcess(
                list(words), status, output.result(), errors.result()
            )

    def close(self) -> None:
        """End the process; its commands have ended."""
        self._process.communicate()


@contextlib.contextmanager
def started() -> Iterator[Forks]:
    """The process, until the end of the block."""
    with tempfile.TemporaryDirectory(prefix="cerne-", dir="/tmp") as directory:
        forks = Forks(Path(directory))
        try:
            yield forks
        finally:
            forks.close()


def _write_all(descriptor: int, data: bytes) -> None:
    with open(descriptor, "wb") as file, contextlib.suppress(BrokenPipeError):
        file.write(data)
        file.flush()


def _read_all(descriptor: int) -> bytes:
    with open(descriptor, "rb") as file:
        return file.read()


def import_all() -> None:
    """Import what commands import."""
    for name in _IMPORTED:
        package = importlib.import_module(f"cerne.{name}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    gc.freeze()


def _serve(listener: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        ready, _, _ = select.select([listener.fileno(), 0], [], [])
        if 0 in ready:
            return
        link, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _answer(link)
            return
        link.close()


def _answer(link: socket.socket) -> None:
    """Run one command in a fork, and say its number and its status."""
    request, descriptors, _, _ = socket.recv_fds(link, _LONGEST, 3)
    words, environment, directory = json.loads(request)
    pid = os.fork()
    if pid == 0:
        link.close()
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.chdir(directory)
        os.environ.clear()
        os.environ.update(environment)
        _command(words)
        return
    for descriptor in descriptors:
        os.close(descriptor)
    link.send(b"%d" % pid)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    link.send(b"%d" % status)


def _command(words: list[str]) -> None:
    """Be the command line, which exits by itself."""
    from cerne.cli import main

    sys.argv = words
    main()


if __name__ == "__main__":
    import_all()
    _serve(socket.socket(fileno=int(sys.argv[1])))
