"""Checkpoints of a training run: what every rank must keep to go on as if nothing had happened."""

import json
import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retort.errors import ConfigError, QualityGateError, StorageError
from retort.orchestration.train.deepspeed_engine import DeepSpeedOptimizer
from retort.orchestration.train.master_weights import (
    MOMENTS,
    PieceReader,
    optimizer_tensors,
    prepare_moments,
)
from retort.orchestration.train.ranks import Ranks
from retort.store.checkpoints import CheckpointFolder
from retort.store.disk import full_disk_as_resource_error
from retort.store.place import behind, drop, pull, pull_folder, push, received, shipped
from retort.store.uploads import by_hand
from retort.training.seam import Teacher

_log = logging.getLogger(__name__)
_TEACHER = "teacher/"


class BadWeightsError(QualityGateError):
    """A weight is not a number: the gradient of the last step was none."""


@dataclass(frozen=True)
class RunState:
    """What a checkpoint holds, beside the random numbers of torch, Python and numpy.

    Attributes:
        optimizers: by name; all make their steps together.
        teacher: its state and its random numbers.
    """

    optimizers: Mapping[str, DeepSpeedOptimizer]
    teacher: Teacher[Any, Any]

    @property
    def step(self) -> int:
        """Steps that are done."""
        (step,) = {optimizer.step for optimizer in self.optimizers.values()}
        return step

    @property
    def steps_of_all(self) -> int:
        """Steps that every optimizer has made; in the midst of a step, when a gradient is bad, not all have as many."""
        return min(optimizer.step for optimizer in self.optimizers.values())

    def leave_out_step(self) -> None:
        """Count a step that none makes; every rank must call it."""
        for optimizer in self.optimizers.values():
            optimizer.leave_out_step()

    def is_finite_here(self) -> bool:
        """Whether every weight that this rank holds or computes with is a number; other ranks are not asked."""
        return all(optimizer.is_finite_here() for optimizer in self.optimizers.values())

    @property
    def accumulation(self) -> int:
        """Micro-batches of a step on one rank."""
        (accumulation,) = {optimizer.config.accumulation for optimizer in self.optimizers.values()}
        return accumulation


@dataclass(frozen=True)
class Found:
    """The checkpoint that all ranks resume from."""

    step: int
    path: Path
    meta: Mapping[str, Any]


class TrainingCheckpoints:
    """Saves and restores masters, moments, average and random numbers, each rank its own part, as tensors only.

    Args:
        root: the run's ``checkpoints`` folder, on a file system that all ranks share.
        ranks: who takes part.
        keep_last: how many checkpoints stay.
        accumulation: as the run file has it, which is not what fewer ranks than before make of it.
    """

    def __init__(self, root: Path, ranks: Ranks, *, keep_last: int, accumulation: int) -> None:
        self.ranks = ranks
        self._accumulation = accumulation
        self._folder = CheckpointFolder(root, keep_last=keep_last, attempt=ranks.agree_on_attempt())
        self._is_shared = behind(root) is None or ranks.see_one_folder(root)

    def find(self) -> Found | None:
        """The newest checkpoint that verifies; rank 0 decides, so that no two ranks differ.

        Raises:
            StorageError: the store, from which ranks on other nodes take it, refuses.
        """
        tree: dict[str, Any] | None = None
        if self.ranks.rank == 0:
            good = self._folder.latest_good()
            if good is not None:
                if not self._is_shared:
                    push(good.path)  # the upload of one that was just written may have died with its process
                tree = {"step": good.step, "path": str(shipped(good.path)), "meta": dict(good.meta)}
        tree = self.ranks.from_rank_zero(tree)
        if tree is None:
            return None
        path = received(tree["path"])
        if not self._is_shared:
            pull_folder(path)
        return Found(tree["step"], path, tree["meta"])

    def close(self) -> None:
        """Wait until the last checkpoint is in the store behind the folder, if there is one."""
        if not self._folder.close():
            _log.warning("the last checkpoint is%s", self._only_here())

    def how_to_go_on(self) -> str:
        """The same; returns what follows on the words that the last checkpoint is written."""
        return ": run the same command again to go on from there" if self._folder.close() else self._only_here()

    def _only_here(self) -> str:
        newest = self._folder.path_of(self._folder.steps()[-1])
        return f" on this machine only, for the store did not take it: {by_hand(newest)}"

    def save(self, state: RunState) -> None:
        """Write the checkpoint of the optimizers' step; every rank must call it.

        Raises:
            BadWeightsError: a weight is not a number; what is worth resuming from is kept.
            StorageError: as :meth:`retort.store.checkpoints.CheckpointFolder.finish`.
            ResourceError: the disk is full; the checkpoints before are intact.
        """
        step, ranks = state.step, self.ranks
        finite = [optimizer.is_finite() for optimizer in state.optimizers.values()]  # on every rank all are asked
        if not all(finite):
            raise BadWeightsError(f"a weight is not a number after step {step}")
        folder = self._folder.begin(step)
        with full_disk_as_resource_error(folder, written=folder):
            _write_rank(folder / _rank_file(ranks.rank), state, is_first=ranks.rank == 0)
        names = [_rank_file(rank) for rank in range(ranks.world_size)]
        if behind(folder) is not None and not self._is_shared:
            push(folder / names[ranks.rank])
        ranks.barrier()
        if ranks.rank == 0:
            if not self._is_shared:
                pull(folder)
            meta = {
                "world_size": ranks.world_size,
                "micro_batches_per_step": state.accumulation * ranks.world_size,
                "accumulation": self._accumulation,
                "has_average": any(optimizer.ema is not None for optimizer in state.optimizers.values()),
            }
            self._folder.finish(step, meta, expected_files=names)
            if not self._is_shared:
                drop(folder)
        ranks.barrier()
        if ranks.rank and not self._is_shared:
            self._folder.leave(step)

    def restore(self, found: Found, state: RunState) -> None:
        """Put a checkpoint into fresh optimizers, a fresh teacher, and the random number generators.

        Raises:
            StorageError: the checkpoint is of another model or teacher.
        """
        files = [found.path / _rank_file(rank) for rank in range(int(found.meta["world_size"]))]
        headers = [_header(path) for path in files]
        starts = [json.loads(header["starts"]) for header in headers]
        for name, optimizer in state.optimizers.items():
            reader = PieceReader(files, [start.get(name, {}) for start in starts], prefix=f"{name}/")
            _restore_optimizer(reader, optimizer, found.step)
        _restore_teacher(files[0], state.teacher)
        if int(found.meta["world_size"]) == self.ranks.world_size:
            _restore_generators(files[self.ranks.rank], headers[self.ranks.rank], state.teacher.generators)
        else:
            _log.warning(
                "resumed on %d ranks what %d ranks began: dropout and guidance scales are drawn anew",
                self.ranks.world_size,
                found.meta["world_size"],
            )


@dataclass(frozen=True)
class Asked:
    """What the run file says of a step: so many micro-batches on each of so many workers."""

    accumulation: int
    workers: int


def accumulation_for(found: Found | None, asked: Asked, world_size: int) -> int:
    """Micro-batches per rank and step that keep the step the same on this number of ranks.

    Args:
        found: what the run goes on from; None at its beginning.
        asked: by the run file.
        world_size: number of ranks.

    Raises:
        ConfigError: the step's micro-batches cannot be dealt out evenly, or the run file now asks for another step;
            both numbers and the cure are named.
    """
    wanted = asked.accumulation * asked.workers
    if found is None:
        assert wanted % world_size == 0, "the configuration allows only numbers of workers that divide the step"
        return wanted // world_size
    per_step, before = int(found.meta["micro_batches_per_step"]), int(found.meta["world_size"])
    # Checkpoints from before this was recorded were written with what the run file said.
    is_as_before = asked.accumulation == int(found.meta.get("accumulation", per_step // before))
    if per_step % world_size or not (wanted == per_step or is_as_before):
        raise ConfigError(
            f"the checkpoint of step {found.step} was written by {before} workers, {per_step} micro-batches a step; "
            f"this run has {world_size} workers with accumulation {asked.accumulation}; choose num_workers and "
            f"optimizer.accumulation so that {per_step} micro-batches make a step, or another output"
        )
    return per_step // world_size


def _rank_file(rank: int) -> str:
    return f"rank_{rank:05d}.safetensors"


def _write_rank(path: Path, state: RunState, *, is_first: bool) -> None:
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    starts: dict[str, dict[str, int]] = {}
    for name, optimizer in state.optimizers.items():
        # Without sharding all ranks hold the same, and one copy is enough.
        pieces = optimizer.pieces if is_first or optimizer.is_sharded else []
        held = optimizer_tensors(optimizer.engine, pieces)
        if optimizer.ema is not None:
            held.update({f"ema/{piece.name}": optimizer.ema[i] for i, piece in enumerate(pieces)})
        tensors.update({f"{name}/{key}": tensor for key, tensor in held.items()})
        starts[name] = {piece.name: piece.start for piece in pieces}
    if is_first:
        tensors.update({_TEACHER + name: tensor for name, tensor in state.teacher.state().items()})
    random_states = _generator_states(state.teacher.generators)
    tensors.update({f"random/{name}": tensor for name, tensor in random_states.items()})
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    metadata = {
        "starts": json.dumps(starts),
        "python": json.dumps(random.getstate()),
        "numpy": json.dumps([kind, keys.tolist(), position, has_gauss, gauss]),  # type: ignore[union-attr]
    }
    # Pieces are views of common storage, which safetensors refuses; a copy of one rank's part fits in memory.
    save_file({name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}, path, metadata)


def _restore_optimizer(reader: PieceReader, optimizer: DeepSpeedOptimizer, step: int) -> None:
    prepare_moments(optimizer.engine, optimizer.pieces, step)
    tensors = optimizer_tensors(optimizer.engine, optimizer.pieces)
    with torch.no_grad():
        for i, piece in enumerate(optimizer.pieces):
            for kind in ("fp32", *MOMENTS):
                reader.read_into(tensors[f"{kind}/{piece.name}"], kind, piece)
            if optimizer.ema is not None:
                reader.read_into(optimizer.ema[i], "ema", piece)
    optimizer.step = step
    optimizer.refresh()


def _restore_teacher(path: Path, teacher: Teacher[Any, Any]) -> None:
    from safetensors import safe_open

    wanted = teacher.state()
    with safe_open(path, framework="pt") as file:
        stored = {name.removeprefix(_TEACHER) for name in file.keys() if name.startswith(_TEACHER)}  # noqa: SIM118
        if stored != wanted.keys():
            raise StorageError(
                f"{path} holds {len(stored)} tensors of a teacher, this run's teacher has {len(wanted)}, and not all "
                "have the same names; it belongs to another run"
            )
        teacher.restore({name: file.get_tensor(_TEACHER + name) for name in stored})


def _generator_states(generators: Mapping[str, torch.Generator]) -> dict[str, Tensor]:
    states = {"torch": torch.get_rng_state(), **{_TEACHER + name: g.get_state() for name, g in generators.items()}}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _header(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata())
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{path}: cannot be read: {error}") from error


def _restore_generators(path: Path, header: Mapping[str, str], generators: Mapping[str, torch.Generator]) -> None:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        torch.set_rng_state(file.get_tensor("random/torch"))
        for name, generator in generators.items():
            generator.set_state(file.get_tensor(f"random/{_TEACHER}{name}"))
        if torch.cuda.is_available() and "random/cuda" in file.keys():  # noqa: SIM118 - not a mapping
            torch.cuda.set_rng_state(file.get_tensor("random/cuda"))
    version, state, gauss = json.loads(header["python"])
    random.setstate((version, tuple(state), gauss))
    kind, keys, position, has_gauss, cached = json.loads(header["numpy"])
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
