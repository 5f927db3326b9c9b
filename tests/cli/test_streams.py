"""Standard streams that are closed, full, or lead to a reader that has gone."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.every_command import Run
from tests.waiting import PATIENCE

from cerne.cli.failure import reported
from cerne.cli.streams import read_some, write_all
from cerne.errors import StreamError

_PREPARED = "from cerne.cli.streams import prepare; prepare(); import os, sys; "


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    home = tmp_path_factory.mktemp("home")
    environment = {**os.environ, "CERNE_HOME": str(home), "CERNE_CACHE": str(home / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.cli.every_command"],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        check=True,
    )
    return [Run(**found) for found in json.loads(done.stdout)]


def _named(runs: list[Run]) -> list[tuple[str, str, int, str]]:
    return [(" ".join(run.words), run.state, run.status, run.said) for run in runs]


def test_no_command_shows_a_traceback(runs: list[Run]) -> None:
    assert len(runs) > 100
    for words in ("Traceback", "Exception ignored", "Errno"):
        assert _named([run for run in runs if words in run.said]) == []


def test_a_status_tells_of_the_command_where_its_streams_are_closed(runs: list[Run]) -> None:
    usual = {" ".join(run.words): run.status for run in runs if run.state in ("0 closed", "1 open")}
    closed = [run for run in runs if run.state.endswith("closed") or run.state == "2 full"]
    assert _named([run for run in closed if run.status != usual[" ".join(run.words)]]) == []
    assert set(usual.values()) <= {0, 2, 3, 125}


def test_a_full_stdout_is_told_of(runs: list[Run]) -> None:
    full = [run for run in runs if run.state == "1 full"]
    assert _named([run for run in full if run.status != 11]) == []
    assert all("standard output failed: No space left on device" in run.said for run in full)


def test_a_reader_that_has_gone_ends_a_command_silently(runs: list[Run]) -> None:
    unread = [run for run in runs if run.state == "1 unread"]
    assert _named([run for run in unread if (run.status, run.said) != (141, "")]) == []


def _in_shell(code: str, streams: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" {streams}', sys.executable, _PREPARED + code],
        capture_output=True,
        check=False,
        timeout=PATIENCE,
    )


def test_nothing_else_becomes_a_standard_stream() -> None:
    code = "print([os.open('/', os.O_RDONLY)], file=open(os.environ['OUT'], 'w'))"
    read_end, write_end = os.pipe()
    with os.fdopen(read_end) as reader:
        environment = {**os.environ, "OUT": f"/dev/fd/{write_end}"}
        subprocess.run(
            ["bash", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable, _PREPARED + code],
            env=environment,
            pass_fds=[write_end],
            check=True,
            timeout=PATIENCE,
        )
        os.close(write_end)
        assert int(reader.read().strip("[]\n")) > 2


def test_closed_streams_are_empty_and_take_everything() -> None:
    done = _in_shell("print('x'); print('y', file=sys.stderr); exit(len(sys.stdin.read()))", "<&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"x\n", b"y\n")
    assert _in_shell("print('x'); sys.stdout.flush()", ">&- 2>&-").returncode == 0


def test_text_that_the_encoding_lacks_is_escaped() -> None:
    done = _in_shell("print('→ \\udc80')", "")
    assert done.returncode == 0
    latin = subprocess.run(
        [sys.executable, "-c", _PREPARED + "print('a → b')"],
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        check=True,
    )
    assert latin.stdout == b"a \\u2192 b\n"


def test_an_end_of_the_interpreter_is_quiet() -> None:
    """It flushes stdout once more, after the failure was told."""
    code = (
        "from cerne.cli.failure import reported\n"
        "with reported(): print('x' * 100000); sys.stdout.flush()"
    )
    done = _in_shell("\n" + code, ">/dev/full")
    assert done.returncode == 11
    assert done.stderr.count(b"\n") == 2


def test_a_pipe_that_is_not_waited_for_takes_all() -> None:
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    data = bytes(1 << 20)
    code = "import os, sys; n = 0\nwhile d := os.read(0, 4096): n += len(d)\nprint(n)"
    with subprocess.Popen([sys.executable, "-c", code], stdin=readable, stdout=-1) as reader:
        os.close(readable)
        write_all(writable, data)
        os.close(writable)
        assert reader.communicate(timeout=PATIENCE)[0] == b"%d\n" % len(data)


def test_input_that_fails() -> None:
    with Path("/proc/self/mem").open("rb") as unreadable, pytest.raises(StreamError, match="error"):
        read_some(unreadable.fileno())


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (OSError(errno.ENOENT, "No such file or directory", "/a"), 1, "refused /a: No such file"),
        (OSError(errno.ENOSPC, "No space left on device"), 11, "refused an operation: No space"),
        (OSError("odd"), 1, "refused an operation: odd"),
        (io.UnsupportedOperation("fileno"), 1, "fileno"),
    ],
)
def test_what_the_system_refuses_is_told_in_words(
    error: OSError, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught, reported():
        raise error
    assert caught.value.code == status
    told = capsys.readouterr().err
    assert said in told
    assert "Errno" not in told
