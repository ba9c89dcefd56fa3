"""What an actor of ``retort generate`` does: the guided teacher over real tokens, and sequences sampled from it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retort.audio.codec import open_codec
from retort.config import validate
from retort.data.batches import CodebookLayout, conditions_for, lay_out, teacher_forced
from retort.data.logit_cache import encode_top_k
from retort.data.prompts import Prompt, PromptsById, crop_prompt
from retort.data.synthetic import (
    SAMPLED,
    TARGETS,
    SyntheticDescription,
    forced_record,
    forced_schema,
    sampled_record,
    sampled_schema,
)
from retort.data.tokens import TokenRow, TokenSet
from retort.data.utterance import Reject
from retort.errors import DataError
from retort.evaluation.asr import open_recogniser
from retort.evaluation.judge import seed_of
from retort.evaluation.stability import StabilityConfig, is_loop
from retort.evaluation.wer import score_text, word_errors
from retort.inference.decode import Decoded, Decoder
from retort.inference.runaway import longest_repeat
from retort.losses.divergence import top_k_of
from retort.models.weights import load_codec_lm
from retort.nn.guided_rows import guided_logits
from retort.nn.precision import pick_dtype
from retort.nn.top_k import TopK
from retort.orchestration.chunks import ChunkResult
from retort.orchestration.generate.plan import Ask, GenerationPlan
from retort.run_config import GenerateConfig
from retort.text.front_end import open_text_front_end

PRECISION = "precision/"
"""Prefix of the number that says in which format a chunk was computed."""


class GenerateWorker:
    """Does the chunks of a :class:`GenerationPlan`.

    Args:
        tree: the run file; its paths are those of committed results.
        plan: file of the plan.
        description: JSON of the :class:`SyntheticDescription` that every row repeats.
    """

    def __init__(self, tree: Mapping[str, Any], plan: Path, description: str) -> None:
        config = validate(dict(tree), GenerateConfig, where="generate")
        torch.set_num_threads(config.pool.threads_per_worker)
        self.config, self.plan = config, GenerationPlan.read(plan)
        self.description = SyntheticDescription.model_validate_json(description)
        self.device = torch.device("cuda" if config.pool.gpus_per_worker > 0 else "cpu")
        self.model = load_codec_lm(config.teacher).model.to(self.device)
        self.dtype = pick_dtype(config.precision, self.device)
        self.decoder = Decoder(self.model, precision=config.precision)
        self.guidance = config.guidance.build()
        self.layout = CodebookLayout(self.model.config.codebook_size, self.model.config.codebook_delays)
        self.train = TokenSet.open(config.data).split("train")
        self.front_end = open_text_front_end(config.data / "text")
        self.prompts = PromptsById(self.train.column("id"), self.train.column("speaker"))
        self.filter = _Filter(config, self.description)

    def work(self, number: int) -> ChunkResult:
        """One chunk."""
        num_forced = len(self.plan.forced)
        with torch.inference_mode(), torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            if number < num_forced:
                result = self._forced(self.plan.forced[number])
            else:
                result = self._sampled(self.plan.sampled[number - num_forced])
        name = str(self.dtype).removeprefix("torch.")
        return ChunkResult(result.tables, result.rejects, {**result.numbers, f"{PRECISION}{name}": 1.0})

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
        batch = teacher_forced(rows, self._crops(prompts), self.layout).to(self.device)
        logits = guided_logits(self.model, batch.conditions, batch.inputs_BKS, self.guidance)
        top = top_k_of(logits, self.description.top_k, temperature=self.config.temperature)
        steps = [self.layout.num_steps(row.num_frames) for row in rows]
        return [_cut(TopK(top.ids[b], top.log_probs[b], top.log_tail[b]), S) for b, S in enumerate(steps)]

    def _sampled(self, asks: Sequence[Ask]) -> ChunkResult:
        import pyarrow as pa

        rejects: list[Reject] = []
        spoken: list[tuple[Ask, tuple[int, ...]]] = []
        for ask in asks:
            try:
                spoken.append((ask, tuple(self.front_end.encode(ask.text))))
            except DataError as error:
                rejects.append(Reject(ask.id, "unspeakable_text", str(error), "sampled"))
        rows: list[TokenRow] = []
        tops: list[TopK | None] = []
        for (ask, ids), decoded in zip(spoken, self._decode(spoken), strict=True):
            fault = self.filter.fault(ask.text, decoded)
            if fault is not None:
                rejects.append(Reject(ask.id, fault[0], fault[1], "sampled"))
                continue
            duration_s = decoded.codes_KT.shape[1] / self.description.tokens.frame_rate
            rows.append(TokenRow(ask.id, ask.text, ids, ask.speaker, "train", decoded.codes_KT, duration_s))
            tops.append(decoded.top_k)
        records, numbers = self._sampled_records(rows, tops)
        return ChunkResult({SAMPLED: pa.Table.from_pylist(records, schema=sampled_schema())}, rejects, numbers)

    def _decode(self, spoken: Sequence[tuple[Ask, tuple[int, ...]]]) -> list[Decoded]:
        if not spoken:
            return []
        prompts = [self.prompts.choose(ask.id, ask.speaker) for ask, _ in spoken]
        conditions = conditions_for([ids for _, ids in spoken], self._crops(prompts), self.layout.num_codebooks)
        return self.decoder.decode(
            conditions.to(self.device),
            guidance=self.guidance,
            sampler=self.config.sampler,
            seeds=[seed_of(self.config.seed, ask.id) for ask, _ in spoken],
            max_frames=self.config.max_frames,
            # Decoding sees the distributions at temperature 1; at another one they are computed again below.
            keep_top_k=self.description.top_k if self.config.temperature == 1.0 else 0,
        )

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
            records.append(sampled_record(row, prompt, encoded, seed_of(self.config.seed, row.id), self.description))
            numbers["tokens"] += cut.log_tail.numel()
            numbers["bytes"] += len(encoded)
            numbers["sampled_seconds"] += row.duration_s
        return records, numbers

    def _encode(self, top: TopK, codes_KT: Tensor) -> bytes:
        mask_KS = lay_out([codes_KT], self.layout)[2][0]
        return encode_top_k(
            top, codebook_size=self.layout.codebook_size, encoding=self.description.encoding, mask_KS=mask_KS
        )

    def _crops(self, prompts: Sequence[Prompt | None]) -> list[Tensor | None]:
        longest = self.description.prompt_max_frames
        return [None if p is None else crop_prompt(self.train[p.index].codes_KT, p.position, longest) for p in prompts]


class _Filter:
    """Says what is wrong with a sampled sequence, by the rules and the names of the evaluation."""

    def __init__(self, config: GenerateConfig, description: SyntheticDescription) -> None:
        self.limits: StabilityConfig = config.filters.stability
        self.frame_rate, self.max_wer = description.tokens.frame_rate, config.filters.max_wer
        recogniser = config.filters.recogniser
        self._recogniser = None if recogniser is None else open_recogniser(recogniser)
        self._codec = None if recogniser is None else open_codec(config.data / "codec")

    def fault(self, text: str, decoded: Decoded) -> tuple[str, str] | None:
        """Code and detail of the first rule that is broken; None where all hold."""
        limits, T = self.limits, decoded.codes_KT.shape[1]
        duration_s, words = T / self.frame_rate, max(1, len(score_text(text).split()))
        length = f"{duration_s:.2f} s for {words} words"
        if not decoded.has_eos:
            return "no_eos", f"no end of speech within {T} frames"
        if T == 0 or duration_s < limits.min_s_per_word * words:
            return "too_short", length
        if duration_s > limits.max_s_per_word * words + limits.pause_s:
            return "too_long", length
        repeat = longest_repeat(decoded.codes_KT, max_period=limits.max_repeat_period)
        if is_loop(repeat, T, limits):
            return "repeat", f"{repeat.steps} of {T} frames repeat with period {repeat.period}"
        return self._misheard(text, decoded)

    def _misheard(self, text: str, decoded: Decoded) -> tuple[str, str] | None:
        if self._recogniser is None or self._codec is None or self.max_wer is None:
            return None
        heard = self._recogniser.transcribe(self._codec.decode(decoded.codes_KT), self._codec.sample_rate)
        wer = word_errors(text, heard).wer
        return ("wer", f"WER {wer:.2f}: heard {heard!r}") if wer > self.max_wer else None


def _cut(top: TopK, num_steps: int) -> TopK:
    return TopK(*(part[:num_steps].cpu() for part in (top.ids, top.log_probs, top.log_tail)))
