"""Two Ray nodes on one machine that share no writable folder.

The first one is the head, on which drivers run. The second one has mounts of its own: everything is read-only to it,
like an image, except for an empty ``/tmp`` and an empty ``/dev/shm`` in memory, and its home and caches lie there. Its
host name and its address differ too. What they share is the network, the processor, and the code.
"""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from benchmarks.seaweedfs import free_ports

HEAD_ADDRESS, SECOND_ADDRESS = "127.0.0.1", "127.0.0.2"
_RAY = Path(sys.executable).with_name("ray")
_STARTED = "Ray runtime started."
_START_S = 900.0
_TRIES = 4
_POLL_S = 0.1
_OPTIONS = (
    "--block", "--disable-usage-stats", "--object-store-memory=200000000", "--min-worker-port=0", "--max-worker-port=0",
    "--dashboard-agent-listen-port=0",
)  # fmt: skip
_HEALTH = '{"health_check_period_ms": 500, "health_check_failure_threshold": 3}'
"""A dead node is found within seconds rather than a minute."""
_APART = """
set -e
hostname node-2 2>/dev/null || true
for folder in /tmp /dev/shm; do mount -t tmpfs tmpfs "$folder"; done
mkdir -p "$HOME" "$XDG_CACHE_HOME"
mount -o remount,bind,ro /
exec "$@"
"""


def why_not() -> str:
    """Why nodes cannot be kept apart here, or nothing."""
    if Path(sys.prefix).is_relative_to("/tmp") or Path(__file__).is_relative_to("/tmp"):
        return f"{sys.prefix} and {Path(__file__).parent} must not lie in /tmp, which the second node has for itself"
    tried = subprocess.run([*_unshare(), "mount", "-t", "tmpfs", "tmpfs", "/tmp"], capture_output=True, check=False)
    return tried.stderr.decode().strip() if tried.returncode else ""


def _unshare() -> list[str]:
    """The command that gives what follows mounts of its own, and a host name of its own where that is allowed."""
    with_name = ["unshare", "-m", "-u"]
    if shutil.which("unshare") and subprocess.run([*with_name, "true"], capture_output=True, check=False).returncode:
        return with_name[:-1]
    return with_name


class RayNode:
    """One ``ray start``, and everything that it starts.

    Args:
        command: the whole command.
        log: gets what it says.
        environment: of it and of the workers on it.
    """

    def __init__(self, command: list[str], log: Path, environment: Mapping[str, str]) -> None:
        self._command, self._log, self._environment = command, log, environment
        self._process: subprocess.Popen[bytes] | None = None
        self.mounts = ""
        """Names the namespace of its mounts."""

    def start(self) -> None:
        """Start it and wait until it belongs to the cluster; Ray gives up after half a minute, so it is tried again.

        Raises:
            RuntimeError: it does not; what it said is quoted.
        """
        for _ in range(_TRIES):
            if self._started():
                return
            self.kill()
        said = self._log.read_text(errors="replace")
        raise RuntimeError(f"{' '.join(self._command)} did not start:\n{said}")

    def _started(self) -> bool:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=dict(self._environment), start_new_session=True
            )
        deadline = time.monotonic() + _START_S
        while _STARTED not in self._log.read_text(errors="replace"):
            self.mounts = _mounts_of(self._process.pid) or self.mounts
            if self._process.poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        self.mounts = _mounts_of(self._process.pid) or self.mounts
        return True

    def kill(self) -> None:
        """SIGKILL to its raylet and its workers and all that they started, as when a machine loses its power."""
        while found := self.processes():
            for process in found:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(found, timeout=_START_S)
        self._process, self.mounts = None, ""

    def processes(self) -> list[psutil.Process]:
        """All that run on it: those with its mounts, or below the command where it has the mounts of this process."""
        if self._process is None:
            return []
        if self.mounts not in ("", _mounts_of(os.getpid())):
            return [process for process in psutil.process_iter() if _mounts_of(process.pid) == self.mounts]
        if self._process.poll() is not None:
            return []
        first = psutil.Process(self._process.pid)
        return [first, *first.children(recursive=True)]

    def work(self) -> list[str]:
        """Titles of its workers that are not idle."""
        titles = [_title(process) for process in self.processes()]
        idle = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
        return sorted(title for title in titles if title.startswith("ray::") and not title.startswith(idle))

    def has(self, pattern: str) -> bool:
        """Whether a file of such a name lies below its ``/tmp``."""
        return any(any(Path("/proc", str(one.pid), "root", "tmp").glob(pattern)) for one in self.processes()[:1])


class NodesApart:
    """A head and a second node, inside the block.

    Args:
        folder: for logs and the head's own files.
        cpus: of each node.
        environment: of both, and of the drivers.

    Raises:
        RuntimeError: a node does not start.
    """

    def __init__(self, folder: Path, *, cpus: int, environment: Mapping[str, str]) -> None:
        # Short, for there are sockets in it.
        self._temporary = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
        port, client_port = free_ports(2)
        self.address = f"{HEAD_ADDRESS}:{port}"
        head = [
            str(_RAY), "start", "--head", f"--port={port}", f"--node-ip-address={HEAD_ADDRESS}", f"--num-cpus={cpus}",
            f"--temp-dir={self._temporary}", "--include-dashboard=false", f"--ray-client-server-port={client_port}",
            f"--system-config={_HEALTH}", *_OPTIONS,
        ]  # fmt: skip
        second = [
            *_unshare(), "sh", "-c", _APART, "sh", str(_RAY), "start", f"--address={self.address}",
            f"--node-ip-address={SECOND_ADDRESS}", f"--num-cpus={cpus}", *_OPTIONS,
        ]  # fmt: skip
        there = {**environment, "HOME": "/tmp/home", "XDG_CACHE_HOME": "/tmp/cache"}
        self.head = RayNode(head, folder / "head.log", environment)
        self.second = RayNode(second, folder / "second.log", there)

    def __enter__(self) -> "NodesApart":
        """Start both."""
        try:
            self.head.start()
            self.second.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        """End both, and whatever runs on them."""
        self.second.kill()
        self.head.kill()
        shutil.rmtree(self._temporary, ignore_errors=True)


def _mounts_of(pid: int) -> str:
    """Names the namespace of a process's mounts; empty for one that has ended."""
    try:
        return str(Path(f"/proc/{pid}/ns/mnt").readlink())
    except OSError:
        return ""


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.Error:
        return ""


def clean_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """This process's variables without those that lead to somebody's cluster or store, with a new token of Ray's.

    A second node has no home in which to find the first one's token.
    """
    ours = ("RAY_", "AWS_", "RETORT_", "XDG_CACHE_HOME")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return kept | {"RAY_USAGE_STATS_ENABLED": "0"} | token | dict(changes)
