"""For every test: no property test and no request fails because the machine is busy, and none makes it busier."""

import inspect
import os

import httpx
from hypothesis import settings

from tests.patience import HANG_S

# Two lanes of tests have two cores. A second thread of a toy's tensors would spin there for most of its time.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # noqa: TID251 - libraries read it, also in the processes that tests start

settings.register_profile("retort", deadline=None)
settings.load_profile("retort")

# What all of httpx takes where a call names no timeout: five seconds, which a loaded machine needs.
_default = inspect.signature(httpx.get).parameters["timeout"].default
_default.connect = _default.read = _default.write = _default.pool = HANG_S
