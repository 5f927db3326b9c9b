"""Plugs virtual CPUs into a QEMU machine (docs/cpu-hotplug.rst of QEMU).

They are plugged in in the order of their numbers, as those are at the start of a machine: a saved
machine has the same ones then, however it got them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cerne.engine.qmp.answers import mapping, mappings
from cerne.errors import EngineError
from cerne.units import counted

if TYPE_CHECKING:
    from cerne.engine.qmp import QmpClient

_PLACE = ("socket-id", "die-id", "cluster-id", "core-id", "thread-id")
_PRESENT = "qom-path"


def add_cpus(qmp: QmpClient, count: int) -> None:
    """Plug in CPUs until there are so many.

    Raises:
        EngineError: it has no room for so many, or plugging one in failed.
    """
    places = sorted(mappings(qmp.execute("query-hotpluggable-cpus")), key=_number)
    if count > len(places):
        raise EngineError(f"the machine has room for {counted(len(places), 'CPU')}")
    for number, place in enumerate(places[:count]):
        if _PRESENT not in place:
            properties = mapping(place.get("props"))
            device = {"driver": place.get("type"), "id": f"cpu{number}", **properties}
            qmp.execute("device_add", device)


def _number(place: Mapping[str, object]) -> tuple[int, ...]:
    properties = mapping(place.get("props"))
    numbers = (properties.get(name, 0) for name in _PLACE)
    return tuple(number if isinstance(number, int) else 0 for number in numbers)
