"""Where a job's committed result lies: in its output folder, in a folder of its own, or behind a registry's name."""

from pathlib import Path

from retort.errors import DataError
from retort.location import RemotePath
from retort.store.artifact import ARTIFACT_FILE
from retort.store.commit import is_committed
from retort.store.place import content_of, is_finished, localise
from retort.store.registry import read_pointer

RUN_FILE = "run.yaml"
"""The resolved configuration of the job that writes an output folder."""
RESULT = "result"
"""The committed artifact in an output folder, which the next job reads."""


def result_of(path: Path) -> Path:
    """The committed artifact that ``path`` stands for.

    A job's output folder, the artifact's own folder, or a name's folder in a registry: the version in use.

    Of a place in a store it is a verified copy on this node.

    Raises:
        DataError: there is none; the message says what is there and the cure.
        StorageError: the store refuses, or what it holds is damaged.
    """
    if isinstance(path, RemotePath):
        return _remote_result_of(path)
    current = read_pointer(path)
    for folder in (path / RESULT, path, *([] if current is None else [current.path])):
        if is_committed(folder) and (folder / ARTIFACT_FILE).is_file():
            return folder.resolve()
    if not path.exists():
        raise DataError(f"{path}: no such folder; run the job that writes it first, or correct the path")
    if (path / RUN_FILE).is_file():
        raise DataError(f"{path}: the job that writes it has not finished; run it again, it goes on where it stopped")
    raise DataError(f"{path}: neither a job's output nor a result folder (no committed {ARTIFACT_FILE}); fix the path")


def folder_with(path: Path, file: str, part: str) -> Path:
    """``path`` itself if it is a folder that holds ``file``, else the folder ``part`` of the result that it stands for.

    Raises:
        DataError: as :func:`result_of`.
    """
    is_saved_alone = not isinstance(path, RemotePath) and (path / file).is_file()
    return path if is_saved_alone else result_of(path) / part


def _remote_result_of(path: RemotePath) -> Path:
    current = read_pointer(path)
    for place in (path / RESULT, path, *([] if current is None else [current.path])):
        if isinstance(place, RemotePath) and is_finished(place):
            folder = localise(place)
            if (folder / ARTIFACT_FILE).is_file():
                return folder
    if content_of(path / RUN_FILE) is not None:
        raise DataError(f"{path}: the job that writes it has not finished; run it again, it goes on where it stopped")
    raise DataError(f"{path}: no result lies there; run the job that writes it first, or correct the url")
