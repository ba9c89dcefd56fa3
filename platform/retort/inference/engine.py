"""Continuous batching: utterances join and leave a running batch at every step.

The engine schedules; a :class:`~retort.inference.runner.Runner` computes. Each step advances every active utterance by
one decoding step and gives the frames that it completed: with a delay pattern, frame ``f`` is complete ``max(delays)``
steps after its first code.
"""

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from retort.errors import ConfigError
from retort.inference.runner import BROKEN, Plan, Runner
from retort.losses.divergence import TopK, top_k_of
from retort.nn.delays import num_steps


@dataclass(frozen=True)
class Advance:
    """What one step did for one utterance.

    Attributes:
        ticket: which utterance.
        frames_KT: the frames that it completed, [K, 0] or [K, 1], without delay.
        is_done: whether this was its last step.
        has_eos: with ``is_done``: whether the model ended it itself, rather than running into the limit.
        is_broken: with ``is_done``: the model's logits were not numbers.
        top_k: with ``keep_top_k``: guided top-k [1, K, k] of this step.
    """

    ticket: int
    frames_KT: Tensor
    is_done: bool
    has_eos: bool
    top_k: TopK | None = None
    is_broken: bool = False


@dataclass
class _Utterance:
    ticket: int
    slot: int
    plan: Plan
    step: int = 0
    end: int | None = None
    is_done: bool = False
    is_broken: bool = False
    history: list[list[int]] = field(default_factory=list)

    def advance(self, frames_KT: Tensor, top_k: TopK | None) -> Advance:
        """What its last step did."""
        has_eos = self.end is not None and not self.is_broken
        return Advance(self.ticket, frames_KT, self.is_done, has_eos, top_k, self.is_broken)


class Engine:
    """Decodes many utterances at once on one runner.

    Args:
        runner: holds the slots.
        keep_top_k: how many guided logits to report with each step; 0 for none.
    """

    def __init__(self, runner: Runner, *, keep_top_k: int = 0) -> None:
        self.runner, self.keep_top_k = runner, keep_top_k
        self._free = list(range(runner.max_slots - 1, -1, -1))
        self._active: dict[int, _Utterance] = {}
        self._next_ticket = 0
        self._delays = runner.config.codebook_delays
        self._longest_delay = max(self._delays)
        self._no_frames_KT = torch.empty(len(self._delays), 0, dtype=torch.int64)

    @property
    def num_active(self) -> int:
        """Utterances in the batch."""
        return len(self._active)

    @property
    def num_free(self) -> int:
        """Utterances that may still join."""
        return len(self._free)

    def check(self, plan: Plan) -> None:
        """Refuse what this engine cannot hold.

        Raises:
            ConfigError: the condition and audio together are too long, or the guidance has too many conditions.
        """
        self.check_length(plan.num_columns, plan.max_frames)
        if len(plan.prefixes) > self.runner.max_conditions:
            raise ConfigError(
                f"the guidance has {len(plan.prefixes)} conditions, this engine holds {self.runner.max_conditions}"
            )
        if plan.max_frames < 1:
            raise ConfigError(f"max_frames must be at least 1, got {plan.max_frames}")

    def check_length(self, num_columns: int, max_frames: int) -> None:
        """Refuse a condition of so many columns with so many frames of audio.

        Raises:
            ConfigError: together they are too long.
        """
        columns = num_columns + num_steps(max_frames, self._delays)
        if columns > self.runner.max_columns:
            raise ConfigError(
                f"text and speech would take {columns} columns, this engine holds {self.runner.max_columns}; "
                "shorten the text or lower the limit of seconds"
            )

    def add(self, plan: Plan) -> int:
        """Let an utterance join; returns its ticket.

        Raises:
            ConfigError: see :meth:`check`.
            RuntimeError: no slot is free.
        """
        self.check(plan)
        if not self._free:
            raise RuntimeError(f"all {self.runner.max_slots} slots are taken")
        slot = self._free.pop()
        try:
            self.runner.admit(slot, plan)
        except BaseException:
            self._free.append(slot)
            raise
        ticket = self._next_ticket
        self._next_ticket += 1
        self._active[ticket] = _Utterance(ticket, slot, plan)
        return ticket

    def cancel(self, ticket: int) -> None:
        """Let an utterance leave before its end; it takes no further step. Unknown tickets are ignored."""
        utterance = self._active.pop(ticket, None)
        if utterance is not None:
            self._free.append(utterance.slot)

    def step(self, tickets: Collection[int] | None = None) -> list[Advance]:
        """Advance the active utterances by one step, or those of them that are named; those that are done leave."""
        utterances = [u for u in self._active.values() if tickets is None or u.ticket in tickets]
        if not utterances:
            return []
        tokens_NK, guided = self.runner.step([u.slot for u in utterances], keep_guided=bool(self.keep_top_k))
        top = top_k_of(guided[:, None], self.keep_top_k) if guided is not None else None
        codes = [self._record(u, tokens_K) for u, tokens_K in zip(utterances, tokens_NK.tolist(), strict=True)]
        complete = [codes_K for codes_K in codes if codes_K]
        # One tensor for all and a view for each: at a large batch, making tensors would take a tenth of the step.
        frames = iter(torch.tensor(complete, dtype=torch.int64)[:, :, None].unbind() if complete else ())
        advances = []
        for index, (utterance, codes_K) in enumerate(zip(utterances, codes, strict=True)):
            kept = None if top is None else TopK(top.ids[index], top.log_probs[index], top.log_tail[index])
            frames_KT = next(frames) if codes_K else self._no_frames_KT
            advances.append(utterance.advance(frames_KT, kept))
            if utterance.is_done:
                self.cancel(utterance.ticket)
        return advances

    def run(self, plans: Iterable[Plan]) -> Iterator[tuple[int, Advance]]:
        """Decode many plans, each joining as soon as a slot is free; yields (index of the plan, advance)."""
        waiting = deque(enumerate(plans))
        indices: dict[int, int] = {}
        while waiting or indices:
            while waiting and self._free:
                index, plan = waiting.popleft()
                indices[self.add(plan)] = index
            for advance in self.step():
                yield indices[advance.ticket], advance
                if advance.is_done:
                    del indices[advance.ticket]

    def _record(self, utterance: _Utterance, tokens_K: list[int]) -> list[int] | None:
        """Note one step of an utterance; the codes of the frame that it completed, if any."""
        if tokens_K[0] == BROKEN:
            utterance.is_done = utterance.is_broken = True
            return None
        step, longest = utterance.step, self._longest_delay
        utterance.history.append(tokens_K)
        utterance.step += 1
        if tokens_K[0] == self.runner.config.eos:
            utterance.end = step
        has_eos = utterance.end is not None
        end = utterance.plan.max_frames if utterance.end is None else utterance.end
        utterance.is_done = utterance.step >= (end + longest if has_eos else num_steps(end, self._delays))
        frame = step - longest
        if not 0 <= frame < end:
            return None
        return [utterance.history[frame + delay][k] for k, delay in enumerate(self._delays)]
