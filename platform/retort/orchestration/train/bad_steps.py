"""Steps whose loss is not a number: noted with their rows, left out by the next start, refused if they are too many.

A step cannot be taken back once a part of its gradient is in: other micro-batches have been added up, other ranks have
summed. So the rank that finds one notes it and the workers end; the driver starts them again from the last checkpoint,
and then all ranks count that step without making it. The notes stay in ``OUTPUT/bad_steps``, so a run that is resumed
later, on any number of ranks, leaves out the same steps and ends with the same bits.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from retort.errors import QualityGateError, StorageError
from retort.orchestration.failures import clear_failure
from retort.orchestration.progress import Progress
from retort.store.checkpoints import steps_at
from retort.store.commit import write_json_atomic
from retort.store.place import pull, push, shipped

FOLDER = "bad_steps"


@dataclass(frozen=True)
class BadStep:
    """What one rank knows of such a step.

    Attributes:
        step: its number, from 1 as in ``metrics.jsonl``.
        rank: who found it; ``world_size`` is of how many.
        world_size: see ``rank``.
        reason: what was seen, in words.
        batches: numbers of the micro-batches that may be at fault, on this rank.
        ids: of the rows in them.
    """

    step: int
    rank: int
    world_size: int
    reason: str
    batches: tuple[int, ...]
    ids: tuple[str, ...]


def note_bad_step(output: Path, bad: BadStep) -> None:
    """Write it down where the driver and the next start find it; each rank has a file of its own."""
    path = output / FOLDER / f"step-{bad.step:08d}-rank-{bad.rank:05d}.json"
    path.parent.mkdir(exist_ok=True)
    write_json_atomic(path, asdict(bad))
    push(path)


def bad_steps(output: Path) -> tuple[int, ...]:
    """Numbers of the steps that are noted, in order.

    Raises:
        StorageError: a note cannot be read.
    """
    pull(output / FOLDER)
    steps: set[int] = set()
    for path in (output / FOLDER).glob("step-*.json"):
        try:
            steps.add(int(json.loads(path.read_bytes())["step"]))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise StorageError(f"{path}: no note of a bad step ({error}); delete it to have the step made") from None
    return tuple(sorted(steps))


@dataclass(frozen=True)
class Allowance:
    """How many steps of how many may be left out."""

    bad: int
    steps: int

    def refuse(self, output: Path, checkpoints: Path) -> None:
        """Stop if more are noted.

        Raises:
            QualityGateError: with their numbers, the place of their rows, and the last checkpoint.
        """
        noted = bad_steps(output)
        if len(noted) <= self.bad and len(noted) < self.steps:
            return
        shown = ", ".join(map(str, noted[:8])) + (", …" if len(noted) > 8 else "")
        kept = steps_at(checkpoints)
        raise QualityGateError(
            f"the loss is not a number in {len(noted)} of {self.steps} steps ({shown}), and training.max_bad_steps is "
            f"{self.bad}; of step {noted[0]}: {_reason(output, noted[0])}; the rows are named in "
            f"{shipped(output / FOLDER)}; to try other settings choose another output; "
            f"{told_of_last(kept[-1] if kept else 0)}"
        )


def _reason(output: Path, step: int) -> str:
    note = min((output / FOLDER).glob(f"step-{step:08d}-rank-*.json"))
    return str(json.loads(note.read_bytes()).get("reason"))


def told_of_last(step: int) -> str:
    """What is said of the last checkpoint; step 0 is none."""
    return f"the last checkpoint, of step {step}, is intact" if step else "there is no checkpoint yet"


def train_around_bad_steps(
    train: Callable[[], None], output: Path, checkpoints: Path, allowance: Allowance, progress: Progress
) -> None:
    """Call ``train`` until it ends, once more after each step that it noted, as far as the allowance goes.

    Raises:
        QualityGateError: too many bad steps.
    """
    while True:
        allowance.refuse(output, checkpoints)
        before = set(bad_steps(output))
        try:
            train()
        except QualityGateError as error:
            new = sorted(set(bad_steps(output)) - before)
            if not new:
                raise
            allowance.refuse(output, checkpoints)
            clear_failure(output)
            names = " and ".join(map(str, new))
            start = "last checkpoint" if steps_at(checkpoints) else "beginning"
            progress.log(f"{error}; going on from the {start} without step {names}")
        else:
            return
