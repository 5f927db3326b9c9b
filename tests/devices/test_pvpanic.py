"""The panic notifier: what it says of itself, and whom it calls."""

from __future__ import annotations

from cerne.devices.pvpanic import CRASH_LOADED, PANICKED, SHUT_DOWN, PanicNotifier


def test_it_says_what_it_understands_and_hears_it() -> None:
    heard: list[str] = []
    notifier = PanicNotifier(
        lambda: heard.append("panicked"),
        lambda: heard.append("loaded"),
        lambda: heard.append("shut down"),
    )
    assert notifier.read_config(0, 4) == 0x00111B36
    assert notifier.read_bar(0, 0, 1) == PANICKED | CRASH_LOADED | SHUT_DOWN
    assert notifier.read_bar(0, 1, 4) == 0
    for offset, value in ((1, PANICKED), (0, 0), (1, SHUT_DOWN), (0, 0xF8)):
        notifier.write_bar(0, offset, 1, value)
    assert heard == []
    notifier.write_bar(0, 0, 1, CRASH_LOADED)
    notifier.write_bar(0, 0, 1, CRASH_LOADED)
    notifier.write_bar(0, 0, 1, PANICKED)
    notifier.write_bar(0, 0, 4, PANICKED | CRASH_LOADED)
    assert heard == ["loaded", "panicked", "panicked"]
    notifier.power_on()
    notifier.write_bar(0, 0, 1, CRASH_LOADED)
    notifier.write_bar(0, 0, 1, SHUT_DOWN)
    assert heard[3:] == ["loaded", "shut down"]
