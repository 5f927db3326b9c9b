"""The network namespace of a holder (network_namespaces(7), user_namespaces(7)).

With CAP_SYS_ADMIN and CAP_NET_ADMIN it is a plain one. Without them the holder first makes a user
namespace, in which its user keeps its number and has all capabilities over what it makes there.

The process stays in the host's network, where it has the host's sockets; one thread is in the
namespace, and makes there what belongs there: a socket stays where it was made, and a process that
the thread starts is in the namespace too.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import ParamSpec, TypeVar

from cerne.errors import HostError
from cerne.vmm.jail import system
from cerne.vmm.jail.system import LACKING, Namespace

NET_BIND_SERVICE, NET_ADMIN, NET_RAW, SYS_ADMIN = 10, 12, 13, 21
"""Numbers of capabilities (capabilities(7))."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


def privileged() -> bool:
    """Whether this process may make network namespaces, and change the host's network."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            needed = 1 << SYS_ADMIN | 1 << NET_ADMIN
            return int(value, 16) & needed == needed
    return False


def enter_user_namespace(anchor: int | None) -> None:
    """Have a new user namespace, or that of the process `anchor`; for a process with one thread.

    Programs that this process starts have the capabilities for networks too.

    Raises:
        HostError: this host does not let this user do it.
    """
    try:
        if anchor is None:
            _make_user_namespace()
        else:
            with Path(f"/proc/{anchor}/ns/user").open("rb") as namespace:
                system.enter(namespace.fileno(), Namespace.USER)
        system.set_capabilities(frozenset({NET_BIND_SERVICE, NET_ADMIN, NET_RAW, SYS_ADMIN}))
    except OSError as error:
        raise HostError(
            f"this host does not let this user make a user namespace: {error.strerror}",
            hint=_allowing(error),
        ) from error


def _make_user_namespace() -> None:
    user, group = os.geteuid(), os.getegid()
    system.unshare(Namespace.USER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def _allowing(error: OSError) -> str:
    """The command that allows user namespaces here."""
    apparmor = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
    debian = Path("/proc/sys/kernel/unprivileged_userns_clone")
    if debian.exists() and debian.read_text().strip() == "0":
        return "sudo sysctl kernel.unprivileged_userns_clone=1"
    if apparmor.exists() and apparmor.read_text().strip() == "1":
        return "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0"
    if error.errno in LACKING:
        return "sudo sysctl user.max_user_namespaces=15000; or run cerne as root"
    return "run cerne as root"


class Worker:
    """A thread that does what it is given, one thing after another."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def call(self, action: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Do this in the thread, and return what it returns or raise what it raises."""
        future: Future[_T] = Future()

        def do() -> None:
            try:
                future.set_result(action(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001
                future.set_exception(error)

        self._work.put(do)
        return future.result()

    def _run(self) -> None:
        while True:
            self._work.get()()


class Inside(Worker):
    """A thread in the network namespace."""

    def __init__(self, anchor: int | None) -> None:
        """Make the namespace, or enter that of the process `anchor`.

        Raises:
            HostError: it failed.
        """
        super().__init__()
        try:
            self.descriptor = self.call(_enter_network, anchor)
        except OSError as error:
            raise HostError(
                f"making a network namespace failed: {error.strerror}",
                hint="see whether a container or a limit forbids it: unshare --net true",
            ) from error


def _enter_network(anchor: int | None) -> int:
    """Enter the namespace; return its descriptor."""
    if anchor is not None:
        descriptor = os.open(f"/proc/{anchor}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        system.enter(descriptor, Namespace.NET)
        return descriptor
    system.unshare(Namespace.NET)
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
