"""How a job tells a person what it is doing: a bar on a terminal, plain lines elsewhere."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

_LINE_EVERY_S = 10.0


class Progress(Protocol):
    """What a job reports to; the jobs do not know whether a person, a log or nobody reads it."""

    def update(self, done: int, total: int, note: str) -> None:
        """So much of the present phase is done; ``note`` says what it is and how it goes."""
        ...

    def log(self, line: str) -> None:
        """One line that should stay visible."""
        ...


class QuietProgress:
    """Tells nobody."""

    def update(self, done: int, total: int, note: str) -> None:
        """Nothing."""
        del done, total, note

    def log(self, line: str) -> None:
        """Nothing."""
        del line


class PlainProgress:
    """Lines without colours or carriage returns: at most one update in ten seconds, and the last one of each phase."""

    def __init__(self, stream: TextIO, *, every_s: float = _LINE_EVERY_S) -> None:
        self._stream, self._every_s = stream, every_s
        self._last = -every_s
        self._finished: tuple[int, str] | None = None

    def update(self, done: int, total: int, note: str) -> None:
        """Write ``done/total note`` if the last line is old enough, or the phase is complete."""
        now = time.monotonic()
        complete = done >= total
        if complete and self._finished == (total, note):
            return
        if complete or now - self._last >= self._every_s:
            self._last, self._finished = now, (total, note) if complete else None
            self.log(f"{done}/{total} {note}")

    def log(self, line: str) -> None:
        """Write the line."""
        self._stream.write(line.rstrip("\n") + "\n")
        self._stream.flush()


class BarProgress:
    """A bar on a terminal; enter it as a context."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bars

        columns = (BarColumn(bar_width=30), MofNCompleteColumn(), TextColumn("{task.description}", markup=False))
        self._bars = Bars(*columns, console=Console(file=stream), transient=True)
        self._task: Any = None

    def __enter__(self) -> Self:
        """Show the bar."""
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the bar; logged lines stay."""
        self._bars.stop()

    def update(self, done: int, total: int, note: str) -> None:
        """Move the bar."""
        if self._task is None:
            self._task = self._bars.add_task(note, total=total)
        self._bars.update(self._task, completed=done, total=total, description=note)

    def log(self, line: str) -> None:
        """Write a line above the bar."""
        self._bars.console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def terminal_progress(stream: TextIO | None = None) -> Iterator[Progress]:
    """Yield the progress to pass to a job: a bar if the stream (standard error) is a terminal, plain lines if not."""
    if stream is None:
        with _own_standard_error() as own, terminal_progress(own) as progress:
            yield progress
        return
    if not stream.isatty():
        yield PlainProgress(stream)
        return
    with BarProgress(stream) as bar:
        yield bar


@contextlib.contextmanager
def _own_standard_error() -> Iterator[TextIO]:
    """Standard error by a descriptor of its own, which stays what it is while that of all libraries is filtered."""
    try:
        descriptor = os.dup(sys.stderr.fileno())
    except (OSError, ValueError):  # something that only looks like a stream
        yield sys.stderr
        return
    with os.fdopen(descriptor, "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace") as own:
        yield own
