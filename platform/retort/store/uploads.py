"""What a running job writes, on its way to a store: the job does not wait for it, and goes on while it is out."""

import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from retort.errors import StorageError
from retort.location import RemotePath
from retort.store.commit import is_leftover
from retort.store.manifest import MARKER_NAME
from retort.store.place import behind, pull_folder, push_files, store_of
from retort.store.s3_faults import RemoteStoreError, StoreFault, is_outage

_RETRY_S = 5.0
_MAX_REFUSED = 3
"""Checkpoints in a row; an outage does not count."""
_MIRROR_EVERY_S = 3.0
_MIRROR_SHARE = 0.1
"""Of its time, that a mirror spends on copying at most."""
_DAMAGE = (StoreFault.DAMAGED, StoreFault.NOT_FOUND)
"""What is wrong with a checkpoint that has its marker: other bytes than were written, or a file that is not there."""
_STEP = re.compile(r"step-([0-9]{8,})")

_log = logging.getLogger(__name__)


def stored_steps(root: RemotePath, *, is_patient: bool = True) -> list[int]:
    """Steps whose checkpoints a store has whole, in rising order."""
    keys = store_of(root.bucket, is_patient=is_patient).list(root.key)
    found = (_STEP.fullmatch(key.removeprefix(f"{root.key}/").split("/")[0]) for key in keys if _is_marker(key))
    return sorted(int(match[1]) for match in found if match is not None)


def _is_marker(key: str) -> bool:
    return key.endswith(f"/{MARKER_NAME}")


def by_hand(checkpoint: Path) -> str:
    """What a person does about a checkpoint that is on this machine only, which the next run would remove."""
    return (
        f"on {socket.gethostname()}, copy {checkpoint} to {behind(checkpoint)} before you run the same command again, "
        "which goes on from what the store has and removes the rest"
    )


class Uploads:
    """Copies committed checkpoints to a store in a thread of its own, the newest first; older ones are passed over.

    A store that is out is tried until it answers. One that refuses is tried as well, for a person may mend it, but not
    for ever.

    Args:
        root: where the checkpoints go.
        keep_last: how many stay there. Old ones go after a new one is whole.
    """

    def __init__(self, root: RemotePath, keep_last: int) -> None:
        self._root, self._keep_last = root, keep_last
        self._changed = threading.Condition()
        self._waiting: Path | None = None
        self._busy: Path | None = None
        self._is_stored = True  # what was offered last
        self._refused: dict[str, Exception] = {}
        self._closing = False
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> Path | None:
        """The checkpoint that is read at the moment, which must stay."""
        return self._busy

    def offer(self, checkpoint: Path) -> None:
        """Have a committed checkpoint copied as soon as possible.

        Raises:
            StorageError: the last ones were refused; this one, too, is tried until :meth:`close` ends.
        """
        with self._changed:
            self._waiting, self._is_stored = checkpoint, False
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="checkpoint-uploads", daemon=True)
                self._thread.start()
            self._changed.notify_all()
            if len(self._refused) >= _MAX_REFUSED:
                *_, fault = self._refused.values()
                raise StorageError(
                    f"{', '.join(self._refused)} could not be stored, and {checkpoint.name} is on this machine only: "
                    f"{fault}. When that is mended, {by_hand(checkpoint)}"
                )

    def close(self, timeout_s: float | None = None) -> bool:
        """Wait until the newest checkpoint is stored; False if it is not, after a last refusal or the time."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: self._waiting is None and self._busy is None, timeout_s)
            is_stored = self._is_stored
        if self._thread is not None and done:
            self._thread.join()
        return is_stored

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or self._closing)
                if self._waiting is None:
                    return
                self._busy, self._waiting = self._waiting, None
            fault = self._store(self._busy)
            with self._changed:
                self._note(self._busy, fault)
                self._busy = None
                self._changed.notify_all()
                if fault is not None:
                    self._changed.wait_for(lambda: self._closing, _RETRY_S)

    def _note(self, checkpoint: Path, fault: Exception | None) -> None:
        if fault is None:
            self._refused.clear()
        elif not is_outage(fault):
            self._refused[checkpoint.name] = fault
        if self._waiting is None:
            self._is_stored = fault is None
            if fault is not None and not self._closing:
                self._waiting = checkpoint

    def _store(self, checkpoint: Path) -> Exception | None:
        """Copy it; returns why it is not in the store."""
        began = time.monotonic()
        try:
            push_files(checkpoint.parent.parent)  # the log up to here, before the marker
            store_of(self._root.bucket).put_folder(checkpoint, f"{self._root.key}/{checkpoint.name}")
        except (StorageError, OSError) as error:
            _log.warning("%s is on this machine only; it is tried again: %s", checkpoint.name, error)
            return error
        _log.info("%s is in %s after %.1f s", checkpoint.name, self._root, time.monotonic() - began)
        self._tidy()
        return None

    def _tidy(self) -> None:
        try:
            for step in stored_steps(self._root)[: -self._keep_last]:
                _delete(self._root, step)
        except StorageError as error:
            _log.warning("older checkpoints stay in %s until a newer one is stored: %s", self._root, error)


def fetch_newest(root: RemotePath, target: Callable[[int], Path]) -> None:
    """Bring the newest whole checkpoint of a store here, in place of another one of its step.

    One that is damaged is deleted there, with a warning, and an earlier one is taken: it would stand in the way of the
    one of its step that is made again, and count as one of those that are kept.

    Raises:
        StorageError: the store refuses, or is out.
    """
    for step in reversed(stored_steps(root)):
        try:
            pull_folder(target(step))
        except RemoteStoreError as error:
            if error.fault not in _DAMAGE:
                raise
            _log.warning("checkpoint of step %d is deleted from %s, trying an earlier one: %s", step, root, error)
            _delete(root, step)
        else:
            return


def _delete(root: RemotePath, step: int) -> None:
    store_of(root.bucket).delete_prefix(f"{root.key}/step-{step:08d}")


def sweep_parts(root: RemotePath, *, keep: str) -> None:
    """Delete what ranks that died left of checkpoints that nobody put together.

    Args:
        root: of the checkpoints.
        keep: the attempt that is alive.
    """
    store = store_of(root.bucket)
    for key in store.list(root.key):
        name = key.removeprefix(f"{root.key}/").split("/")[0]
        if is_leftover(name) and not name.endswith(keep):
            store.delete_prefix(key)


class Mirror:
    """Keeps copies of small files that grow in the store behind them, for whoever follows them from another node.

    Args:
        files: they need not be there yet; where no store is behind them, nothing is done.
        every_s: between two looks.
    """

    def __init__(self, files: Sequence[Path], *, every_s: float = _MIRROR_EVERY_S) -> None:
        self._places = {file: place for file in files if (place := behind(file)) is not None}
        self._every_s = every_s
        self._sent: dict[Path, tuple[int, int]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)

    def __enter__(self) -> Self:
        """Begin; of a file that an earlier writer left on another node, what it wrote comes here first.

        Raises:
            StorageError: the store refuses.
        """
        for file, place in self._places.items():
            found = store_of(place.bucket).read_tagged(place.key)
            if found is not None and len(found[0]) > (file.stat().st_size if file.is_file() else 0):
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(found[0])
        if self._places:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Copy what is left, as far as the store lets."""
        self._stop.set()
        if self._places:
            self._thread.join()
            self._copy()

    def _work(self) -> None:
        pause_s = self._every_s
        while not self._stop.wait(pause_s):
            began = time.monotonic()
            self._copy()
            pause_s = max(self._every_s, (time.monotonic() - began) / _MIRROR_SHARE)

    def _copy(self) -> None:
        for file, place in self._places.items():
            try:
                state = file.stat()
                seen = (state.st_size, state.st_mtime_ns)
                if self._sent.get(file) != seen:
                    store_of(place.bucket, is_patient=False).write_bytes(place.key, file.read_bytes())
                    self._sent[file] = seen
            except FileNotFoundError:
                continue
            except (StorageError, OSError) as fault:
                _log.debug("%s is not copied yet: %s", file, fault)
