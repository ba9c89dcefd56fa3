"""Cached autoregressive decoding of a batch, with the guidance rows packed into the same forward pass."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from retort.inference.sampling import SamplerConfig, forbid_illegal, sample
from retort.losses.divergence import TopK, top_k_of
from retort.models.codec_lm import CodecLM
from retort.nn.conditions import Conditions
from retort.nn.delays import revert_delays
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


def for_condition(conditions: Conditions, name: str) -> Conditions:
    """The rows under one named condition of :mod:`retort.nn.guidance`."""
    return conditions.dropped(text=name in ("no_text", "null"), speaker=name in ("no_speaker", "null"))


def stack_for_guidance(conditions: Conditions, guidance: Guidance) -> Conditions:
    """All rows under each of the guidance's conditions, condition-major: [C * B]."""
    names = guidance.conditions
    return conditions if names == ("full",) else Conditions.cat([for_condition(conditions, n) for n in names])


def combine_rows(logits: Tensor, guidance: Guidance) -> Tensor:
    """Undo :func:`stack_for_guidance` on logits [C * B, ...], giving the guided logits [B, ...]."""
    names = guidance.conditions
    return guidance.combine(dict(zip(names, logits.chunk(len(names)), strict=True)))


@torch.inference_mode()
def decode(
    model: CodecLM,
    conditions: Conditions,
    *,
    guidance: Guidance,
    sampler: SamplerConfig,
    seeds: Sequence[int],
    max_frames: int,
    keep_top_k: int = 0,
    stop_at_eos: bool = True,
) -> list[Decoded]:
    """Decode every row of ``conditions`` until its end of speech or ``max_frames`` frames.

    A row's result depends on its own conditions and seed, not on the rows beside it. ``stop_at_eos=False`` forbids the
    end of speech, so that every row takes ``max_frames`` frames (for timing).
    """
    state = _Decoding(model, conditions, guidance, max_frames)
    seed_B = torch.tensor(list(seeds), dtype=torch.int64, device=state.device)
    kept: list[TopK] = []
    for step in range(state.num_steps):
        logits_BKV = forbid_illegal(state.logits(), end_of_speech=stop_at_eos)
        if keep_top_k:
            kept.append(top_k_of(logits_BKV[:, None], keep_top_k))
        if state.advance(sample(logits_BKV, sampler, seed_B=seed_B, counter=step)):
            break
    return state.finish(kept)


class _Decoding:
    """The state of one batch: caches, tokens so far, which rows have ended."""

    def __init__(self, model: CodecLM, conditions: Conditions, guidance: Guidance, max_frames: int) -> None:
        config = model.config
        self.model, self.guidance, self.config = model, guidance, config
        self.delays = config.codebook_delays
        self.device = conditions.text_BL.device
        self.num_steps = max_frames + max(1, max(self.delays))
        B = conditions.text_BL.shape[0]
        prefix, self.valid = model.embed_conditions(stack_for_guidance(conditions, guidance))
        self.column = prefix.shape[1]
        self.caches = model.new_caches(prefix.shape[0], self.column + self.num_steps)
        self.repeats = len(guidance.conditions)
        self.tokens_BKS = torch.full((B, config.num_codebooks, self.num_steps), config.fill, device=self.device)
        self.end_B = torch.full((B,), max_frames, device=self.device)
        self.ended_B = torch.zeros(B, dtype=torch.bool, device=self.device)
        self.step = 0
        start = torch.full((B, config.num_codebooks, 1), config.fill, device=self.device)
        audio = model.embed_audio(start).repeat(self.repeats, 1, 1)
        self.pending = torch.cat([prefix, audio], dim=1)
        self.position = 0

    def logits(self) -> Tensor:
        """Guided logits [B, K, V + 1] of the next step."""
        logits = self.model.step(self.pending, self.valid, self.caches, self.position)[:, -1]
        self.position += self.pending.shape[1]
        return combine_rows(logits, self.guidance)

    def advance(self, token_BK: Tensor) -> bool:
        """Record one step of tokens; True when every row is complete."""
        s, config = self.step, self.config
        ends = (token_BK[:, 0] == config.eos) & ~self.ended_B
        self.end_B = torch.where(ends, torch.full_like(self.end_B, s), self.end_B)
        self.ended_B |= ends
        frame_BK = s - torch.tensor(self.delays, device=self.device)[None, :].expand_as(token_BK)
        alive = (frame_BK >= 0) & (frame_BK < self.end_B[:, None])
        token_BK = token_BK.masked_fill(~alive, config.fill)
        token_BK[:, 0] = torch.where(ends, torch.full_like(token_BK[:, 0], config.eos), token_BK[:, 0])
        self.tokens_BKS[:, :, s] = token_BK
        self.pending = self.model.embed_audio(token_BK[:, :, None]).repeat(self.repeats, 1, 1)
        self.step += 1
        return bool((self.end_B + max(self.delays) <= self.step).all())

    def finish(self, kept: list[TopK]) -> list[Decoded]:
        """Cut each row to its length and undo the delays."""
        longest = max(self.delays)
        results = []
        for b, end in enumerate(self.end_B.tolist()):
            top = TopK(*(torch.stack(p, dim=1)[b, :, 0] for p in _columns(kept))) if kept else None
            results.append(
                Decoded(
                    revert_delays(self.tokens_BKS[b : b + 1, :, : end + longest], self.delays)[0].cpu(),
                    bool(self.ended_B[b]),
                    top,
                )
            )
        return results


def _columns(kept: list[TopK]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    return [t.ids for t in kept], [t.log_probs for t in kept], [t.log_tail for t in kept]
