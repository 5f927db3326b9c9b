"""The system calls of the VMM's process, once its walls are up.

`scripts/measure-syscalls` lists those that a run really makes, and compares them with these. A call
that is not here fails with EPERM, and one of `DANGEROUS` ends the process: no error of ours makes
it. The numbers are those of x86-64.
"""

from __future__ import annotations

import errno

from cerne.vmm.jail.bpf import KILL, Condition, Rule, fail

ALLOWED = {
    # Files, sockets and pipes that are open.
    "read": 0,
    "write": 1,
    "close": 3,
    "fstat": 5,
    "lseek": 8,
    "pread64": 17,
    "pwrite64": 18,
    "readv": 19,
    "writev": 20,
    "dup": 32,
    "dup2": 33,
    "sendto": 44,
    "recvfrom": 45,
    "sendmsg": 46,
    "recvmsg": 47,
    "shutdown": 48,
    "getsockname": 51,
    "getpeername": 52,
    "setsockopt": 54,
    "getsockopt": 55,
    "fsync": 74,
    "fdatasync": 75,
    "ftruncate": 77,
    "fallocate": 285,
    "accept4": 288,
    "dup3": 292,
    "pipe2": 293,
    "preadv": 295,
    "pwritev": 296,
    "preadv2": 327,
    "pwritev2": 328,
    "newfstatat": 262,
    "close_range": 436,
    # To reach a program's socket in an open directory (cerne.vmm.reach).
    "connect": 42,
    "chdir": 80,
    "fchdir": 81,
    # Waiting.
    "poll": 7,
    "select": 23,
    "ppoll": 271,
    "epoll_wait": 232,
    "epoll_ctl": 233,
    "epoll_pwait": 281,
    "eventfd2": 290,
    "epoll_create1": 291,
    "nanosleep": 35,
    "clock_nanosleep": 230,
    "futex": 202,
    "restart_syscall": 219,
    # Memory.
    "munmap": 11,
    "brk": 12,
    "mremap": 25,
    "msync": 26,
    "mincore": 27,
    "madvise": 28,
    # Threads, signals, the end.
    "rt_sigaction": 13,
    "rt_sigprocmask": 14,
    "rt_sigreturn": 15,
    "sched_yield": 24,
    "getpid": 39,
    "exit": 60,
    "wait4": 61,
    "gettid": 186,
    "sched_getaffinity": 204,
    "setsid": 112,
    "sigaltstack": 131,
    "set_tid_address": 218,
    "exit_group": 231,
    "set_robust_list": 273,
    "membarrier": 324,
    "rseq": 334,
    # The host's time and randomness.
    "gettimeofday": 96,
    "clock_gettime": 228,
    "getrandom": 318,
}
"""Calls with any arguments."""

_PROTECTION, _EXECUTE = 2, 4
_KVM, _VHOST, _TUN = 0xAE00, 0xAF00, 0x5400
_TYPE = 0xFF00
_NAMESPACES = 0x7E02_0080
_KICK = 34
_UNIX = 1
# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC.
_DESCRIPTOR_COMMANDS = (0, 1, 2, 3, 4, 1030)

CHECKED = {
    # Of KVM, vhost and taps; the last have the type of terminals' and of FIONBIO too.
    "ioctl": Rule(16, conditions=(Condition(1, (_KVM, _VHOST, _TUN), _TYPE),)),
    # No new code.
    "mmap": Rule(9, conditions=(Condition(_PROTECTION, (0,), _EXECUTE),)),
    "mprotect": Rule(10, conditions=(Condition(_PROTECTION, (0,), _EXECUTE),)),
    # Threads and forks, but no namespaces.
    "clone": Rule(56, conditions=(Condition(0, (0,), _NAMESPACES),)),
    # Its flags are in memory, where no filter sees them; the C library calls clone then.
    "clone3": Rule(435, fail(errno.ENOSYS)),
    # A vCPU's kick, for which each VMM has an empty handler.
    "tgkill": Rule(234, conditions=(Condition(2, (_KICK,)),)),
    "socket": Rule(41, conditions=(Condition(0, (_UNIX,)),)),
    "fcntl": Rule(72, conditions=(Condition(1, _DESCRIPTOR_COMMANDS),)),
}
"""Calls with some arguments alone."""

DANGEROUS = {
    "execve": 59,
    "ptrace": 101,
    "pivot_root": 155,
    "chroot": 161,
    "mount": 165,
    "umount2": 166,
    "reboot": 169,
    "init_module": 175,
    "delete_module": 176,
    "keyctl": 250,
    "add_key": 248,
    "request_key": 249,
    "unshare": 272,
    "perf_event_open": 298,
    "open_by_handle_at": 304,
    "setns": 308,
    "process_vm_readv": 310,
    "process_vm_writev": 311,
    "finit_module": 313,
    "kexec_load": 246,
    "kexec_file_load": 320,
    "bpf": 321,
    "execveat": 322,
    "userfaultfd": 323,
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsmount": 432,
    "pidfd_getfd": 438,
}
"""Calls that end the process."""

VMM_CALLS = (
    *CHECKED.values(),
    *(Rule(number) for number in ALLOWED.values()),
    *(Rule(number, KILL) for number in DANGEROUS.values()),
)
"""The rules of the VMM's process."""

_SETUID_OR_SETGID = 0o6000


def _without_setuid(number: int, argument: int) -> Rule:
    return Rule(number, conditions=(Condition(argument, (0,), _SETUID_OR_SETGID),))


NO_SETUID_FILES = (
    _without_setuid(2, 2),  # open
    _without_setuid(85, 1),  # creat
    _without_setuid(90, 1),  # chmod
    _without_setuid(91, 1),  # fchmod
    _without_setuid(133, 1),  # mknod
    _without_setuid(257, 3),  # openat
    _without_setuid(259, 2),  # mknodat
    _without_setuid(268, 2),  # fchmodat
    _without_setuid(452, 2),  # fchmodat2
    # Its mode is in memory, where no filter sees it; the others do the same.
    Rule(437, fail(errno.ENOSYS)),  # openat2
)
"""No file gets the bits by which who runs it becomes its owner or group (as RestrictSUIDSGID= of
systemd.exec(5))."""

_WRITE_OR_EXECUTE = 6

_NO_NEW_CODE = (
    # Libraries are mapped to be executed, and not to be written.
    Rule(9, conditions=(Condition(_PROTECTION, (0, 2, 4), _WRITE_OR_EXECUTE),)),  # mmap
    CHECKED["mprotect"],
    Rule(329, conditions=(Condition(_PROTECTION, (0,), _EXECUTE),)),  # pkey_mprotect
)
"""As MemoryDenyWriteExecute= of systemd.exec(5)."""

_OWN_ROOT = ("unshare", "mount", "umount2", "pivot_root")


def _of_program(*allowed: str) -> tuple[Rule, ...]:
    """The rules of a program that is not ours: what only an attack needs fails."""
    return (
        *NO_SETUID_FILES,
        CHECKED["clone"],
        CHECKED["clone3"],
        # Limits of this process alone.
        Rule(302, conditions=(Condition(0, (0,)),)),  # prlimit64
        *(
            Rule(number, fail(errno.EPERM))
            for name, number in DANGEROUS.items()
            if name not in ("execve", "execveat", *allowed)
        ),
    )


PROGRAM_CALLS = _of_program()
"""The rules of a program that is not ours, and that may make code, as TCG does."""

DISK_PROGRAM_CALLS = (*_of_program(), *_NO_NEW_CODE)
"""The rules of a program that serves a disk."""

CONFINING_PROGRAM_CALLS = (*_of_program(*_OWN_ROOT), *_NO_NEW_CODE)
"""The rules of a program that makes namespaces and an empty root for itself at its start."""

DIRECTORY_PROGRAM_CALLS = (
    # Its threads have working directories of their own.
    Rule(DANGEROUS["unshare"], conditions=(Condition(0, (0,), _NAMESPACES),)),
    *_of_program("chroot"),
    *_NO_NEW_CODE,
)
"""The rules of a program that serves a directory of the host."""
