"""Before the work: has the cluster room for it? A cluster that is too small is told at once, or waited for aloud."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from retort.errors import ResourceError
from retort.orchestration.demand import Demand, Node, amounts, room, there
from retort.orchestration.progress import Progress


@dataclass(frozen=True)
class Patience:
    """How often a person hears of a wait.

    Attributes:
        line_every_s: seconds between two lines.
        poll_s: seconds between two looks at the cluster.
    """

    line_every_s: float = 30.0
    poll_s: float = 1.0


PATIENCE = Patience()


def wait_for_room(
    look: Callable[[], Sequence[Node]],
    demand: Demand,
    progress: Progress,
    *,
    can_grow: bool,
    patience: Patience = PATIENCE,
) -> Sequence[Node]:
    """Return the nodes as soon as as many workers have room as must; a line every so often says what is waited for.

    Args:
        look: the nodes that there are now.
        demand: what must have room.
        progress: gets the lines.
        can_grow: whether nodes can come; a Ray of this machine stays as it is.
        patience: how often a person hears of it.

    Raises:
        ResourceError: there is no room, and there will be none in time; both numbers are named.
    """
    began, said = time.monotonic(), -math.inf
    wait_s = demand.wait_for_nodes_s if can_grow else 0.0
    while room(nodes := look(), demand) < demand.least:
        waited_s = time.monotonic() - began
        if waited_s >= wait_s:
            raise ResourceError(too_small(nodes, demand, waited_s=waited_s if can_grow else None))
        if began + waited_s - said >= patience.line_every_s:
            said = began + waited_s
            progress.log(f"waiting for nodes, {waited_s:.0f} s of at most {wait_s:.0f}: {_both(nodes, demand)}")
        time.sleep(min(patience.poll_s, wait_s - waited_s))
    found = room(nodes, demand)
    if found < demand.count:
        progress.log(f"the cluster has room for {found} of {demand}; it begins with those")
    return nodes


def too_small(nodes: Sequence[Node], demand: Demand, *, waited_s: float | None) -> str:
    """The text of the error; ``waited_s`` is None where waiting would be in vain."""
    waited = "" if waited_s is None else f" after {waited_s:.0f} s"
    alone = replace(demand, count=1, least=1)
    if demand.labels and not any(node.room(replace(alone, cpus=0.0, gpus=0.0, memory_gib=0.0)) for node in nodes):
        why = "no node has these labels"
    elif not any(node.room(alone) for node in nodes) and any(node.alive for node in nodes):
        largest = max((node for node in nodes if node.alive), key=lambda node: (node.gpus, node.cpus))
        memory_gib = largest.memory_gib if demand.memory_gib else 0.0
        why = f"the largest node has {amounts(largest.cpus, largest.gpus, memory_gib)}, so not even one fits"
    else:
        why = f"{room(nodes, demand)} of at least {demand.least} fit"
    return (
        f"the cluster is too small{waited}: {_both(nodes, demand)}; {why}. Lower the number of workers or what each "
        "asks for, or add nodes (wait_for_nodes_s says how long they may take), and run the same command again"
    )


def _both(nodes: Sequence[Node], demand: Demand) -> str:
    return f"needed are {demand}, {there(nodes)}"
