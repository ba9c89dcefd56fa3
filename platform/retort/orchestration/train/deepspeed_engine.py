"""The DeepSpeed engine as an optimizer: what :class:`retort.training.fit.PlainOptimizer` does, on many ranks."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from retort.errors import QualityGateError
from retort.orchestration.train.master_weights import (
    Piece,
    full_parameters,
    leave_out_step,
    pieces_of,
    refresh_parameters,
)
from retort.training.schedule import OptimizerConfig, ema_decay_at, learning_rate_at, parameter_groups
from retort.training.seam import Problem

ZeroStage = Literal[0, 1, 2, 3]


class BadGradientError(QualityGateError):
    """The gradient of a step is not a number, and the step was not made."""


class DeepSpeedOptimizer:
    """Backward pass, gradient accumulation, clipping, AdamW, schedule and weight average over ZeRO's shards.

    The average is kept as the same pieces as the fp32 masters, so no step gathers anything; it is made whole only when
    it is saved.

    Args:
        objective: holds the student; it is moved to the engine's device and precision.
        config: optimizer settings.
        num_steps: steps of the whole run, for the schedule.
        zero_stage: what is sharded over the ranks.
        dtype: ``torch.bfloat16`` computes in bf16 with fp32 masters.
        step: steps done already.
    """

    def __init__(
        self,
        objective: nn.Module,
        config: OptimizerConfig,
        num_steps: int,
        *,
        zero_stage: ZeroStage,
        dtype: torch.dtype = torch.float32,
        step: int = 0,
    ) -> None:
        import deepspeed

        if deepspeed.get_accelerator().device_name() == "cpu":
            # Else the start compiles a shared-memory all-reduce, for which a fresh machine may lack the compiler.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.config, self.num_steps, self.step = config, num_steps, step
        adam = torch.optim.AdamW(
            parameter_groups(objective, config.weight_decay), lr=config.learning_rate, betas=config.betas, fused=True
        )
        self.engine: Any = deepspeed.initialize(
            model=objective, optimizer=adam, config=deepspeed_config(config, zero_stage, dtype)
        )[0]
        self.pieces: list[Piece] = pieces_of(self.engine)
        self._masters = [piece.of(piece.owner) for piece in self.pieces]
        self.ema = [master.clone() for master in self._masters] if config.ema_decay else None
        self._micro_step = 0

    def apply_gradients(self, loss: Tensor, weight: Tensor | None) -> bool:
        """Accumulate; on the last micro-batch of a step, clip, update, and move the average.

        Args:
            loss: of a micro-batch.
            weight: its factor, ``None`` for 1; see :func:`micro_batch_weight`.

        Raises:
            BadGradientError: on every rank; with ZeRO, DeepSpeed passes over such a step and only logs it.
        """
        self.engine.backward(loss if weight is None else loss * weight)
        self._micro_step += 1
        last = self._micro_step % self.config.accumulation == 0
        if last:
            rate = learning_rate_at(self.step, self.num_steps, self.config)
            for group in self.engine.optimizer.param_groups:
                group["lr"] = rate
        self.engine.step()
        if last:
            if not self.engine.was_step_applied():
                raise BadGradientError("the gradient is not a number")
            self._move_average()
            self.step += 1
        return last

    def leave_out_step(self) -> None:
        """Count a step that is not made: weights and moments stay, the schedule goes on; every rank must call it."""
        leave_out_step(self.engine, self.pieces, self.step)
        self.step += 1

    def weights(self) -> dict[str, Tensor]:
        """The whole fp32 masters by name, on the CPU; every rank must call it."""
        return full_parameters(self.engine, self.pieces)

    @property
    def learning_rate(self) -> float:
        """Of the last step."""
        return float(self.engine.optimizer.param_groups[0]["lr"])

    @property
    def device(self) -> torch.device:
        """Where batches must lie."""
        return torch.device(self.engine.device)

    @property
    def is_sharded(self) -> bool:
        """Whether each rank holds a part of its own."""
        return bool(self.engine.zero_optimization_stage())

    @torch.no_grad()
    def _move_average(self) -> None:
        if self.ema is not None and self.config.ema_decay is not None:
            decay = ema_decay_at(self.step, self.config.ema_decay)
            torch._foreach_lerp_(self.ema, self._masters, 1.0 - decay)

    @torch.no_grad()
    def use_average(self) -> None:
        """Make the averaged weights the masters (for saving, after the last step); does nothing without an average."""
        if self.ema is not None:
            for average, master in zip(self.ema, self._masters, strict=True):
                master.copy_(average)

    @torch.no_grad()
    def is_finite(self) -> bool:
        """Whether every weight of every rank is a number; every rank must call it."""
        bad = torch.zeros((), device=self.device)
        for master in self._masters:
            bad += (~torch.isfinite(master)).any()
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(bad)
        return not bool(bad)

    def is_finite_here(self) -> bool:
        """Whether every weight that this rank holds or computes with is a number; other ranks are not asked."""
        held = [*self._masters, *self.engine.module.parameters()]
        return all(bool(torch.isfinite(weight).all()) for weight in held)

    def refresh(self) -> None:
        """Take masters that were written from outside into the model; every rank must call it."""
        refresh_parameters(self.engine)


def optimizers_of(
    problem: Problem, config: OptimizerConfig, num_steps: int, *, zero_stage: ZeroStage, dtype: torch.dtype
) -> dict[str, DeepSpeedOptimizer]:
    """The optimizer ``student`` of the objective, and ``adversary`` where the problem has one.

    The adversary's has the same settings but for the average, which nobody would use: an adversary is not kept.
    """
    made = DeepSpeedOptimizer(problem.objective, config, num_steps, zero_stage=zero_stage, dtype=dtype)
    if problem.adversary is None:
        return {"student": made}
    own = config.replace(ema_decay=None)
    return {
        "student": made,
        "adversary": DeepSpeedOptimizer(problem.adversary, own, num_steps, zero_stage=zero_stage, dtype=dtype),
    }


def deepspeed_config(config: OptimizerConfig, zero_stage: ZeroStage, dtype: torch.dtype) -> dict[str, Any]:
    """DeepSpeed's own configuration.

    In bf16, stage 0 runs as stage 1, whose optimizer keeps fp32 masters in the same form as 2 and 3; with accumulation
    it runs as stage 2, which can sum the micro-batches in fp32.
    """
    stage: int = zero_stage
    tree: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # DeepSpeed wants a number; batches are counted in tokens here
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": config.gradient_clip,
        "steps_per_print": 1_000_000_000,
    }
    if dtype == torch.bfloat16:
        stage = max(stage, 2 if config.accumulation > 1 else 1)
        tree["bf16"] = {"enabled": True}
        if config.accumulation > 1:
            tree["data_types"] = {"grad_accum_dtype": "fp32"}
    tree["zero_optimization"] = {"stage": stage}
    return tree


def micro_batch_weight(num_valid: Tensor, total_valid: Tensor, num_micro_batches: int) -> Tensor:
    """Factor that makes the mean over micro-batches and ranks of weighted losses the mean over all valid tokens.

    A micro-batch's loss is the mean over its own valid triples. Averages of means would give the tokens of short
    micro-batches more weight, so that the loss would depend on how a batch is split (METHODS.md, trap 3).

    Args:
        num_valid: valid triples of this micro-batch.
        total_valid: valid triples of the whole step, over all ranks and micro-batches.
        num_micro_batches: accumulation times ranks.
    """
    return num_valid.float() * num_micro_batches / total_valid.float()
