"""The report of this host without its store, apart from `Host`.

`cerne doctor` is typed before there is a home, and because a home is damaged: opening the store
must not be needed for the answer. `Host.report` gives the same report.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from cerne.manager.home import Home

if TYPE_CHECKING:
    from cerne.host.report import Report


def report(home: Home | None = None) -> Report:
    """What this host can do for virtual machines, and what to improve.

    The speed of guests is measured once and kept in the home, by default this user's.
    """
    from cerne.engine.select import ENGINES, choose_engine
    from cerne.host.report import make_report
    from cerne.network.finding import network_finding

    speeds = (home or Home.of_this_user()).guest_speed
    able = {name: asdict(choose_engine(name, speeds).capabilities) for name in ENGINES}
    auto = choose_engine("auto", speeds).name
    return make_report(speeds, auto, able, [network_finding()])
