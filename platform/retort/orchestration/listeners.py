"""Which processes take connections on every address of this machine, read from ``/proc``."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_LISTENING = "0A"


def listening_everywhere(root: int | None = None, proc: Path = Path("/proc")) -> list[str]:
    """Names of the processes below a process, itself too, that listen on every address; none without ``/proc``.

    Args:
        root: id of the process; None is this one.
        proc: where the system tells of its processes.
    """
    sockets = set(_open_sockets(proc))
    found = {_name(process) for process in _below(root or os.getpid(), proc) if sockets & set(_held(process))}
    return sorted(found)


def _open_sockets(proc: Path) -> Iterator[str]:
    """As the links of open files name them."""
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (proc / "net" / table).read_text("ascii").splitlines()[1:]:
                fields = line.split()
                address = fields[1].partition(":")[0]
                if fields[3] == _LISTENING and not address.strip("0"):
                    yield f"socket:[{fields[9]}]"


def _below(root: int, proc: Path) -> Iterator[Path]:
    parents = {}
    for status in proc.glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name, in brackets, may hold anything.
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
    for process in parents:
        ancestor: int | None = process
        while ancestor is not None and ancestor != root:
            ancestor = parents.get(ancestor)
        if ancestor == root:
            yield proc / str(process)


def _held(process: Path) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for file in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                yield str(file.readlink())


def _name(process: Path) -> str:
    with contextlib.suppress(OSError):
        command = (process / "cmdline").read_text().partition("\0")[0]
        return Path(command.split(" ")[0]).name
    return "?"
