"""What an actor of ``retort generate`` does: the guided teacher over real tokens, and sequences sampled from it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retort.config import validate
from retort.data.batches import lay_out, teacher_forced
from retort.data.logit_cache import encode_top_k
from retort.data.prompts import Prompt
from retort.data.synthetic import (
    SAMPLED,
    TARGETS,
    SyntheticDescription,
    forced_record,
    forced_schema,
    sampled_record,
    sampled_schema,
)
from retort.data.tokens import TokenRow
from retort.losses.divergence import top_k_of
from retort.models.weights import load_codec_lm
from retort.nn.guidance import NoGuidance
from retort.nn.guided_rows import guided_logits
from retort.nn.precision import pick_dtype
from retort.nn.top_k import TopK
from retort.orchestration.chunks import ChunkResult
from retort.orchestration.generate.chunked import computed_in
from retort.orchestration.generate.plan import Ask, GenerationPlan
from retort.orchestration.generate.sequences import PromptedModel, Sampling, SequenceSampler
from retort.orchestration.outputs import with_results
from retort.run_config import GenerateConfig


class GenerateWorker:
    """Does the chunks of a :class:`GenerationPlan`.

    Args:
        tree: the run file; its inputs are found, and fetched from a store, on the worker's node.
        plan: file of the plan.
        description: JSON of the :class:`SyntheticDescription` that every row repeats.
    """

    def __init__(self, tree: Mapping[str, Any], plan: Path, description: str) -> None:
        config = with_results(validate(dict(tree), GenerateConfig, where="generate"))
        torch.set_num_threads(config.pool.threads_per_worker)
        self.config, self.plan = config, GenerationPlan.read(plan)
        self.description = SyntheticDescription.model_validate_json(description)
        self.device = torch.device("cuda" if config.pool.gpus_per_worker > 0 else "cpu")
        self.model = load_codec_lm(config.teacher).model.to(self.device)
        self.dtype = pick_dtype(config.precision, self.device)
        self.prompted = PromptedModel(self.model, config.data, self.description.prompt_max_frames)
        self.layout, self.prompts, self.train = self.prompted.layout, self.prompted.prompts, self.prompted.train
        speaking, guidance = self.prompted, config.guidance
        if config.sampled_by is not None:
            student = load_codec_lm(config.sampled_by).model.to(self.device)
            speaking = PromptedModel(student, config.data, self.description.prompt_max_frames)
            guidance = NoGuidance()
        sampling = Sampling(guidance, config.sampler, config.max_frames, config.filters, config.precision, config.seed)
        self.sampler = SequenceSampler(speaking, sampling)

    def work(self, number: int) -> ChunkResult:
        """One chunk."""
        num_forced = len(self.plan.forced)
        with torch.inference_mode(), torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            if number < num_forced:
                result = self._forced(self.plan.forced[number])
            else:
                result = self._sampled(self.plan.sampled[number - num_forced])
        return ChunkResult(result.tables, result.rejects, {**result.numbers, **computed_in(self.dtype)})

    def _forced(self, places: Sequence[int]) -> ChunkResult:
        import pyarrow as pa

        records = []
        numbers = {"forced_rows": float(len(places)), "tokens": 0.0, "bytes": 0.0}
        for begin in range(0, len(places), self.config.batch_size):
            rows = [self.train[place] for place in places[begin : begin + self.config.batch_size]]
            prompts = [self.prompts.choose(row.id, row.speaker) for row in rows]
            for row, prompt, top in zip(rows, prompts, self.targets(rows, prompts), strict=True):
                encoded = self._encode(top, row.codes_KT)
                records.append(forced_record(row.id, prompt, encoded, self.description))
                numbers["tokens"] += top.log_tail.numel()
                numbers["bytes"] += len(encoded)
        return ChunkResult({TARGETS: pa.Table.from_pylist(records, schema=forced_schema())}, (), numbers)

    def targets(self, rows: Sequence[TokenRow], prompts: Sequence[Prompt | None]) -> list[TopK]:
        """Guided top-k [S, K, k] of each row's own tokens, all conditions in one forward pass."""
        batch = teacher_forced(rows, self.prompted.crops(prompts), self.layout).to(self.device)
        logits = guided_logits(self.model, batch.conditions, batch.inputs_BKS, self.config.guidance.build())
        top = top_k_of(logits, self.description.top_k, temperature=self.config.temperature)
        steps = [self.layout.num_steps(row.num_frames) for row in rows]
        return [_cut(TopK(top.ids[b], top.log_probs[b], top.log_tail[b]), S) for b, S in enumerate(steps)]

    def _sampled(self, asks: Sequence[Ask]) -> ChunkResult:
        import pyarrow as pa

        # Decoding sees the sampled model's distributions at temperature 1; others are computed again below.
        is_seen = self.config.temperature == 1.0 and self.config.sampled_by is None
        keep = self.description.top_k if is_seen else 0
        rows, decoded, rejects = self.sampler.sample(asks, keep_top_k=keep)
        records, numbers = self._sampled_records(rows, [one.top_k for one in decoded])
        return ChunkResult({SAMPLED: pa.Table.from_pylist(records, schema=sampled_schema())}, rejects, numbers)

    def _sampled_records(
        self, rows: Sequence[TokenRow], tops: Sequence[TopK | None]
    ) -> tuple[list[dict[str, Any]], dict[str, float]]:
        prompts = [self.prompts.choose(row.id, row.speaker) for row in rows]
        known = [top for top in tops if top is not None]
        if len(known) < len(rows):
            known = self.targets(rows, prompts)
        records = []
        numbers = {"sampled_rows": float(len(rows)), "tokens": 0.0, "bytes": 0.0, "sampled_seconds": 0.0}
        for row, prompt, top in zip(rows, prompts, known, strict=True):
            cut = _cut(top, self.layout.num_steps(row.num_frames))
            encoded = self._encode(cut, row.codes_KT)
            records.append(sampled_record(row, prompt, encoded, self.sampler.seed_of(row.id), self.description))
            numbers["tokens"] += cut.log_tail.numel()
            numbers["bytes"] += len(encoded)
            numbers["sampled_seconds"] += row.duration_s
        return records, numbers

    def _encode(self, top: TopK, codes_KT: Tensor) -> bytes:
        mask_KS = lay_out([codes_KT], self.layout)[2][0]
        return encode_top_k(
            top, codebook_size=self.layout.codebook_size, encoding=self.description.encoding, mask_KS=mask_KS
        )


def _cut(top: TopK, num_steps: int) -> TopK:
    return TopK(*(part[:num_steps].cpu() for part in (top.ids, top.log_probs, top.log_tail)))
