"""While the work runs: who looks after the cluster, so that nothing that happens to it is silent.

The work runs in a thread of its own. The thread that called waits beside it, where Python handles signals at once, and
looks at what another thread last heard of the cluster's head.
"""

import contextlib
import os
import socket
import textwrap
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from retort.errors import HeadLostError, NodeLostError, ResourceError, RetortError
from retort.orchestration.cluster import leave_work
from retort.orchestration.demand import Demand, Node, amounts, room, there
from retort.orchestration.progress import Progress
from retort.orchestration.room import PATIENCE, Patience, too_small

T = TypeVar("T")
_LOOK_S = 0.2
_REFRESH_S = 2.0
_KNOCK_S = 5.0
_SHOWN = 60
_UNUSUAL, _MOST_USUAL = 2.0, 10.0
"""Silence is told after so many of the longest pauses so far, but never later than so many lines' times."""
_RECONNECT_VARIABLE, _RECONNECT_S = "RAY_gcs_rpc_server_reconnect_timeout_s", 60.0
"""Ray ends a process whose head is away for so long; a head with its state in Redis may come back until then."""


@dataclass(frozen=True)
class View:
    """What the head said last.

    Attributes:
        at: when, by the monotonic clock.
        nodes: all that there are and were.
        free_cpus: of the nodes together.
        draining: ids of nodes that are about to be taken away, and the deadline in ms since 1970, 0 for none.
    """

    at: float
    nodes: Sequence[Node]
    free_cpus: float = 0.0
    draining: Mapping[str, int] = field(default_factory=dict)
    silent_since: float | None = None
    """When the head's port could last be reached, if it cannot now."""


class Heard:
    """A progress that passes everything on and remembers when it last did, what, and the longest pause between two."""

    def __init__(self, progress: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self._progress, self._clock = progress, clock
        self.last, self.what, self.longest_pause_s = clock(), "", 0.0

    def update(self, done: int, total: int, note: str) -> None:
        """Pass on."""
        self._note(f"{done}/{total} {note}")
        self._progress.update(done, total, note)

    def log(self, line: str) -> None:
        """Pass on."""
        self._note(line)
        self._progress.log(line)

    def _note(self, what: str) -> None:
        now = self._clock()
        if self.what:  # not before the first: what starts takes its time
            self.longest_pause_s = max(self.longest_pause_s, now - self.last)
        self.last, self.what = now, what


class Watch:
    """Turns what is seen of the cluster into lines, and into the error that ends the job.

    Args:
        first: the view at the start of the work.
        demand: what the work needs.
        progress: gets the lines.
        heard: what the work itself reports to, if silence is to be told.
        can_grow: whether lost nodes may be replaced.
        on_drain: is told why, once for each node that is to be taken away.
        head_lost_after_s: how long the head may be silent.
        patience: how often a person hears of a wait.
    """

    def __init__(
        self,
        *,
        first: View,
        demand: Demand,
        progress: Progress,
        heard: Heard | None = None,
        can_grow: bool = True,
        on_drain: Callable[[str], None] = lambda _: None,
        head_lost_after_s: float | None = None,
        patience: Patience = PATIENCE,
    ) -> None:
        self._demand, self._progress, self._heard = demand, progress, heard
        self._can_grow, self._on_drain, self._patience = can_grow, on_drain, patience
        self._head_lost_after_s = _head_lost_after_s() if head_lost_after_s is None else head_lost_after_s
        self._room = room(first.nodes, demand)
        self._known_dead = {node.node_id for node in first.nodes if not node.alive}
        self._lost: list[Node] = []
        self._drained: set[str] = set()
        self._short_since: float | None = None
        self._last_line = first.at

    def look(self, view: View, now: float) -> None:
        """Say what is new in ``view``.

        Raises:
            HeadLostError: the head has been silent for too long.
            NodeLostError: a node is lost, and without it there was no room for too long.
            ResourceError: there was no room for too long.
        """
        if view.silent_since is not None:
            self._look_at_head(now - view.silent_since, now)
        self._look_at_nodes(view)
        if now - view.at < self._patience.line_every_s:
            self._look_at_room(view, now)
            self._look_at_silence(view, now)
            self._look_at_pool(view, now)

    def _look_at_head(self, silent_s: float, now: float) -> None:
        if silent_s >= self._head_lost_after_s:
            raise HeadLostError(
                f"the head of the cluster has not answered for {silent_s:.0f} s, so it is lost with its workers. "
                "What was committed is intact: start the cluster again, and run the same command with the same output"
            )
        if silent_s >= min(10.0, self._head_lost_after_s / 2) and self._is_time(now, every_s=10.0):
            self._progress.log(
                f"the head of the cluster has not answered for {silent_s:.0f} s; "
                f"it is given up after {self._head_lost_after_s:.0f} s"
            )

    def _look_at_nodes(self, view: View) -> None:
        for node in view.nodes:
            if not node.alive and node.node_id not in self._known_dead:
                self._known_dead.add(node.node_id)
                self._lost.append(node)
                why = f" ({node.reason})" if node.reason else ""
                self._progress.log(
                    f"node {node.name} is lost{why}; what ran there starts again from what is committed, "
                    f"as soon as there is room: {there(view.nodes)}"
                )
        for node_id, deadline_ms in view.draining.items():
            if node_id not in self._drained:
                self._drained.add(node_id)
                name = next((node.name for node in view.nodes if node.node_id == node_id), node_id[:8])
                left = f" in {max(0.0, deadline_ms / 1000 - time.time()):.0f} s" if deadline_ms else ""
                reason = f"node {name} is to be taken away{left}"
                self._progress.log(reason)
                self._on_drain(reason)

    def _look_at_room(self, view: View, now: float) -> None:
        if room(view.nodes, self._demand) >= self._demand.least:
            self._short_since = None
            return
        self._short_since = self._short_since or now
        short_s, wait_s = now - self._short_since, self._demand.wait_for_nodes_s if self._can_grow else 0.0
        if short_s >= wait_s:
            text = too_small(view.nodes, self._demand, waited_s=short_s)
            if self._lost:
                raise NodeLostError(f"{self._names_lost()} lost and not replaced: {text}")
            raise ResourceError(text)
        if self._is_time(now):
            self._progress.log(
                f"waiting for nodes, {short_s:.0f} s of at most {wait_s:.0f}: "
                f"needed are {self._demand}, {there(view.nodes)}"
            )

    def _look_at_silence(self, view: View, now: float) -> None:
        if self._heard is None:
            return
        # A slow machine's pauses are no silence, but one long pause does not make all that follow usual.
        usual_s = min(_UNUSUAL * self._heard.longest_pause_s, _MOST_USUAL * self._patience.line_every_s)
        silent_s = now - self._heard.last
        if silent_s >= max(usual_s, self._patience.line_every_s) and self._is_time(now):
            verb = "is" if view.free_cpus == 1 else "are"
            what = textwrap.shorten(self._heard.what, _SHOWN, placeholder="…")
            since = f', since "{what}"' if what else ""
            self._progress.log(
                f"no news of the {self._demand.name} for {silent_s:.0f} s{since}: needed are {self._demand}, "
                f"{there(view.nodes)}, of which {amounts(view.free_cpus, 0.0)} {verb} free"
            )

    def _look_at_pool(self, view: View, now: float) -> None:
        """End a pool that waits for a worker whose node is gone for good: what it was doing is done by nobody else."""
        if self._heard is None or not self._demand.is_pool or not self._lost:
            return
        silent_s, fits = now - self._heard.last, room(view.nodes, self._demand)
        if fits < self._room and silent_s >= self._demand.wait_for_nodes_s:
            raise NodeLostError(
                f"{self._names_lost()} lost and not replaced, and nothing was finished for {silent_s:.0f} s "
                f"(wait_for_nodes_s): {fits} of {self._room} workers have room. What is finished is kept: run the same "
                "command again, and the workers that have room do the rest"
            )

    def _names_lost(self) -> str:
        names = ", ".join(node.name for node in self._lost)
        return f"node {names} is" if len(self._lost) == 1 else f"nodes {names} are"

    def _is_time(self, now: float, every_s: float | None = None) -> bool:
        """Whether the last line is old enough for another one; then it counts as said."""
        every_s = self._patience.line_every_s if every_s is None else min(every_s, self._patience.line_every_s)
        if now - self._last_line < every_s:
            return False
        self._last_line = now
        return True


class HeadListener:
    """Asks the head for its nodes again and again, and knocks at its port, each in a thread of its own.

    A question to a head that is gone hangs, and one to a machine that is busy takes long; the port tells one from the
    other, for there the kernel answers.

    Args:
        first: the view to begin with.
        address: of the head, ``host:port``.
        every_s: between two questions.
    """

    def __init__(self, first: View, address: str, *, every_s: float = _REFRESH_S) -> None:
        self._answer, self._address, self._every_s = first, address, every_s
        self._silent_since: float | None = None
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=run, name="cluster", daemon=True) for run in (self._ask, self._knock)]
        for thread in self._threads:
            thread.start()

    @property
    def view(self) -> View:
        """What is known now."""
        return replace(self._answer, silent_since=self._silent_since)

    def _ask(self) -> None:
        while not self._stop.wait(self._every_s):
            with contextlib.suppress(Exception):  # the port says whether anybody is there to ask
                self._answer = ask_head()

    def _knock(self) -> None:
        host, _, port = self._address.rpartition(":")
        # Ray ends this process some time after the head was last there, so that is when the silence begins.
        last_there = time.monotonic()
        while not self._stop.wait(self._every_s):
            try:
                began = time.monotonic()
                socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()
                self._silent_since, last_there = None, began
            except OSError:
                self._silent_since = self._silent_since or last_there

    def close(self) -> None:
        """Ask no more; a question that a lost head leaves open is not waited for."""
        self._stop.set()
        for thread in self._threads:
            thread.join(_REFRESH_S)


def ask_head() -> View:
    """The cluster as its head knows it; Ray must be up."""
    import ray
    from ray._private.state import state

    nodes = [Node.from_ray(entry) for entry in ray.nodes()]
    free = float(ray.available_resources().get("CPU", 0.0))
    return View(time.monotonic(), nodes, free, dict(state.get_draining_nodes() or {}))


def head_address() -> str:
    """``host:port`` of the head; Ray must be up."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


def run_beside(work: Callable[[], T], look: Callable[[], None]) -> T:
    """Do the work in a thread of its own, and call ``look`` again and again in this one until it is done.

    What ``look`` raises ends the wait, not the work: the work ends with its Ray.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - it is raised again in the thread that waits
            errors.append(error)

    thread = threading.Thread(target=run, name="work", daemon=True)
    thread.start()
    while thread.is_alive():
        try:
            look()
        except RetortError:
            leave_work()
            raise
        thread.join(_LOOK_S)
    if errors:
        raise errors[0]
    return results[0]


def _head_lost_after_s() -> float:
    """Some time before Ray would end this process without a word."""
    return 0.75 * float(os.environ.get(_RECONNECT_VARIABLE, _RECONNECT_S))
