"""The QEMU Machine Protocol, in which both engines' processes are spoken to."""

from cerne.engine.qmp.client import LOOK_TIMEOUT as LOOK_TIMEOUT
from cerne.engine.qmp.client import QmpClient as QmpClient
