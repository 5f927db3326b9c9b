"""Limits the size of the console log that QEMU writes (`cerne.vmm.jail.log_limit`)."""

from __future__ import annotations

from cerne.engine.opened import Opened
from cerne.engine.plan import LaunchPlan
from cerne.vmm.console_log import LARGEST_LOG
from cerne.vmm.jail.program import Log

ROLE = "console-log"
"""The role of the process that does so."""


def limited_log(plan: LaunchPlan, opened: Opened) -> Log:
    """The console log for the program that starts QEMU, which gets what is opened.

    Raises:
        StorageError: opening it failed.
    """
    log, registration = opened.log(plan.console_log), opened.registration(plan.runtime, ROLE)
    return Log(log, registration, LARGEST_LOG)
