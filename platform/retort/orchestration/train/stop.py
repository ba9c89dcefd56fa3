"""How a training run hears that it should save or end: the driver through a file, a rank through SIGTERM.

What one rank hears, all ranks do after the same step: their words are added up in the sum that every step makes anyway.
"""

import contextlib
import json
import logging
import math
import signal
import threading
import time
import uuid
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import torch
from torch import Tensor

from retort.errors import PreemptedError, StorageError
from retort.location import RemotePath
from retort.orchestration.train.ranks import Ranks
from retort.store.commit import write_json_atomic
from retort.store.place import behind, content_of, drop, store_of

_FILE = "stop.json"
_SEND_AGAIN_S = 5.0
_sending = threading.Lock()
_told_to_leave = threading.Event()

_log = logging.getLogger(__name__)


class Action(IntEnum):
    """What to do before the next step; the larger one wins."""

    GO_ON = 0
    SAVE = 1
    """Write a checkpoint and go on: a node is to be taken away."""
    LEAVE = 2
    """Write a checkpoint and let the worker group start again: a worker was told to end."""
    END = 3
    """Write a checkpoint and end the run: the driver was told to end."""


@dataclass(frozen=True)
class Stop:
    """What is to be done, and why."""

    action: Action
    reason: str


class WorkerLeavesError(PreemptedError):
    """A worker was told to end; the others end with it, and the group starts again where there is room."""


def request_stop(folder: Path, action: Action, *, run: str, reason: str) -> None:
    """Leave the word for rank 0; a later word replaces it.

    It is left on this node, where rank 0 may be. Into a store a thread brings it as soon as the store lets, for whoever
    leaves it has a time of grace to keep.

    Args:
        folder: the run's output.
        action: what to do.
        run: tells this run of the driver from others.
        reason: for the log.
    """
    path, place = folder / _FILE, behind(folder / _FILE)
    word = {"run": run, "request": uuid.uuid4().hex, "action": int(action), "reason": reason}
    write_json_atomic(path, word)
    if place is not None:
        threading.Thread(target=_send, args=(path, place), name="stop", daemon=True).start()


def _send(path: Path, place: RemotePath) -> None:
    """Bring the word that lies here into the store, again and again, until it is there or another one lies here."""
    word = content_of(path)
    while True:
        with _sending:  # one at a time: an earlier word that waits for its answer must not come after a later one
            if word is None or content_of(path) != word:
                return
            try:
                store_of(place.bucket, is_patient=False).write_bytes(place.key, word)
            except StorageError as error:
                _log.warning("workers on other nodes do not hear yet that they should save: %s", error)
            else:
                return
        time.sleep(_SEND_AGAIN_S)


def clear_stop(folder: Path) -> None:
    """Remove what an earlier run left."""
    drop(folder / _FILE)


def note_sigterm() -> None:
    """From now on SIGTERM is a word to this rank; a second one ends the process as before. Main thread only."""
    before = signal.getsignal(signal.SIGTERM)

    def note(number: int, frame: FrameType | None) -> None:
        del number, frame
        _told_to_leave.set()
        signal.signal(signal.SIGTERM, before)

    signal.signal(signal.SIGTERM, note)


class StopListener:
    """What this rank hears, and what all ranks agree on.

    A store is asked by a thread, so that no step waits for one that is out; a driver on this node is heard without it.

    Args:
        folder: the run's output.
        ranks: who takes part.
        run: of the driver.
    """

    LOOK_EVERY_S: ClassVar[float] = 0.5
    """How often rank 0 looks for the file, which lies on storage that may be slow."""
    ASK_EVERY_S: ClassVar[float] = 5.0
    """The same where the output is in a store, which each look asks."""

    def __init__(self, folder: Path, ranks: Ranks, *, run: str) -> None:
        self._path, self._place = folder / _FILE, behind(folder / _FILE)
        self._ranks, self._run = ranks, run
        self._looked_at, self._asked_at = -math.inf, -math.inf
        self._asking = threading.Thread()
        self._stored: bytes | None = None
        self._done = self._reason = ""

    def agree(self, count: Tensor) -> tuple[Tensor, Action]:
        """Add up ``count`` over the ranks, and agree on what to do before the next step; every rank must call it.

        Args:
            count: a scalar.

        Returns:
            The sum, and the largest action that any rank heard of.
        """
        heard = self._hear()
        if self._ranks.world_size == 1:
            return count, heard
        words = [float(heard == action) for action in list(Action)[1:]]
        sums = self._ranks.sum(torch.cat([count.reshape(1), count.new_tensor(words)]))
        said = [action for action, ranks in zip(list(Action)[1:], sums[1:].tolist(), strict=True) if ranks]
        return sums[0], max(said, default=Action.GO_ON)

    @property
    def reason(self) -> str:
        """Why, in the driver's words; empty if it said nothing, and on other ranks than rank 0."""
        return self._reason

    def _hear(self) -> Action:
        own = Action.LEAVE if _told_to_leave.is_set() else Action.GO_ON
        now = time.monotonic()
        if self._ranks.rank or now - self._looked_at < self.LOOK_EVERY_S:
            return own
        self._looked_at = now
        if self._place is not None and now - self._asked_at >= self.ASK_EVERY_S and not self._asking.is_alive():
            self._asked_at = now
            self._asking = threading.Thread(target=self._ask, args=(self._place,), name="stop", daemon=True)
            self._asking.start()
        tree = self._read()
        if not tree or tree["request"] == self._done:
            return own
        self._done, self._reason = tree["request"], str(tree["reason"])
        return max(own, Action(tree["action"]))

    def _ask(self, place: RemotePath) -> None:
        with contextlib.suppress(StorageError):  # it is asked again
            self._stored = content_of(place, is_patient=False)

    def _read(self) -> dict[str, Any]:
        try:
            tree = json.loads(content_of(self._path) or self._stored or "{}")
        except (OSError, ValueError):
            return {}
        return tree if tree.get("run") == self._run else {}
