"""How a training run hears that it should save or end: the driver through a file, a rank through SIGTERM.

What one rank hears, all ranks do after the same step: their words are added up in the sum that every step makes anyway.
"""

import json
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
from retort.orchestration.train.ranks import Ranks
from retort.store.commit import write_json_atomic
from retort.store.place import behind, content_of, drop, push_json, shipped

_FILE = "stop.json"
_told_to_leave = threading.Event()


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

    Args:
        folder: the run's output.
        action: what to do.
        run: tells this run of the driver from others.
        reason: for the log.
    """
    word = {"run": run, "request": uuid.uuid4().hex, "action": int(action), "reason": reason}
    push_json(folder / _FILE, word)
    write_json_atomic(folder / _FILE, word)


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
        self._path, self._ranks, self._run = folder / _FILE, ranks, run
        self._looked_at, self._done = -math.inf, ""
        self._every_s = self.LOOK_EVERY_S if behind(self._path) is None else self.ASK_EVERY_S

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
        """Why, in the driver's words; empty if it said nothing."""
        return str(self._read().get("reason", ""))

    def _hear(self) -> Action:
        own = Action.LEAVE if _told_to_leave.is_set() else Action.GO_ON
        now = time.monotonic()
        if self._ranks.rank or now - self._looked_at < self._every_s:
            return own
        self._looked_at = now
        tree = self._read()
        if not tree or tree["request"] == self._done:
            return own
        self._done = tree["request"]
        return max(own, Action(tree["action"]))

    def _read(self) -> dict[str, Any]:
        try:
            tree = json.loads(content_of(shipped(self._path)) or "{}")
        except (OSError, ValueError, StorageError):
            return {}
        return tree if tree.get("run") == self._run else {}
