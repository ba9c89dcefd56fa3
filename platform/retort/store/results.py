"""Where a job's committed result lies: in its output folder, in a folder of its own, or behind a registry's name."""

from pathlib import Path

from retort.errors import DataError
from retort.store.artifact import ARTIFACT_FILE
from retort.store.commit import is_committed
from retort.store.registry import read_pointer

RUN_FILE = "run.yaml"
"""The resolved configuration of the job that writes an output folder."""
RESULT = "result"
"""The committed artifact in an output folder, which the next job reads."""


def result_of(path: Path) -> Path:
    """The committed artifact that ``path`` stands for.

    A job's output folder, the artifact's own folder, or a name's folder in a registry: the version in use.

    Raises:
        DataError: there is none; the message says what is there and the cure.
    """
    current = read_pointer(path)
    for folder in (path / RESULT, path, *([] if current is None else [current.path])):
        if is_committed(folder) and (folder / ARTIFACT_FILE).is_file():
            return folder.resolve()
    if not path.exists():
        raise DataError(f"{path}: no such folder; run the job that writes it first, or correct the path")
    if (path / RUN_FILE).is_file():
        raise DataError(f"{path}: the job that writes it has not finished; run it again, it goes on where it stopped")
    raise DataError(f"{path}: neither a job's output nor a result folder (no committed {ARTIFACT_FILE}); fix the path")
