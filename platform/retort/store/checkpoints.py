"""Checkpoints of a run: committed folders by step, read back only when every byte is proven."""

import json
import logging
import os
import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from retort.errors import DataError, StorageError
from retort.location import RemotePath
from retort.store.commit import (
    commit_folder,
    is_committed,
    publish_folder,
    restore_replaced,
    seal_folder,
    sweep_orphans,
    verify_folder,
    write_json_atomic,
)
from retort.store.disk import full_disk_as_resource_error, lock_folder, os_error_as_storage_error, remove_tree
from retort.store.manifest import RESERVED_NAMES, Manifest
from retort.store.place import behind
from retort.store.uploads import Uploads, fetch_newest, stored_steps, sweep_parts

META_FILE = "meta.json"

_log = logging.getLogger(__name__)
_STEP_NAME = re.compile(r"step-([0-9]{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint."""

    step: int
    path: Path
    meta: Mapping[str, Any]
    manifest: Manifest


class CheckpointFolder:
    """The checkpoints of one run, ``step-00001000`` and so on, below ``root``.

    One process writes with :meth:`save`. Several processes that share the file system write with :meth:`begin`, a
    barrier, and :meth:`finish` on one of them. One run at a time writes a root (:class:`retort.store.lock.OutputLock`).
    Room for ``keep_last + 1`` checkpoints is needed, for an old one goes only after the new one is committed.

    Args:
        root: the folder; made at the first write.
        keep_last: how many committed checkpoints stay. The newest one that verifies stays in any case.
        attempt: 32 hexadecimal digits, the same in all processes that write together and new at each start of them
            (``uuid.uuid4().hex`` broadcast by one), so that shards of a dead attempt never mix with those of this one.
    """

    def __init__(self, root: Path, *, keep_last: int = 2, attempt: str | None = None) -> None:
        if keep_last < 1:
            raise ValueError(f"keep_last is {keep_last}; at least one checkpoint must stay")
        if attempt is not None and not re.fullmatch("[0-9a-f]{32}", attempt):
            raise ValueError(f"attempt is {attempt!r}; expected 32 hexadecimal digits such as uuid.uuid4().hex")
        self._root = root
        self._keep_last = keep_last
        self._attempt = attempt or uuid.uuid4().hex
        self._held: int | None = None
        remote = behind(root)
        self._remote = remote
        self._uploads = None if remote is None else Uploads(remote, keep_last)

    def save(self, step: int, fill: Callable[[Path], None], meta: Mapping[str, Any]) -> Path:
        """Write the checkpoint of ``step``, then let old ones go; a checkpoint of this step is replaced.

        Args:
            step: optimiser steps done.
            fill: writes the content into the folder that it is given; ``meta.json`` is written beside it.
            meta: JSON data to have without opening the content.

        Raises:
            DataError: ``meta`` is not finite JSON data.
            StorageError: the folder cannot be written; or it is written, and the store behind it has refused the last
                ones for good.
            ResourceError: the disk is full; the checkpoints that were there are intact.
        """
        target = self.path_of(step)
        self._discard_unfinished(target)
        with commit_folder(target, replace=True) as temporary:
            fill(temporary)
            _write_meta(temporary, step, meta)
        self._committed(target)
        return target

    def begin(self, step: int) -> Path:
        """The folder into which every process of this attempt writes its files of ``step``.

        Raises:
            StorageError: the folder cannot be made.
        """
        self._release()
        folder = self._shared(step)
        with (
            full_disk_as_resource_error(folder, written=folder),
            os_error_as_storage_error(folder, "create the folder"),
        ):
            folder.mkdir(parents=True, exist_ok=True)
        self._held = lock_folder(folder, shared=True)
        return folder

    def finish(self, step: int, meta: Mapping[str, Any], *, expected_files: Iterable[str] = ()) -> Path:
        """Commit what was written since :meth:`begin`; called by one process after all others have written.

        Args:
            step: as given to :meth:`begin`.
            meta: JSON data to have without opening the content.
            expected_files: relative paths that must be there. On a network file system another host's files can show
                up late; without this list such a checkpoint would be committed without them.

        Raises:
            StorageError: an expected file is missing, or the folder cannot be committed; the temporary folder is gone.
                Or as :meth:`save`.
            ResourceError: the disk is full; the checkpoints that were there are intact.
        """
        folder, target = self._shared(step), self.path_of(step)
        try:
            for name in expected_files:
                if not (folder / name).is_file():
                    raise StorageError(f"{folder / name}: missing when step {step} was committed; write the step again")
            self._discard_unfinished(target)
            with full_disk_as_resource_error(target, written=folder):
                _write_meta(folder, step, meta)
                seal_folder(folder)
            publish_folder(folder, target, replace=True)
        except BaseException:
            remove_tree(folder)
            raise
        finally:
            self._release()
        self._committed(target)
        return target

    def leave(self, step: int) -> None:
        """Remove what this process wrote since :meth:`begin`; where another node has it, and committed it there."""
        self._release()
        remove_tree(self._shared(step))

    def close(self, timeout_s: float | None = None) -> bool:
        """Wait until the newest checkpoint is in the store behind the folder, if there is one; whether it is."""
        return self._uploads is None or self._uploads.close(timeout_s)

    def steps(self) -> list[int]:
        """Committed steps in rising order; the files' hashes are not checked."""
        return [step for step, path in self._folders() if is_committed(path)]

    def latest_good(self) -> Checkpoint | None:
        """The newest checkpoint that verifies in full, or None; a newer one that does not is logged with its fault.

        Of an output in a store, the newest one there is fetched if it is not here. Damaged ones are deleted there, and
        so is what dead ranks left of checkpoints that nobody put together.

        Raises:
            StorageError: the store refuses, or is out.
        """
        restore_replaced(self._root)
        if self._remote is not None:
            sweep_parts(self._remote, keep=self._attempt)
            fetch_newest(self._remote, self.path_of)
        return self._latest_good_here()

    def _latest_good_here(self) -> Checkpoint | None:
        for step, path in reversed(self._folders()):
            try:
                return _read(step, path)
            except StorageError as error:
                _log.warning("checkpoint of step %d is not usable, trying an earlier one: %s", step, error)
        return None

    def path_of(self, step: int) -> Path:
        """Where the checkpoint of a step lies, if there is one."""
        if step < 0:
            raise ValueError(f"step is {step}; steps count from 0")
        return self._root / f"step-{step:08d}"

    def _shared(self, step: int) -> Path:
        path = self.path_of(step)
        return path.with_name(f"{path.name}.tmp-{self._attempt}")

    def _release(self) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def _folders(self) -> list[tuple[int, Path]]:
        entries = self._root.iterdir() if self._root.is_dir() else iter(())
        found = ((_STEP_NAME.fullmatch(path.name), path) for path in entries)
        return sorted((int(match[1]), path) for match, path in found if match is not None)

    def _discard_unfinished(self, target: Path) -> None:
        """Clear a folder of this step that lost its marker and manifest; the commit would refuse to replace it."""
        if target.is_dir() and not any((target / name).exists() for name in RESERVED_NAMES):
            _log.warning("%s was never committed; it is replaced", target)
            remove_tree(target)

    def _committed(self, target: Path) -> None:
        if self._uploads is not None:
            self._uploads.offer(target)
        self._tidy()

    def _tidy(self) -> None:
        """Delete what is older than the last ``keep_last``, but never the newest one that verifies."""
        sweep_orphans(self._root, keep=self._attempt)
        kept = self.steps()[-self._keep_last :]
        old = [(step, path) for step, path in self._folders() if step < kept[0]] if kept else []
        if not old:
            return
        good = self._latest_good_here()
        for step, path in old:
            is_read = self._uploads is not None and self._uploads.busy == path
            if good is not None and step < good.step and not is_read:
                remove_tree(path)


def steps_at(root: Path, *, is_patient: bool = True) -> list[int]:
    """Steps of the committed checkpoints of a run, wherever it lies, in rising order.

    Raises:
        StorageError: the store refuses, or is out, for seconds if it is not to be waited for.
    """
    if isinstance(root, RemotePath):
        return stored_steps(root, is_patient=is_patient)
    return CheckpointFolder(root).steps()


def _write_meta(folder: Path, step: int, meta: Mapping[str, Any]) -> None:
    record = {"step": step, "created_at": datetime.now(UTC).isoformat("T", "seconds"), "meta": dict(meta)}
    if (folder / META_FILE).exists():
        raise StorageError(f"{folder / META_FILE}: this name is the checkpoint's own; name the file otherwise")
    try:
        write_json_atomic(folder / META_FILE, record)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"checkpoint of step {step}: its record is not JSON data ({error}); "
            "a run whose loss is not a number has no state worth keeping"
        ) from None


def _read(step: int, path: Path) -> Checkpoint:
    manifest = verify_folder(path)
    try:
        record = json.loads((path / META_FILE).read_bytes())
        found, meta = record["step"], record["meta"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{path / META_FILE}: not a checkpoint's record: {error!r}") from None
    if found != step:
        raise StorageError(f"{path}: holds step {found}; the folder was renamed")
    return Checkpoint(step, path, meta, manifest)
