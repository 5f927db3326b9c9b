"""Commands in a guest, run by the real agent."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.waiting import PATIENCE

from cerne.errors import GuestError, GuestTimeoutError, InputError
from cerne.guest import ExitStatus, GuestAgent, GuestProcess, Output, Stream, TerminalSize
from cerne.host.process import ProcessIdentity

_BIG = bytes(range(256)) * 4096 * 50


def _text(process: GuestProcess) -> bytes:
    return b"".join(output.data for output in process)


def _read_until(process: GuestProcess, wanted: bytes) -> bytes:
    heard = b""
    while wanted not in heard:
        output = process.read(PATIENCE)
        assert output is not None, heard
        heard += output.data
    return heard


def test_status_and_streams(agent: GuestAgent) -> None:
    done = agent.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (done.status, done.signal) == (3, None)
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")


def test_a_signal_that_ends_it(agent: GuestAgent) -> None:
    done = agent.run(["sh", "-c", "kill -TERM $$"])
    assert (done.status, done.signal) == (128 + signal.SIGTERM, signal.SIGTERM)


def test_environment_and_directory(agent: GuestAgent) -> None:
    done = agent.run(
        ["sh", "-c", "pwd; echo $COLOUR; echo $PATH; echo $USER"],
        env={"COLOUR": "blue = green", "USER": "someone"},
        cwd="/usr",
    )
    assert done.stdout.splitlines() == [
        b"/usr",
        b"blue = green",
        b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        b"someone",
    ]


def test_path_of_the_request_is_searched(agent: GuestAgent, tmp_path: Path) -> None:
    program = tmp_path / "greet"
    program.write_text("#!/bin/sh\necho hello\n")
    program.chmod(0o755)
    assert agent.run(["greet"], env={"PATH": f"{tmp_path}:/bin"}).stdout == b"hello\n"


@pytest.mark.usefixtures("root")
def test_user_and_groups(agent: GuestAgent) -> None:
    assert agent.run(["id", "-un"], user="nobody").stdout == b"nobody\n"
    assert agent.run(["id", "-G"], user="4242:77").stdout == b"77\n"
    assert agent.run(["id", "-u"], user="4242").stdout == b"4242\n"


@pytest.mark.parametrize(
    ("argv", "cwd", "user", "words"),
    [
        (["no-such-program"], None, None, "cannot run no-such-program: No such file"),
        (["/etc/passwd"], None, None, "cannot run /etc/passwd: Permission denied"),
        (
            ["true"],
            "/no/such/directory",
            None,
            "directory /no/such/directory does not exist",
        ),
        (["true"], None, "no-such-user", "no user no-such-user"),
    ],
)
def test_what_cannot_be_started(
    agent: GuestAgent, argv: list[str], cwd: str | None, user: str | None, words: str
) -> None:
    with pytest.raises(GuestError, match=words):
        agent.run(argv, cwd=cwd, user=user)


@pytest.mark.parametrize(
    ("argv", "env"),
    [
        ([], {}),
        ([""], {}),
        (["a\0b"], {}),
        (["true"], {"A=B": "c"}),
        (["true"], {"": "c"}),
        (["true", "x" * 2_000_000], {}),
        (["true"] * 70_000, {}),
    ],
)
def test_nonsense_is_refused(agent: GuestAgent, argv: list[str], env: dict[str, str]) -> None:
    with pytest.raises(InputError):
        agent.run(argv, env=env)


def test_many_arguments(agent: GuestAgent) -> None:
    words = [f"word-{number}" for number in range(20_000)]
    done = agent.run(["sh", "-c", 'echo "$#"', "sh", *words])
    assert done.stdout == b"20000\n"


def test_arguments_that_are_no_utf8(agent: GuestAgent) -> None:
    assert agent.run(["echo", os.fsdecode(b"\xff\xfe")]).stdout == b"\xff\xfe\n"


def test_fifty_megabytes_both_ways(agent: GuestAgent) -> None:
    done = agent.run(["cat"], stdin=_BIG)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(_BIG).digest()


def test_input_from_a_file_and_from_an_iterator(agent: GuestAgent) -> None:
    assert agent.run(["cat"], stdin=io.BytesIO(b"a file")).stdout == b"a file"
    assert agent.run(["cat"], stdin=iter([b"one ", b"", b"two"])).stdout == b"one two"


def test_an_iterator_that_fails(agent: GuestAgent) -> None:
    def fail() -> Iterator[bytes]:
        yield b"begin"
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        agent.run(["cat"], stdin=fail())
    assert agent.run(["true"]).status == 0


def test_input_that_is_not_read(agent: GuestAgent) -> None:
    assert agent.run(["true"], stdin=_BIG).status == 0
    done = agent.run(["sh", "-c", "exec <&-; sleep 0.1; echo end"], stdin=_BIG[:1_000_000])
    assert done.stdout == b"end\n"


def test_a_child_left_behind_does_not_hold_the_end_up(agent: GuestAgent) -> None:
    done = agent.run(["sh", "-c", "sleep 1000 & echo $!"], timeout=PATIENCE)
    os.kill(int(done.stdout), signal.SIGKILL)


def test_time_limit(agent: GuestAgent) -> None:
    with pytest.raises(GuestTimeoutError, match=r"sleep was killed after 0\.2 s"):
        agent.run(["sleep", "1000"], timeout=0.2)
    assert agent.run(["true"]).status == 0


def test_output_that_nobody_reads_stops_the_process(agent: GuestAgent) -> None:
    with agent.popen(["sh", "-c", "yes | head -c 2000000; exit 7"]) as process:
        with pytest.raises(GuestTimeoutError):
            process._wait_until(lambda: process._end is not None, 0.3)
        assert process._unread <= 256 * 1024
        assert sum(len(output.data) for output in process) == 2_000_000
        assert process.wait() == ExitStatus(7)


def test_writing_while_another_thread_reads(agent: GuestAgent) -> None:
    with agent.popen(["cat"]) as process:

        def feed() -> None:
            for start in range(0, len(_BIG), 1_000_000):
                process.write(_BIG[start : start + 1_000_000])
            process.close_stdin()

        thread = threading.Thread(target=feed)
        thread.start()
        assert sum(len(output.data) for output in process) == len(_BIG)
        thread.join()


def test_a_conversation(agent: GuestAgent) -> None:
    with agent.popen(["cat"]) as process:
        process.write(b"hello")
        assert process.read(PATIENCE) == Output(Stream.STDOUT, b"hello")
        process.write(b"")
        process.close_stdin()
        process.close_stdin()
        assert process.read(PATIENCE) is None
        assert process.wait() == ExitStatus(0)


def test_signals(agent: GuestAgent) -> None:
    with agent.popen(["sleep", "1000"]) as process:
        process.signal(signal.SIGINT)
        assert process.wait(PATIENCE) == ExitStatus(130, signal.SIGINT)


def test_waiting_has_a_limit(agent: GuestAgent) -> None:
    with agent.popen(["sleep", "1000"]) as process:
        with pytest.raises(GuestTimeoutError, match="still runs"):
            process.wait(0.05)
        with pytest.raises(GuestTimeoutError, match="still runs"):
            process.read(0.01)


def test_a_terminal(agent: GuestAgent) -> None:
    with agent.popen(
        ["sh", "-c", "tty; stty size; stty -echo; echo ready; read line; stty size; echo $line"],
        env={"TERM": "dumb"},
        terminal=TerminalSize(24, 80),
    ) as process:
        before = _read_until(process, b"ready\r\n")
        assert before.startswith(b"/dev/pts/")
        assert b"24 80\r\n" in before
        process.resize(TerminalSize(50, 132))
        process.write(b"typed\n")
        assert _text(process) == b"50 132\r\ntyped\r\n"
        assert process.wait() == ExitStatus(0)


def test_keys_of_a_terminal(agent: GuestAgent) -> None:
    with agent.popen(["cat"], terminal=TerminalSize(24, 80)) as process:
        process.write(b"a\n")
        _read_until(process, b"a\r\na\r\n")
        process.write(b"\x03")
        assert process.wait(PATIENCE) == ExitStatus(130, signal.SIGINT)
    with agent.popen(["cat"], terminal=TerminalSize(24, 80)) as process:
        process.close_stdin()
        assert process.wait(PATIENCE) == ExitStatus(0)


def test_the_last_words_on_a_terminal(agent: GuestAgent) -> None:
    for _ in range(5):
        with agent.popen(
            ["sh", "-c", "yes | head -c 100000; echo last"], terminal=TerminalSize(24, 80)
        ) as process:
            assert _text(process).endswith(b"last\r\n")


def test_leaving_hangs_the_process_up(
    agent: GuestAgent, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    with agent.popen(["sh", "-c", "echo ready; sleep 1000"]) as process:
        _read_until(process, b"ready")
        pid = process.pid
    # The next session cleans the former one up before it answers.
    agent.run(["true"])
    eventually(lambda: ProcessIdentity.of(pid) is None)


@pytest.mark.parametrize("size", [(-1, 80), (24, 65536)])
def test_sizes_of_no_terminal(size: tuple[int, int]) -> None:
    with pytest.raises(InputError):
        TerminalSize(*size)


def test_info(agent: GuestAgent) -> None:
    info = agent.info()
    assert info.kernel == os.uname().release
    assert info.hostname == os.uname().nodename
    assert info.architecture == "x86_64"
    assert info.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert info.uptime > 0


def test_a_host_is_not_shut_down(agent: GuestAgent) -> None:
    for refused in (agent.shutdown, agent.set_time, agent.freeze, agent.thaw):
        with pytest.raises(GuestError, match="does not serve a guest"):
            refused()
    with pytest.raises(GuestError, match="does not serve a guest"):
        agent.add_entropy(b"x")
    with pytest.raises(GuestError, match="does not serve a guest"):
        agent.renew(hostname="one", mac="02:00:00:00:00:01")


@pytest.mark.parametrize(("hostname", "mac"), [("", None), ("n" * 65, None), ("one", "02:00")])
def test_what_a_guest_cannot_be_named(agent: GuestAgent, hostname: str, mac: str | None) -> None:
    with pytest.raises(InputError):
        agent.renew(hostname=hostname, mac=mac)


@pytest.mark.parametrize("data", [b"", bytes(513)])
def test_amounts_of_entropy(agent: GuestAgent, data: bytes) -> None:
    with pytest.raises(InputError):
        agent.add_entropy(data)


@pytest.mark.parametrize("seconds", [0, -1, 1e9])
def test_time_limits_of_a_freeze(agent: GuestAgent, seconds: float) -> None:
    with pytest.raises(InputError):
        agent.freeze(seconds)


def test_input_without_end_leaves_no_thread(agent: GuestAgent) -> None:
    before = set(threading.enumerate())
    assert agent.run(["true"], stdin=itertools.repeat(b"x" * 1000)).status == 0
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE)
        assert not thread.is_alive()
