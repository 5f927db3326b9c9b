"""The QMP client against a server of a few lines."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeAlias

import pytest
from tests.waiting import PATIENCE

from cerne.engine.qmp import QmpClient
from cerne.engine.qmp.session import QmpClosedError, QmpCommandError, QmpTimeoutError
from cerne.errors import EngineError

Message: TypeAlias = dict[str, object]


class Server(Protocol):
    path: Path
    commands: list[str]

    def close(self) -> None: ...


Serve: TypeAlias = Callable[..., Server]

SHUTDOWN: Message = {
    "event": "SHUTDOWN",
    "data": {"guest": True},
    "timestamp": {"seconds": 10, "microseconds": 500_000},
}
RTC: Message = {"event": "RTC_CHANGE", "timestamp": {"seconds": 9, "microseconds": 0}}


def running(command: Message) -> list[Message]:
    if command["execute"] == "query-status":
        return [{"return": {"status": "running", "running": True}}]
    return [{"return": {}}]


def test_commands_are_sent_in_order_after_negotiation(serve: Serve) -> None:
    server = serve(running)
    with QmpClient(server.path) as qmp:
        assert qmp.status() == "running"
        qmp.stop()
        qmp.cont()
        qmp.system_powerdown()
    assert server.commands == [
        "qmp_capabilities",
        "query-status",
        "stop",
        "cont",
        "system_powerdown",
    ]


def test_a_refusal_keeps_the_class_of_the_error(serve: Serve) -> None:
    server = serve(lambda _: [{"error": {"class": "CommandNotFound", "desc": "no such command"}}])
    with QmpClient(server.path) as qmp, pytest.raises(QmpCommandError) as caught:
        qmp.execute("frobnicate")
    assert caught.value.error_class == "CommandNotFound"
    assert caught.value.message == "the machine refused frobnicate: no such command"


def test_arguments_arrive(serve: Serve) -> None:
    server = serve(lambda command: [{"return": command["arguments"]}])
    with QmpClient(server.path) as qmp:
        assert qmp.execute("balloon", {"value": 1}) == {"value": 1}


def test_events_are_collected(serve: Serve) -> None:
    server = serve(lambda _: [RTC, SHUTDOWN, {"return": {}}])
    with QmpClient(server.path) as qmp:
        qmp.execute("anything")
        assert [event.name for event in qmp.events()] == ["RTC_CHANGE", "SHUTDOWN"]
        assert qmp.events() == ()


def test_waiting_for_an_event_drops_the_others(serve: Serve) -> None:
    server = serve(lambda _: [{"return": {}}, RTC, SHUTDOWN])
    with QmpClient(server.path) as qmp:
        qmp.execute("anything")
        event = qmp.wait_event("SHUTDOWN", "RESET", timeout=PATIENCE)
    assert (event.name, event.data, event.time) == ("SHUTDOWN", {"guest": True}, 10.5)


def test_waiting_for_an_event_ends_with_the_connection(serve: Serve) -> None:
    def script(command: Message) -> list[Message] | None:
        return [{"return": {}}] if command["execute"] == "first" else None

    server = serve(script)
    with QmpClient(server.path) as qmp:
        qmp.execute("first")
        with pytest.raises(QmpClosedError):
            qmp.execute("second")
        with pytest.raises(EngineError, match="closed"):
            qmp.wait_event("SHUTDOWN", timeout=PATIENCE)


def test_an_answer_that_does_not_come_times_out(serve: Serve) -> None:
    server = serve(lambda _: [])
    with QmpClient(server.path) as qmp, pytest.raises(QmpTimeoutError):
        qmp.execute("anything", timeout=0.05)


def test_a_process_that_is_stopped_meanwhile_is_not_waited_for(serve: Serve) -> None:
    looks = []

    def stopped() -> bool:
        looks.append(True)
        return len(looks) > 1

    server = serve(lambda _: [])
    with QmpClient(server.path, timeout=1000, stopped=stopped) as qmp:
        with pytest.raises(QmpTimeoutError):
            qmp.execute("cerne-save")
        assert len(looks) == 2


def test_quit_is_content_with_a_process_that_is_gone(serve: Serve) -> None:
    server = serve(lambda _: None)
    with QmpClient(server.path) as qmp:
        qmp.quit()
    assert server.commands == ["qmp_capabilities", "quit"]


def test_the_second_client_waits_its_turn(serve: Serve) -> None:
    server = serve(running)
    statuses: list[str] = []

    def second() -> None:
        with QmpClient(server.path) as qmp:
            statuses.append(qmp.status())

    threads = [threading.Thread(target=second) for _ in range(6)]
    with QmpClient(server.path) as first:
        for thread in threads:
            thread.start()
        assert first.status() == "running"
        assert statuses == []
    for thread in threads:
        thread.join(PATIENCE)
    assert statuses == ["running"] * 6


def test_a_server_that_greets_nobody_times_out(serve: Serve) -> None:
    server = serve(running, greeting=b"")
    with pytest.raises(QmpTimeoutError), QmpClient(server.path, timeout=0.05):
        pass


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH\r\n", b"{}\r\n", b"[1]\r\n"])
def test_what_is_no_qmp_is_refused(serve: Serve, greeting: bytes) -> None:
    server = serve(running, greeting=greeting)
    with pytest.raises(EngineError, match="does not speak QMP"), QmpClient(server.path):
        pass


def test_a_missing_socket_is_named(directory: Path) -> None:
    with pytest.raises(EngineError, match=r"none\.sock"), QmpClient(directory / "none.sock"):
        pass


def test_a_socket_that_nobody_serves_is_named(serve: Serve) -> None:
    server = serve(running)
    server.close()
    with pytest.raises(EngineError, match="refused"), QmpClient(server.path):
        pass


def test_a_client_that_is_not_open_says_so(directory: Path) -> None:
    with pytest.raises(EngineError, match="not connected"):
        QmpClient(directory / "none.sock").status()


def test_an_answer_without_end_is_refused_in_words(serve: Serve) -> None:
    server = serve(
        lambda command: [{"return": {} if "cap" in command["execute"] else "a" * 11_000_000}]
    )
    with (
        pytest.raises(EngineError, match="closed its QMP connection"),
        QmpClient(server.path) as qmp,
    ):
        qmp.execute("anything")


@pytest.mark.parametrize(
    "stamp", [{}, {"seconds": "a", "microseconds": 0}, {"seconds": 0, "microseconds": []}, 1]
)
def test_an_event_at_no_time_is_refused_in_words(serve: Serve, stamp: object) -> None:
    event: Message = {"event": "SHUTDOWN", "timestamp": stamp}
    server = serve(
        lambda command: [{"return": {}}, *([event] if command["execute"] == "x" else [])]
    )
    with QmpClient(server.path) as qmp:
        qmp.execute("x")
        with pytest.raises(EngineError, match="malformed event"):
            qmp.wait_event("SHUTDOWN", timeout=PATIENCE)
