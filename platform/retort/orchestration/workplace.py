"""Where a job does its work: a Ray with room for it, an output that all nodes share, and somebody who watches."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from retort.orchestration.cluster import is_of_this_machine, ray_session
from retort.orchestration.demand import Demand, room
from retort.orchestration.failures import error_of
from retort.orchestration.progress import Progress
from retort.orchestration.room import PATIENCE, Patience, wait_for_room
from retort.orchestration.shared_place import check_shared_place
from retort.orchestration.watch import HeadListener, Heard, View, Watch, ask_head, head_address, run_beside
from retort.run_config import PoolConfig
from retort.store.place import refuse_lost

T = TypeVar("T")


@dataclass(frozen=True)
class Workplace:
    """A cluster that has room for what a job needs.

    Attributes:
        output: what the job writes.
        demand: what it needs.
        first: the cluster as it was when the job came.
        address: of its head, ``host:port``.
        can_grow: whether nodes may come.
        progress: of the job.
        patience: how often a person hears of a wait.
    """

    output: Path
    demand: Demand
    first: View
    address: str
    can_grow: bool
    progress: Progress
    patience: Patience

    def run(
        self,
        work: Callable[[Progress], T],
        *,
        meanwhile: Callable[[], None] = lambda: None,
        on_drain: Callable[[str], None] = lambda _: None,
    ) -> T:
        """Do the work, and tell what happens to the cluster while it lasts.

        Args:
            work: gets the progress to report to.
            meanwhile: called a few times a second in the calling thread; what it raises ends the wait.
            on_drain: is told why, once for each node that is to be taken away.

        Raises:
            HeadLostError: the head does not answer any more.
            NodeLostError: a node is lost and was not replaced.
            ResourceError: workers died for lack of memory, or there is no room for them any more.
            StorageError: a worker could not read or write the storage, or another run has taken the output.
        """
        heard = Heard(self.progress)
        watch = Watch(
            first=self.first,
            demand=self.demand,
            progress=self.progress,
            heard=heard,
            can_grow=self.can_grow,
            on_drain=on_drain,
            patience=self.patience,
        )
        listener = HeadListener(View(time.monotonic(), self.first.nodes), self.address)

        def look() -> None:
            watch.look(listener.view, time.monotonic())
            refuse_lost(self.output)
            meanwhile()

        try:
            return run_beside(lambda: _as_our_own(lambda: work(heard)), look)
        finally:
            listener.close()


@contextlib.contextmanager
def workplace(
    output: Path, demand: Demand, progress: Progress, *, patience: Patience = PATIENCE
) -> Iterator[Workplace]:
    """Have Ray inside the block, with room for ``demand`` and with nodes that all see ``output``.

    Raises:
        ResourceError: the cluster is too small and stays so.
        StorageError: a node does not share the output; it is named.
        MissingRequirementError: the cluster does not answer, or a node lacks the package.
    """
    with ray_session():
        yield find_place(output, demand, progress, patience=patience)


def find_place(output: Path, demand: Demand, progress: Progress, *, patience: Patience = PATIENCE) -> Workplace:
    """The same in a Ray that is up."""
    can_grow = not is_of_this_machine()
    with _asked_for(demand if can_grow and room(ask_head().nodes, demand) < demand.least else None):
        nodes = wait_for_room(lambda: ask_head().nodes, demand, progress, can_grow=can_grow, patience=patience)
    check_shared_place(output, nodes, demand)
    return Workplace(output, demand, ask_head(), head_address(), can_grow, progress, patience)


def workers_for(pool: PoolConfig, items: int) -> int:
    """How many actors of a pool to start for so many items; Ray must be up.

    No more than have room: an actor without it takes items like the others, and never begins.
    """
    return max(1, min(items, room(ask_head().nodes, Demand.of_pool(pool))))


@contextlib.contextmanager
def _asked_for(demand: Demand | None) -> Iterator[None]:
    """Let an autoscaler, where there is one, know what is waited for; the work's own requests take over then."""
    if demand is None:
        yield
        return
    from ray.autoscaler.sdk import request_resources

    selectors = [dict(demand.labels)] * len(demand.bundles)
    request_resources(bundles=demand.bundles, bundle_label_selectors=selectors)
    try:
        yield
    finally:
        request_resources(bundles=[])


def _as_our_own(work: Callable[[], T]) -> T:
    """Do the work; what Ray made of an error on the way is taken off it."""
    try:
        return work()
    except Exception as error:
        raise error_of(error) from error
