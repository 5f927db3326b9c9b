"""The QEMU Machine Protocol, which both engines' processes speak."""

from cerne.engine.qmp.client import LOOK_TIMEOUT as LOOK_TIMEOUT
from cerne.engine.qmp.client import QmpClient as QmpClient
