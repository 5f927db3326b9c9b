"""Ports of the host that a machine may reach."""

from __future__ import annotations

import pytest

from cerne.errors import InputError
from cerne.spec.machine import MachineSpec, machine_spec


def test_ports_are_numbers_or_texts_and_stay_with_copies() -> None:
    spec = machine_spec(name="m", image="tiny", host_access=["8000", 53], ports=["80:80"])
    assert spec.nics[0].host_access == (8000, 53)
    copy = spec.copied().on_network("user")
    assert copy.nics[0].host_access == (8000, 53)
    assert copy.ports == ()
    assert MachineSpec.model_validate_json(spec.model_dump_json()) == spec


def test_a_machine_without_it_is_written_as_before() -> None:
    assert "host_access" not in machine_spec(name="m", image="tiny").model_dump_json()


@pytest.mark.parametrize("wrong", ["0", "65536", "http", "80:80", "-1", True, 1.5, "8" * 5000])
def test_what_is_not_a_port_is_refused(wrong: object) -> None:
    with pytest.raises(InputError, match="is not a port of this host") as refused:
        machine_spec(name="m", image="tiny", host_access=[wrong])
    assert "--host-access 8000" in refused.value.hint


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"network": "tap:tap0", "host_access": [80]}, "has no access to ports of this host"),
        ({"network": "user", "host_access": [80, "80"]}, "80"),
        ({"network": "none", "host_access": [80]}, "none"),
    ],
)
def test_what_makes_no_network_of_that_kind_is_refused(
    fields: dict[str, object], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        machine_spec(name="m", image="tiny", **fields)
