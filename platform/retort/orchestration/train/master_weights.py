"""The pieces of the fp32 master weights that one rank holds, whatever the ZeRO stage.

DeepSpeed keeps masters and moments as they are (stage 0), as flat slices over all parameters (1, 2), or as slices of
each parameter (3). Here they are named pieces of named parameters, so that a checkpoint depends neither on the stage
nor on the number of ranks, and holds nothing but tensors.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from retort.errors import StorageError

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Piece:
    """A contiguous piece of one parameter.

    Attributes:
        name: the parameter's name in the objective.
        parameter: the parameter, of any precision, perhaps itself partitioned.
        start: where the piece begins in the flattened parameter.
        numel: elements of the piece; 0 where a small parameter has none for this rank.
        owner: the fp32 tensor that the optimizer updates.
        offset: where the piece begins in the flattened owner.
    """

    name: str
    parameter: Tensor
    start: int
    numel: int
    owner: Tensor
    offset: int

    def of(self, tensor: Tensor) -> Tensor:
        """This piece of the owner or of a tensor of its shape, as a one-dimensional view."""
        return tensor.detach().view(-1).narrow(0, self.offset, self.numel)


def pieces_of(engine: Any) -> list[Piece]:
    """The pieces that this rank updates, in the order of the parameters."""
    named = [(name, p) for name, p in engine.module.named_parameters() if p.requires_grad]
    match engine.zero_optimization_stage():
        case 0:
            return [Piece(name, p, 0, p.numel(), p, 0) for name, p in named]
        case 1 | 2:
            return list(_flat_slices(engine.optimizer, named))
        case _:
            return list(_parameter_slices(engine.optimizer, named))


def _flat_slices(optimizer: Any, named: Iterable[tuple[str, nn.Parameter]]) -> Iterator[Piece]:
    for name, parameter in named:
        mapping: Any = getattr(parameter, "_hp_mapping", None)
        if mapping is not None:  # None: other ranks hold all of it
            owner = optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
            low, high = mapping.lp_fragment_address, mapping.hp_fragment_address
            yield Piece(name, parameter, low.start, low.numel, owner, high.start)


def _parameter_slices(optimizer: Any, named: Iterable[tuple[str, nn.Parameter]]) -> Iterator[Piece]:
    rank = torch.distributed.get_rank(optimizer.dp_process_group)
    for name, parameter in named:
        group, offset, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
        whole: int = parameter.ds_numel  # type: ignore[attr-defined]
        start = min(rank * size, whole)
        owner = optimizer.fp32_partitioned_groups_flat[group]
        yield Piece(name, parameter, start, min(size, whole - start), owner, offset)


def refresh_parameters(engine: Any) -> None:
    """Copy the masters into the parameters that the model computes with."""
    optimizer = engine.optimizer
    match engine.zero_optimization_stage():
        case 0:
            return
        case 1 | 2:
            optimizer.update_lp_params()
        case _:
            for group in range(len(optimizer.fp32_partitioned_groups_flat)):
                optimizer._reassign_or_swap_out_partitioned_parameters(group)
            if optimizer.persistent_parameters:
                optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)


def adam_of(engine: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside the engine."""
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    assert isinstance(inner, torch.optim.AdamW)
    return inner


def optimizer_tensors(engine: Any, pieces: Iterable[Piece]) -> dict[str, Tensor]:
    """``fp32/NAME``, ``exp_avg/NAME`` and ``exp_avg_sq/NAME`` of each piece, as views."""
    state = adam_of(engine).state
    found: dict[str, Tensor] = {}
    for piece in pieces:
        found[f"fp32/{piece.name}"] = piece.of(piece.owner)
        for moment in MOMENTS:
            found[f"{moment}/{piece.name}"] = piece.of(state[piece.owner][moment])
    return found


def prepare_moments(engine: Any, pieces: Iterable[Piece], step: int) -> None:
    """Create AdamW's state (which it makes at its first step only), with ``step`` steps done, to be filled."""
    state = adam_of(engine).state
    for piece in pieces:
        if piece.owner not in state:
            state[piece.owner] = {
                "step": torch.tensor(float(step)),
                **{moment: torch.zeros_like(piece.owner) for moment in MOMENTS},
            }


def leave_out_step(engine: Any, pieces: Sequence[Piece], step: int) -> None:
    """Count a step in AdamW's state, after ``step`` steps, without making it: its bias correction goes by steps.

    A run that goes on from a checkpoint after that step counts the same (:func:`prepare_moments`).
    """
    prepare_moments(engine, pieces, step)
    for state in adam_of(engine).state.values():
        state["step"] += 1


class PieceReader:
    """Reads pieces from the files of all ranks of an earlier run, of whatever number.

    Args:
        files: safetensors files that hold one-dimensional tensors.
        starts: for each file, where the piece of each parameter begins in the flattened parameter.
        prefix: of the tensors' names.
    """

    def __init__(self, files: Iterable[Path], starts: Iterable[Mapping[str, int]], *, prefix: str = "") -> None:
        from safetensors import safe_open

        self._prefix = prefix
        self._files: list[tuple[Any, dict[str, int]]] = [
            (safe_open(path, framework="pt"), dict(start)) for path, start in zip(files, starts, strict=True)
        ]

    def read_into(self, target: Tensor, kind: str, piece: Piece) -> None:
        """Fill ``target`` with the elements of ``PREFIX kind/piece.name`` that belong to ``piece``.

        Raises:
            StorageError: the files do not hold all of them.
        """
        key, filled = f"{self._prefix}{kind}/{piece.name}", 0
        for file, starts in self._files:
            if piece.name not in starts or filled == piece.numel:
                continue
            stored = file.get_slice(key)
            begin = max(piece.start, starts[piece.name])
            end = min(piece.start + piece.numel, starts[piece.name] + stored.get_shape()[0])
            if begin < end:
                part = stored[begin - starts[piece.name] : end - starts[piece.name]]
                target[begin - piece.start : end - piece.start].copy_(part)
                filled += end - begin
        if filled != piece.numel:
            raise StorageError(
                f"the checkpoint holds {filled} of {piece.numel} elements of {key}; it belongs to another model"
            )


@torch.no_grad()
def full_parameters(engine: Any, pieces: Iterable[Piece]) -> dict[str, Tensor]:
    """The whole fp32 masters by name, on the CPU, gathered one parameter at a time; every rank must call it."""
    held = {piece.name: piece for piece in pieces}
    whole: dict[str, Tensor] = {}
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        if engine.zero_optimization_stage() == 0:
            whole[name] = parameter.detach().float().cpu().clone()
            continue
        shape = getattr(parameter, "ds_shape", parameter.shape)
        buffer = torch.zeros(shape.numel(), device=engine.device)
        if name in held:
            piece = held[name]
            buffer[piece.start : piece.start + piece.numel] = piece.of(piece.owner)
        torch.distributed.all_reduce(buffer)
        whole[name] = buffer.view(shape).cpu()
    return whole
