"""Is the output folder one and the same on every node? Each node writes a word there that the others must read."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from retort.errors import MissingRequirementError, StorageError
from retort.orchestration.demand import Demand, Node
from retort.store.commit import write_bytes_atomic
from retort.store.disk import remove_tree
from retort.store.place import behind

_ANSWER_S = 120.0


def check_shared_place(output: Path, nodes: Sequence[Node], demand: Demand) -> None:
    """Have every node that can hold a worker read the driver's word in ``output`` and write one that the driver reads.

    Nothing is asked of a single node, nor where the output is in a store: every node has a folder of its own then.

    Raises:
        StorageError: a node sees another folder, or none, or cannot write it; the node is named.
        MissingRequirementError: the package is not installed on a node.
    """
    one = replace(demand, count=1)
    asked = [node for node in nodes if node.room(one)]
    if sum(node.alive for node in nodes) < 2 or not asked or behind(output) is not None:
        return
    folder, nonce = output / f".shared-{uuid.uuid4().hex}", uuid.uuid4().hex
    write_bytes_atomic(folder / "driver", nonce.encode())
    try:
        faults = _ask(folder, nonce, asked)
        for node in asked:
            fault = faults[node.node_id] or read_word(folder, node.node_id, nonce, writer=f"node {node.name}")
            if fault:
                raise StorageError(
                    f"{output} is not the same folder on every node: on node {node.name}, {fault}. Mount the same "
                    "storage at the same path on every node, or choose an output that all of them share"
                )
    finally:
        remove_tree(folder)


def answer(folder: Path, node_id: str, nonce: str) -> str:
    """What runs on a node: read the driver's word and write the node's; returns what is wrong, or nothing."""
    fault = read_word(folder, "driver", nonce, writer="the driver")
    if fault:
        return fault
    try:
        (folder / node_id).write_text(nonce)
    except OSError as error:
        return f"it cannot be written: {error.strerror or error}"
    return ""


def read_word(folder: Path, name: str, nonce: str, *, writer: str) -> str:
    """What is wrong with the word that ``writer`` left, or nothing."""
    try:
        found = (folder / name).read_text()
    except OSError as error:
        return f"what {writer} wrote there is not to be seen ({error.strerror or error})"
    return "" if found == nonce else f"what {writer} wrote there is not what is read"


def _ask(folder: Path, nonce: str, nodes: Sequence[Node]) -> Mapping[str, str]:
    import ray
    from ray.exceptions import GetTimeoutError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asking: dict[str, Any] = {}
    for node in nodes:
        place = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
        task = ray.remote(num_cpus=0, scheduling_strategy=place, max_retries=1)(answer)
        asking[node.node_id] = task.remote(folder, node.node_id, nonce)
    faults: dict[str, str] = {}
    for node in nodes:
        try:
            faults[node.node_id] = ray.get(asking[node.node_id], timeout=_ANSWER_S)
        except GetTimeoutError:
            faults[node.node_id] = f"no process answered within {_ANSWER_S:.0f} s"
        except Exception as error:
            cause = getattr(error, "cause", None) or error
            if isinstance(cause, ImportError):
                raise MissingRequirementError(
                    f"node {node.name} cannot import the package ({cause}); install the same version on every node"
                ) from error
            faults[node.node_id] = f"the check failed: {str(cause).strip().splitlines()[-1]}"
    return faults
