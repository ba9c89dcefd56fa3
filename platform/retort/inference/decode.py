"""Decoding a whole batch: every row an utterance of one engine."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from retort.inference.backends import Capacity, DecodePrecision, open_runner
from retort.inference.engine import Advance, Engine
from retort.inference.runner import Plan, Runner, plan_for
from retort.inference.sampling import SamplerConfig
from retort.losses.divergence import TopK
from retort.models.codec_lm import CodecLM
from retort.nn.conditions import Conditions
from retort.nn.delays import num_steps
from retort.nn.guidance import Guidance


@dataclass(frozen=True)
class Decoded:
    """One decoded utterance.

    Attributes:
        codes_KT: codes without delay, int64.
        has_eos: whether the model ended the utterance itself, rather than running into the limit.
        top_k: guided top-k of each step [S, K, k] if it was asked for, else None.
    """

    codes_KT: Tensor
    has_eos: bool
    top_k: TopK | None = None


class Decoder:
    """A model ready to decode: its embeddings, and a runner that is opened, and opened larger, when it is needed.

    Args:
        model: in fp32 (on a GPU also in its own precision); it is put into evaluation mode.
        precision: number format of the steps.
        threads: CPU threads of a step; ``None`` takes torch's number.
    """

    def __init__(self, model: CodecLM, *, precision: DecodePrecision, threads: int | None = None) -> None:
        self.model, self.precision = model.eval(), precision
        self._threads = threads
        self._capacity: Capacity | None = None
        self._runner: Runner | None = None

    def runner(self, *, max_slots: int, max_conditions: int, max_columns: int) -> Runner:
        """A runner that holds at least this much; it forgets what an earlier one held."""
        threads = torch.get_num_threads() if self._threads is None else self._threads
        wanted = Capacity(max_slots, max_conditions, max_columns, threads)
        if self._runner is None or self._capacity is None or not self._capacity.covers(wanted):
            self._runner = None  # The old caches go before the new ones come.
            self._runner = open_runner(self.model, wanted, precision=self.precision)
            self._capacity = wanted
        return self._runner

    def plans(
        self,
        conditions: Conditions,
        *,
        guidance: Guidance,
        sampler: SamplerConfig,
        seeds: Sequence[int],
        max_frames: int,
        may_end: bool = True,
    ) -> list[Plan]:
        """The plan of each row. Rows are embedded alone, so that their bits do not depend on the others' padding."""
        with torch.autocast(conditions.text_BL.device.type, enabled=False):
            return [
                plan_for(
                    self.model,
                    conditions.row(b),
                    guidance=guidance,
                    sampler=sampler,
                    seed=seed,
                    max_frames=max_frames,
                    may_end=may_end,
                )
                for b, seed in enumerate(seeds)
            ]

    def decode(
        self,
        conditions: Conditions,
        *,
        guidance: Guidance,
        sampler: SamplerConfig,
        seeds: Sequence[int],
        max_frames: int,
        keep_top_k: int = 0,
        stop_at_eos: bool = True,
        max_slots: int | None = None,
    ) -> list[Decoded]:
        """Decode every row of ``conditions`` until its end of speech or ``max_frames`` frames.

        A row's result depends on its own conditions and seed, not on the rows beside it. ``stop_at_eos=False`` forbids
        the end of speech, so that every row takes ``max_frames`` frames (for timing). ``max_slots`` limits how many
        rows decode at once (default: all).
        """
        plans = self.plans(
            conditions, guidance=guidance, sampler=sampler, seeds=seeds, max_frames=max_frames, may_end=stop_at_eos
        )
        if not plans:
            return []
        runner = self.runner(
            max_slots=min(len(plans), max_slots or len(plans)),
            max_conditions=len(guidance.conditions),
            max_columns=max(plan.num_columns for plan in plans)
            + num_steps(max_frames, self.model.config.codebook_delays),
        )
        advances: list[list[Advance]] = [[] for _ in plans]
        for index, advance in Engine(runner, keep_top_k=keep_top_k).run(plans):
            advances[index].append(advance)
        return [_gather(steps) for steps in advances]


def _gather(steps: Sequence[Advance]) -> Decoded:
    kept = [step.top_k for step in steps if step.top_k is not None]
    top = None
    if kept:
        ids, log_probs, log_tail = zip(*((k.ids, k.log_probs, k.log_tail) for k in kept), strict=True)
        top = TopK(torch.cat(ids), torch.cat(log_probs), torch.cat(log_tail))
    return Decoded(torch.cat([step.frames_KT for step in steps], dim=1), steps[-1].has_eos, top)
