"""Confidence of the systems that are codec language models, on the real tokens of the test strings."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from retort.data.batches import CodebookLayout, LMBatch, teacher_forced
from retort.data.tokens import TokenRow
from retort.evaluation.confidence import Confidence, ConfidenceAccumulator
from retort.evaluation.judge import System, TestStrings
from retort.inference.decoding import CodecLMDecoding
from retort.inference.speech import SpeechEngine
from retort.inference.synthesizer import Synthesizer
from retort.nn.guided_rows import guided_logits


@dataclass(frozen=True)
class _LanguageModel:
    """A system that gives every token a probability."""

    synthesizer: Synthesizer
    decoding: CodecLMDecoding


@torch.inference_mode()
def measure_confidence(
    strings: TestStrings, systems: Sequence[System], *, teacher: str | None, batch_size: int
) -> dict[str, Confidence]:
    """Entropy, top-1 probability and KL from ``teacher`` on the real tokens of the test strings, by system.

    Systems of other families have none and are left out. Every system sees the same tokens. A teacher with and without
    guidance are two systems; a student that is surer than the unguided teacher may still be less sure than the guided
    one (METHODS.md 1.3, fact d).
    """
    models = {system.name: model for system in systems if (model := _language_model(system)) is not None}
    in_turn = sorted(models, key=lambda name: name != teacher)  # the teacher first
    sums = {name: ConfidenceAccumulator(strings.description.num_codebooks) for name in models}
    rows = sorted(strings.rows.values(), key=lambda row: row.num_frames)
    for begin in range(0, len(rows), batch_size):
        chunk = rows[begin : begin + batch_size]
        teacher_logits = None
        for name in in_turn:
            batch = _teacher_forced(chunk, strings, models[name])
            logits = _logits(models[name], batch)
            if name == teacher:
                teacher_logits = logits
            sums[name].add(logits, batch.mask_BKS, teacher_BSKV=teacher_logits)
    return {name: total.result() for name, total in sums.items()}


def _language_model(system: System) -> _LanguageModel | None:
    match system.speaker:
        case SpeechEngine() as speaker:
            return _LanguageModel(speaker.synthesizer, speaker.decoding(system.decoding))
        case _:
            return None


def _teacher_forced(rows: Sequence[TokenRow], strings: TestStrings, model: _LanguageModel) -> LMBatch:
    config, scale = model.synthesizer.loaded.model.config, model.decoding.scale
    layout = CodebookLayout(config.codebook_size, config.codebook_delays)
    index = None if scale is None else config.guidance_scales.index(scale)
    return teacher_forced(rows, [strings.prompt_for(row) for row in rows], layout, scale_index=index)


def _logits(model: _LanguageModel, batch: LMBatch) -> Tensor:
    guidance, synthesizer = model.decoding.guidance.build(), model.synthesizer
    on_device = batch.to(synthesizer.device)
    device, dtype = synthesizer.device.type, synthesizer.dtype
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        logits = guided_logits(synthesizer.loaded.model, on_device.conditions, on_device.inputs_BKS, guidance)
    return logits.cpu()
