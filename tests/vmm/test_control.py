"""The control socket of a machine that runs: QMP's own tools, and clients that mean no good."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.guests.harness import Running, running
from tests.waiting import PATIENCE

from cerne.engine.qmp import QmpClient
from cerne.errors import EngineError

_LOOP = bytes.fromhex("ebfe")
_DOCUMENT = Path(__file__).parents[2] / "docs" / "qmp.md"
_PROMPT = r"\(QEMU\) "

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.fixture
def machine(
    home: Path, kvm_device: Path, small_kernel: Callable[[Path, bytes], Path]
) -> Iterator[Running]:
    """A machine of two processors, of which one loops and the other waits to be started."""
    with running(home, small_kernel(home / "kernel", _LOOP), cpus=2) as made:
        with QmpClient(made.qmp, timeout=PATIENCE) as client:
            client.status()
        yield made


def _commands(machine: Running) -> list[str]:
    with QmpClient(machine.qmp) as client:
        answer = client.execute("query-commands")
    assert isinstance(answer, list)
    return [each["name"] for each in answer]


def _connect(machine: Running) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(machine.qmp))
    connection.settimeout(PATIENCE)
    return connection


def _answers(machine: Running, requests: list[object]) -> list[dict[str, object]]:
    """What a machine answers to requests of a client that has negotiated; no events."""
    with _connect(machine) as connection:
        for request in ({"execute": "qmp_capabilities"}, *requests):
            connection.sendall(json.dumps(request).encode() + b"\n")
        lines = connection.makefile("rb")
        answers: list[dict[str, object]] = []
        while len(answers) < len(requests) + 2:
            line = lines.readline()
            assert line, "the machine hung up"
            answer = json.loads(line)
            if "event" not in answer:
                answers.append(answer)
    return answers[2:]


def test_the_shell_of_qmp_works_on_it(machine: Running) -> None:
    command = ["-m", "qemu.qmp.qmp_shell", str(machine.qmp)]
    shell = pexpect.spawn(sys.executable, command, timeout=PATIENCE, encoding="utf-8")
    with contextlib.closing(shell):
        shell.expect("Connected to QEMU")
        for words, answer in (
            ("stop", r'{"return": {}}'),
            ("query-status", '"paused"'),
            ("query-cpus-fast", '"thread-id"'),
            ("cont", r'{"return": {}}'),
            ("nonsense", "CommandNotFound"),
            ("stop now=true", "GenericError"),
        ):
            shell.expect(_PROMPT)
            shell.sendline(words)
            shell.expect(re.escape(answer))
        shell.expect(_PROMPT)
        shell.sendline("quit")
        assert machine.end() == (True, "it was told to quit")


def test_every_command_and_event_is_described(machine: Running) -> None:
    words = _DOCUMENT.read_text()
    assert [name for name in _commands(machine) if f"`{name}`" not in words] == []
    sources = (_DOCUMENT.parents[1] / "src" / "cerne" / "vmm").glob("*.py")
    events = {
        event for source in sources for event in re.findall(r'emit\(\s*"(\w+)"', source.read_text())
    }
    assert {"RESET", "STOP"} <= events
    assert [event for event in events if f"`{event}`" not in words] == []


def test_what_is_wrong_is_answered_with_the_class_that_clients_know(machine: Running) -> None:
    wrong: list[tuple[object, str]] = [
        (7, "GenericError"),
        ({"execute": 7}, "GenericError"),
        ({"execute": "stop", "argument": {}}, "GenericError"),
        ({"execute": "stop", "arguments": []}, "GenericError"),
        ({"execute": "stop", "arguments": {"when": "now"}}, "GenericError"),
        ({"execute": "none"}, "CommandNotFound"),
        ({"execute": "qmp_capabilities"}, "CommandNotFound"),
        ({"execute": "device_del", "arguments": {"id": "none"}}, "DeviceNotFound"),
        ({"execute": "cerne-save", "arguments": {"state": 0}}, "GenericError"),
    ]
    answers = _answers(machine, [request for request, _ in wrong])
    kinds = [answer["error"]["class"] for answer in answers]  # type: ignore[index]
    assert kinds == [kind for _, kind in wrong]


def test_capabilities_that_there_are_not_are_refused(machine: Running) -> None:
    with _connect(machine) as connection:
        lines = connection.makefile("rb")
        lines.readline()
        for request, said in (
            (b'{"execute": "stop"}', b"CommandNotFound"),
            (b'{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}', b"GenericError"),
            (b'{"execute": "qmp_capabilities", "arguments": {"enable": []}}', b"return"),
            (b'{"execute": "query-status", "id": 1}', b"running"),
        ):
            connection.sendall(request)
            assert said in lines.readline()


def test_odd_requests_do_no_harm(machine: Running) -> None:
    names = [name for name in _commands(machine) if name != "quit"]
    request = st.fixed_dictionaries(
        {"execute": st.sampled_from(names) | _json},
        optional={"arguments": st.dictionaries(st.text(max_size=9), _json) | _json, "id": _json},
    )
    known = st.sampled_from(
        ["id", "slot", "files", "disks", "children", "state", "memory", "report", "resume", "value"]
    )
    pointed = st.fixed_dictionaries(
        {"execute": st.sampled_from(names), "arguments": st.dictionaries(known, _json)}
    )

    @settings(max_examples=60, suppress_health_check=list(HealthCheck), deadline=None)
    @given(st.lists(request | pointed, max_size=5))
    def try_them(requests: list[object]) -> None:
        assert len(_answers(machine, requests)) == len(requests)

    try_them()
    with QmpClient(machine.qmp) as client:
        client.cont()
        assert client.status() == "running"


def test_a_client_that_does_not_read_is_dropped(machine: Running) -> None:
    with _connect(machine) as idle, QmpClient(machine.qmp) as client:
        idle.sendall(b'{"execute": "qmp_capabilities"}')
        # Until the answers that nobody takes are too many.
        with pytest.raises(OSError, match=r"reset|pipe"):
            while True:
                idle.sendall(b'{"execute": "query-commands"}' * 100)
        assert client.status() == "running"


def test_no_crowd_keeps_others_from_a_machine_for_good(
    machine: Running, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    with contextlib.ExitStack() as crowd:
        for _ in range(40):
            crowd.enter_context(_connect(machine))
        with pytest.raises(EngineError), QmpClient(machine.qmp):
            pass
    # It notices only in its own time that they have gone.
    eventually(lambda: _status(machine) == "running")


def _status(machine: Running) -> str:
    with contextlib.suppress(EngineError), QmpClient(machine.qmp) as client:
        return client.status()
    return "refused"
