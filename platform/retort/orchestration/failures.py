"""Errors that cross from a worker to the driver as what they are: their type and their text, without a traceback."""

import json
from collections.abc import Iterator
from pathlib import Path

import retort.errors
from retort.errors import ResourceError, RetortError
from retort.store.commit import write_json_atomic
from retort.store.place import drop, pull, push

_FILE = "failure.json"


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


def error_of(failure: BaseException) -> Exception:
    """What Ray's report of a failed run comes down to: our own error if there is one, else the worker's, else a death.

    Args:
        failure: what ``TorchTrainer.fit`` raised.
    """
    causes = list(_causes(failure))
    for cause in causes:
        if isinstance(cause, RetortError):
            return cause
    for cause in causes:
        if type(cause).__module__.split(".")[0] != "ray" and isinstance(cause, Exception):
            return cause
    return ResourceError(
        f"a training worker died again and again ({_first_line(failure)}); most often the machine ran out of memory. "
        "The last checkpoint is intact: make the batch smaller or the workers fewer, and run the same command again"
    )


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


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _public_name(kind: type[RetortError]) -> str:
    """The nearest class of :mod:`retort.errors`, which can be made from a text alone."""
    names: list[str] = [base.__name__ for base in kind.__mro__ if getattr(retort.errors, base.__name__, None) is base]
    return names[0]
