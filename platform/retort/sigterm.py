"""SIGTERM ends a job in good order: what runs is left as by Ctrl-C, and the process says so by its exit code."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from retort.errors import PreemptedError

_Handler = Callable[[int, FrameType | None], None]


class Terminated(KeyboardInterrupt):
    """SIGTERM, which stops whatever runs as Ctrl-C does."""


@contextlib.contextmanager
def preempted_by_sigterm() -> Iterator[None]:
    """Inside the block, in the main thread, SIGTERM stops what runs.

    Raises:
        PreemptedError: SIGTERM came.
    """
    try:
        with sigterm_handled(_terminate):
            yield
    except Terminated:
        raise PreemptedError(
            "told to end by SIGTERM before the work was done; what is finished is kept: "
            "run the same command again to go on"
        ) from None


@contextlib.contextmanager
def sigterm_handled(handler: _Handler) -> Iterator[None]:
    """Inside the block SIGTERM goes to ``handler``, in the main thread; elsewhere nothing changes."""
    if not _is_main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def sigterm_held() -> Iterator[Callable[[], None]]:
    """Inside the block SIGTERM waits; at the end it is raised again, for the handler from before.

    Yields:
        What holds it again after code below Python has changed the process's handler, as Ray's does twice.
    """
    came = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        del number, frame
        came = True

    def hold() -> None:
        if _is_main_thread():
            signal.signal(signal.SIGTERM, note)

    with sigterm_handled(note):
        yield hold
    if came:
        signal.raise_signal(signal.SIGTERM)


def _terminate(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise Terminated


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
