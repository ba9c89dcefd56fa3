"""Ray's own lines on standard error go into Ray's own log: what a person reads there is what Retort says."""

import contextlib
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

CHATTER_FILE = "driver-stderr.log"
"""In Ray's folder of logs: what was kept from standard error."""
_CORE = rb"\[\d{4}-\d\d-\d\d [\d:,.]+ [A-Z] \d+ \d+\] "  # [2026-11-28 15:11:30,381 E 123 456] core_worker.cc:2465: ...
_PYTHON = (
    rb"\d{4}-\d\d-\d\d [\d:]+,\d+\t[A-Z]+ \w+\.py:\d+ -- "  # 2026-11-28 15:11:30,381<tab>ERROR services.py:1431 -- ...
)
_ANNOUNCED = (  # (raylet) ..., (TrainController pid=1) ..., (MapWorker(MapBatches(Encode)) pid=1) ...
    rb"(\x1b\[[\d;]*m)*\((raylet|autoscaler|pid=|gcs_server|[^\n]{1,200}? pid=\d)"
)
_SERVE = rb"[A-Z]+ \d{4}-\d\d-\d\d [\d:]+,\d+ \w+ \d+ [^\n]*?-- "  # INFO 2026-11-28 15:11:30,381 serve 123 -- ...
_NAMED = rb"[A-Z]+ ray(\.[\w.]+)?: "  # WARNING ray.data: ..., as our own format has it
_WARNED = rb"/\S*/site-packages/(ray|deepspeed)/\S+\.py:\d+: \w+: "  # .../ray/data/context.py:61: FutureWarning: ...
_CHATTER = re.compile(b"|".join((_CORE, _PYTHON, _ANNOUNCED, _SERVE, _NAMED, _WARNED)))
_FATAL = re.compile(rb"\[\d{4}-\d\d-\d\d [\d:,.]+ [CF] ")
_STDERR = 2
_END = b"\0retort: the end of the chatter\0\n"


class Filter:
    """Splits what is written to standard error into lines for a person and lines for the log.

    A line that Ray begins takes with it the indented lines that follow it, and a traceback to its last line. Whatever
    ends the process is shown.

    Args:
        show: gets a line that is not Ray's.
        keep: gets a line of Ray's.
    """

    def __init__(self, show: Callable[[bytes], None], keep: Callable[[bytes], None]) -> None:
        self._show, self._keep, self._in_chatter, self._in_traceback = show, keep, False, False

    def line(self, line: bytes) -> None:
        """Take in one line with its end."""
        if _FATAL.match(line):
            self._in_chatter = self._in_traceback = False
        elif _CHATTER.match(line):
            self._in_chatter, self._in_traceback = True, False
        elif self._in_chatter and line.startswith(b"Traceback (most recent call last)"):
            self._in_traceback = True
        elif not line.startswith((b" ", b"\t")):
            # The first line at the margin after a traceback's frames is its error.
            self._in_chatter, self._in_traceback = self._in_traceback, False
        (self._keep if self._in_chatter else self._show)(line)


@contextlib.contextmanager
def without_chatter(log_folder: Callable[[], Path | None]) -> Iterator[None]:
    """Inside the block, what anybody writes to standard error goes through a :class:`Filter`.

    Args:
        log_folder: Ray's folder of logs, once there is one.
    """
    real = os.dup(_STDERR)
    reading, writing = os.pipe()
    sys.stderr.flush()
    os.dup2(writing, _STDERR)
    thread = threading.Thread(target=_pump, args=(reading, real, log_folder), name="chatter", daemon=True)
    thread.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(real, _STDERR)
        os.write(writing, _END)
        os.close(writing)
        thread.join()
        os.close(reading)
        os.close(real)


def _pump(reading: int, real: int, log_folder: Callable[[], Path | None]) -> None:
    """Pass lines on until the word that ends it comes; processes that were started meanwhile may hold the pipe open."""
    early: list[bytes] = []

    def keep(line: bytes) -> None:
        folder = log_folder()
        if folder is None:
            early.append(line)
            return
        with contextlib.suppress(OSError), (folder / CHATTER_FILE).open("ab") as file:
            file.writelines((*early, line))
            early.clear()

    lines = Filter(lambda line: _write(real, line), keep)
    pending = b""
    while chunk := os.read(reading, 1 << 16):
        *whole, pending = (pending + chunk).split(b"\n")
        for line in whole:
            if (line + b"\n").endswith(_END):
                if line + b"\n" != _END:  # what was written last had no end
                    lines.line(line.removesuffix(_END[:-1]))
                return
            lines.line(line + b"\n")
        if pending and not _may_be_chatter(pending) and not _END.startswith(pending):
            lines.line(pending)  # a prompt or a bar, which no line's end follows
            pending = b""


def _may_be_chatter(beginning: bytes) -> bool:
    return beginning[:1] in (b"[", b"(", b"\x1b", b" ", b"\t", b"/") or beginning[:1].isdigit()


def _write(descriptor: int, content: bytes) -> None:
    with contextlib.suppress(OSError):  # nobody reads it any more
        while content:
            content = content[os.write(descriptor, content) :]
