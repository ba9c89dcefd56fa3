"""Errors that cross from a worker to the driver as what they are: their type and their text, without a traceback."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import retort.errors
from retort.errors import NodeLostError, ResourceError, RetortError, StorageError
from retort.store.commit import write_json_atomic
from retort.store.place import drop, pull, push

_FILE = "failure.json"
_DEATHS = ("ActorDiedError", "WorkerCrashedError", "NodeDiedError", "OutOfMemoryError", "LocalRayletDiedError")
_MEMORY = ("memory pressure", "running low on memory", "OOM killed", "out-of-memory")
_NODE = ("node has died", "node is dead", "node was terminated", "node died")
_TOLD = 300
_PEER = ("onnection closed by peer", "onnection reset by peer", "Connection refused", "Broken pipe")


def write_failure(folder: Path, error: RetortError, *, run: str) -> None:
    """Leave the error for the driver; ``run`` tells it from those of other runs."""
    write_json_atomic(folder / _FILE, {"run": run, "type": _public_name(type(error)), "text": str(error)})
    push(folder / _FILE)


def read_failure(folder: Path, *, run: str) -> RetortError | None:
    """The error that a worker of this run left, if any."""
    try:
        if not (folder / _FILE).is_file():
            pull(folder / _FILE)  # a worker of another node left it
        tree = json.loads((folder / _FILE).read_bytes())
    except (OSError, ValueError):
        return None
    if tree.get("run") != run:
        return None
    kind = getattr(retort.errors, tree["type"])
    return kind(tree["text"])  # type: ignore[no-any-return]


def clear_failure(folder: Path) -> None:
    """Remove what an earlier run left."""
    drop(folder / _FILE)


def error_of(failure: Exception) -> Exception:
    """What Ray's report of a failure comes down to: our own error if there is one, else what the causes tell.

    A worker that dies makes its peers fail as well, with errors that tell nothing; so the deaths are looked at first.

    Args:
        failure: what Ray raised, such as ``TorchTrainer.fit``.
    """
    causes = list(_causes(failure))
    ours = next((cause for cause in causes if isinstance(cause, RetortError)), None)
    return ours or _of_deaths(causes) or _foreign(causes) or failure


def _of_deaths(causes: Sequence[BaseException]) -> RetortError | None:
    """What killed a worker, if one died, or took the storage from it."""
    deaths = [cause for cause in causes if type(cause).__name__ in _DEATHS]
    for death in deaths:
        if type(death).__name__ == "OutOfMemoryError" or _says(death, _MEMORY):
            return ResourceError(
                f"a worker was ended because its machine ran out of memory ({_told(death)}); what was committed is "
                "intact: make the batch smaller or the workers fewer, and run the same command again"
            )
    for death in deaths:
        if type(death).__name__ == "NodeDiedError" or _says(death, _NODE):
            return NodeLostError(
                f"a node of the cluster is lost ({_told(death)}); what was committed is intact: run the same command "
                "again when the cluster has room"
            )
    for cause in causes:
        if isinstance(cause, OSError) and cause.filename is not None:
            return StorageError(
                f"{cause.filename}: {cause.strerror or cause}, on a worker; is the storage still there, on every node? "
                "What was committed is intact: mend the storage, and run the same command again"
            )
    if not deaths:
        return None
    return ResourceError(
        f"a worker was killed again and again ({_told(deaths[0])}). Nobody said why; most often the system ran out of "
        "memory. What was committed is intact: make the batch smaller or the workers fewer, and run the same command "
        "again"
    )


def _foreign(causes: Sequence[BaseException]) -> Exception | None:
    """The worker's own exception, which is a fault of ours; one that only says that a peer went away comes last."""
    foreign = [c for c in causes if type(c).__module__.split(".")[0] != "ray" and isinstance(c, Exception)]
    return next(iter(sorted(foreign, key=lambda cause: _says(cause, _PEER))), None)


def _causes(failure: BaseException) -> Iterator[BaseException]:
    """Everything that an exception of Ray wraps, depth first, the innermost cause before what wraps it."""
    seen: set[int] = set()
    stack = [failure]
    found: list[BaseException] = []
    while stack:
        error = stack.pop()
        if id(error) in seen:
            continue
        seen.add(id(error))
        found.append(error)
        failures = getattr(error, "worker_failures", {})
        wrapped = [getattr(error, name, None) for name in ("_base_exc", "cause", "controller_failure", "__cause__")]
        stack += [inner for inner in (*failures.values(), *wrapped) if isinstance(inner, BaseException)]
    return reversed(found)


def _says(error: BaseException, phrases: tuple[str, ...]) -> bool:
    text = str(error).lower()
    return any(phrase.lower() in text for phrase in phrases)


def _told(error: BaseException) -> str:
    """The last line of an error's text, where Ray says what it knows, cut to a length that can be read."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = lines[-1] if lines else type(error).__name__
    return told if len(told) <= _TOLD else told[:_TOLD] + " …"


def _public_name(kind: type[RetortError]) -> str:
    """The nearest class of :mod:`retort.errors`, which can be made from a text alone."""
    names: list[str] = [base.__name__ for base in kind.__mro__ if getattr(retort.errors, base.__name__, None) is base]
    return names[0]
