"""For every test: no property test and no request fails because the machine is busy."""

import inspect

import httpx
from hypothesis import settings

from tests.patience import HANG_S

settings.register_profile("retort", deadline=None)
settings.load_profile("retort")

# What all of httpx takes where a call names no timeout: five seconds, which a loaded machine needs.
_default = inspect.signature(httpx.get).parameters["timeout"].default
_default.connect = _default.read = _default.write = _default.pool = HANG_S
