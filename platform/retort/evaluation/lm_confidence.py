"""Confidence of the systems that are codec language models, on the real tokens of the test strings.

And how far each is from the target: KL(target || model), utterance by utterance. The target is what ``teacher`` says,
guided if it is decoded so, at temperature 1; that model without guidance is the untouched copy, and a student that is
no nearer to the target than that has learned nothing of it.
"""

import dataclasses
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from retort.data.batches import CodebookLayout, LMBatch, teacher_forced
from retort.data.tokens import TokenRow
from retort.evaluation.confidence import Confidence, ConfidenceAccumulator
from retort.evaluation.items import ItemResult
from retort.evaluation.judge import System, TestStrings
from retort.evaluation.metrics import TARGET_KL, TARGET_TOKENS
from retort.inference.decoding import CodecLMDecoding
from retort.inference.speech import SpeechEngine
from retort.inference.synthesizer import Synthesizer
from retort.nn.guided_rows import guided_logits

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _LanguageModel:
    """A system that gives every token a probability."""

    synthesizer: Synthesizer
    decoding: CodecLMDecoding

    @property
    def is_guided(self) -> bool:
        return self.decoding.guidance.build().is_guided or self.decoding.scale not in (None, 1.0)


@dataclass(frozen=True)
class FromTarget:
    """KL(target || model) of an utterance in nats, summed over its tokens, and how many these are."""

    nats: float
    tokens: int


@dataclass(frozen=True)
class Sureness:
    """Of the systems that are codec language models.

    Attributes:
        confidence: by system.
        from_target: by system, then by id of the utterance; empty without a teacher.
        untouched: the system that is the teacher's model without guidance, where the target is guided and there is one.
    """

    confidence: Mapping[str, Confidence]
    from_target: Mapping[str, Mapping[str, FromTarget]] = dataclasses.field(default_factory=dict)
    untouched: str | None = None

    def told_of(self, items: Iterable[ItemResult]) -> list[ItemResult]:
        """``items`` with their distance from the target, where it was measured and is a number; warns of others."""
        for system, found in self.from_target.items():
            lost = sum(not math.isfinite(each.nats) for each in found.values())
            if lost:
                _log.warning(
                    "%s: the KL from the target is no number on %d of %d strings, which target_kl leaves out",
                    system,
                    lost,
                    len(found),
                )
        return [self._told_of(item) for item in items]

    def _told_of(self, item: ItemResult) -> ItemResult:
        found = self.from_target.get(item.system, {}).get(item.id)
        if found is None or not math.isfinite(found.nats):
            return item
        values = {**item.values, TARGET_KL: found.nats, TARGET_TOKENS: float(found.tokens)}
        return dataclasses.replace(item, values=values)


@torch.inference_mode()
def measure_confidence(
    strings: TestStrings, systems: Sequence[System], *, teacher: str | None, batch_size: int
) -> Sureness:
    """Entropy, top-1 probability and KL from ``teacher`` on the real tokens of the test strings, by system.

    Systems of other families have none and are left out. Every system sees the same tokens. A teacher with and without
    guidance are two systems; a student that is surer than the unguided teacher may still be less sure than the guided
    one (METHODS.md 1.3, fact d).
    """
    models = {system.name: model for system in systems if (model := _language_model(system)) is not None}
    in_turn = sorted(models, key=lambda name: name != teacher)  # the teacher first
    sums = {name: ConfidenceAccumulator(strings.description.num_codebooks) for name in models}
    from_target: dict[str, dict[str, FromTarget]] = {name: {} for name in models}
    rows = sorted(strings.rows.values(), key=lambda row: row.num_frames)
    for begin in range(0, len(rows), batch_size):
        chunk = rows[begin : begin + batch_size]
        teacher_logits = None
        for name in in_turn:
            batch = _teacher_forced(chunk, strings, models[name])
            logits = _logits(models[name], batch)
            if name == teacher:
                teacher_logits = logits
            nats_B = sums[name].add(logits, batch.mask_BKS, teacher_BSKV=teacher_logits)
            if nats_B is not None:
                tokens_B = batch.mask_BKS.sum((1, 2)).tolist()
                told = zip(chunk, nats_B.tolist(), tokens_B, strict=True)
                from_target[name] |= {row.id: FromTarget(nats, tokens) for row, nats, tokens in told}
    confidence = {name: total.result() for name, total in sums.items()}
    return Sureness(confidence, from_target, _untouched(models, teacher))


def _untouched(models: Mapping[str, _LanguageModel], teacher: str | None) -> str | None:
    """The first system that is the teacher's model as it was trained, where the teacher is guided."""
    if teacher is None or teacher not in models or not models[teacher].is_guided:
        return None
    weights = models[teacher].synthesizer.loaded.fingerprint
    own = (name for name, m in models.items() if m.synthesizer.loaded.fingerprint == weights and not m.is_guided)
    return next(own, None)


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
