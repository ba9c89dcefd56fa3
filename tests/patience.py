"""How long a test waits: for an event, up to a limit that only a hang reaches, however busy the machine is.

``tests/contracts/test_patience.py`` holds that nothing else in the tests is a limit of seconds.
"""

import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

HANG_S = 900.0
"""Whatever takes longer hangs. pytest's own limit, in pyproject.toml, leaves room for some of these."""
HANG_MS = 1000.0 * HANG_S
"""The same for browsers."""
ONE_TRY_S = 10.0
"""Of a question that is asked again, or of an end that is forced afterwards: it decides no test."""


def patient(tab: Any) -> Any:
    """A browser's page whose waits, and what is expected of it, have that limit."""
    from playwright.sync_api import expect

    tab.set_default_timeout(HANG_MS)
    expect.set_options(timeout=HANG_MS)
    return tab


def comes(is_there: Callable[[], T], *, every_s: float = 0.05) -> T:
    """Wait until something is true, and return it; what is false after ``HANG_S`` is returned as it is."""
    deadline = time.monotonic() + HANG_S
    while not (found := is_there()) and time.monotonic() < deadline:
        time.sleep(every_s)
    return found
