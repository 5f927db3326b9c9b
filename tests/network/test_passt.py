"""Whether passt has a way out of the host."""

from __future__ import annotations

from pathlib import Path

from cerne.network.passt import has_way_out

_HEAD = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
_NEAR = "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
_FAR = "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"


def test_only_a_default_route_is_a_way_out(tmp_path: Path) -> None:
    routes = tmp_path / "route"
    assert not has_way_out(routes)
    routes.write_text(_HEAD + _NEAR)
    assert not has_way_out(routes)
    routes.write_text(_HEAD + _NEAR + _FAR)
    assert has_way_out(routes)
