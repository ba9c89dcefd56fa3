"""What an actor of ``retort generate`` does for synthetic mels: sampled codes, their latents, the denoiser's mels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retort.config import validate
from retort.data.mels import ROWS, MelRow, MelSet, MelSetDescription, mel_record, mel_schema
from retort.data.tokens import TokenRow
from retort.data.utterance import Reject
from retort.inference.mel_making import MelMaker, MelPlan
from retort.models.mel_diffusion import MelDiffusionConfig
from retort.models.weights import load_codec_lm, load_mel_diffusion
from retort.nn.precision import pick_dtype
from retort.orchestration.chunks import ChunkResult
from retort.orchestration.generate.chunked import computed_in
from retort.orchestration.generate.plan import GenerationPlan
from retort.orchestration.generate.sequences import PromptedModel, Sampling, SequenceSampler
from retort.orchestration.outputs import with_results
from retort.run_config import GenerateMelsConfig, MelFilterConfig, SyntheticMels

_TOP = 1.0 - 1e-3
"""In the denoiser's range, where 1 is what it clamps at."""


class SyntheticMelsWorker:
    """Does chunks of asks.

    Args:
        tree: the run file; its inputs are found, and fetched from a store, on the worker's node.
        plan: file of the plan.
        description: JSON of the :class:`MelSetDescription` that every row repeats.
    """

    def __init__(self, tree: Mapping[str, Any], plan: Path, description: str) -> None:
        config = with_results(validate(dict(tree), GenerateMelsConfig, where="generate"))
        assert isinstance(config.source, SyntheticMels)
        torch.set_num_threads(config.pool.threads_per_worker)
        self.config, self.source, self.plan = config, config.source, GenerationPlan.read(plan)
        self.description = MelSetDescription.model_validate_json(description)
        self.device = torch.device("cuda" if config.pool.gpus_per_worker > 0 else "cpu")
        self.dtype = pick_dtype(config.precision, self.device)
        self.prompted = PromptedModel(load_codec_lm(config.lm).model.to(self.device), config.data)
        how = self.source
        sampling = Sampling(how.lm_guidance, how.sampler, how.max_frames, how.filters, config.precision, config.seed)
        self.sampler = SequenceSampler(self.prompted, sampling)
        self.teacher = load_mel_diffusion(how.teacher).model.to(self.device)
        self.maker = MelMaker(self.teacher, self.dtype)
        self.voices = MelSet.open(how.voices).voices

    @torch.inference_mode()
    def work(self, number: int) -> ChunkResult:
        """One chunk; what breaks a rule becomes a reject."""
        import pyarrow as pa

        records: list[dict[str, Any]] = []
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            rows, _, rejects = self.sampler.sample(self.plan.sampled[number])
            made, without_voice = self._made(rows)
        rejects += without_voice
        for row, x_TM in made:
            fault = mel_fault(x_TM, row.latents_LD, self.source.mel_filters, self.teacher.config)
            if fault is None:
                records.append(mel_record(row, self.sampler.seed_of(row.id), self.description))
            else:
                rejects.append(Reject(row.id, fault[0], fault[1], "denoised"))
        numbers = {
            **computed_in(self.dtype),
            "rows": float(len(records)),
            "mel_frames": float(sum(record["num_frames"] for record in records)),
        }
        return ChunkResult({ROWS: pa.Table.from_pylist(records, schema=mel_schema())}, rejects, numbers)

    def _made(self, sampled: Sequence[TokenRow]) -> tuple[list[tuple[MelRow, Tensor]], list[Reject]]:
        """Rows with their mels, and those in the denoiser's range; and the rows that have no voice."""
        voices = {row.id: self.voices.of(row.id, row.speaker) for row in sampled}
        rejects = [
            Reject(row.id, "no_voice", f"{self.source.voices} has no recording of {row.speaker!r}", "sampled")
            for row in sampled
            if voices[row.id] is None
        ]
        rows = [row for row in sampled if voices[row.id] is not None]
        if not rows:
            return [], rejects
        latents = self.prompted.latents(rows)
        denoised = self.denoise(rows, latents, [voices[row.id] for row in rows])
        made = [
            (MelRow(r.id, r.text, r.speaker, "train", own, self.teacher.denormalise(x), voices[r.id]), x)
            for r, own, x in zip(rows, latents, denoised, strict=True)
        ]
        return made, rejects

    def denoise(
        self, rows: Sequence[TokenRow], latents: Sequence[Tensor], voices: Sequence[Tensor | None]
    ) -> list[Tensor]:
        """Mels [T, M] in the denoiser's range; each starts from noise of its own seed."""
        plans = [
            MelPlan(own, voice, row.num_frames * self.description.frames_per_latent, self.sampler.seed_of(row.id))
            for row, own, voice in zip(rows, latents, voices, strict=True)
        ]
        return self.maker.make(plans, self.source.guidance, self.source.solver)


def mel_fault(
    x_TM: Tensor, latents_LD: Tensor, filters: MelFilterConfig, model: MelDiffusionConfig
) -> tuple[str, str] | None:
    """Code and detail of the first rule that is broken; None where all hold.

    Args:
        x_TM: a mel in the denoiser's range.
        latents_LD: what it was made from.
        filters: the rules.
        model: says what the range means.
    """
    if not (torch.isfinite(x_TM).all() and torch.isfinite(latents_LD.half()).all()):
        return "not_finite", "a mel or a latent is not a number, or too large for fp16"
    saturated = float((x_TM >= _TOP).float().mean())
    if saturated > filters.max_saturated_ratio:
        return "saturated", f"{saturated:.1%} of the values are where the denoiser clamps"
    loudest_T = model.denormalise(x_TM).amax(dim=1)
    silent = float((loudest_T < model.mel_min + filters.silence_nats).float().mean())
    if silent > filters.max_silence_ratio:
        return "silence", f"{silent:.1%} of the frames are silent"
    return None
