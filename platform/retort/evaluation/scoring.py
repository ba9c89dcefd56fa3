"""Score one utterance with every scorer: the row of ``results.jsonl``."""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from retort.errors import DataError
from retort.evaluation.hearing import SpeechRecogniser, hear
from retort.evaluation.items import Expected, Heard, ItemResult, failed_item, text_sha256
from retort.evaluation.naturalness import NaturalnessScorer
from retort.evaluation.speaker import SpeakerEncoder, embed, similarity
from retort.evaluation.stability import DEFAULT_STABILITY, StabilityConfig, assess
from retort.evaluation.wer import is_loop, word_errors
from retort.inference.speaker import Spoken


@dataclass(frozen=True)
class Scorers:
    """What judges every system of one evaluation.

    Attributes:
        recogniser: the first one, by which failures are told.
        encoder: None leaves voices out.
        stability: what a failure is.
        others: further recognisers, by label, each of which hears everything too.
        label: of the first one, beside others.
        naturalness: models that guess how natural something sounds.
    """

    recogniser: SpeechRecogniser
    encoder: SpeakerEncoder | None = None
    stability: StabilityConfig = DEFAULT_STABILITY
    others: Mapping[str, SpeechRecogniser] = dataclasses.field(default_factory=dict)
    label: str = "first"
    naturalness: tuple[NaturalnessScorer, ...] = ()

    @property
    def note(self) -> str | None:
        """What must be said beside the figures: smoke-tier scorers do not compare with published numbers."""
        used: list[SpeechRecogniser | SpeakerEncoder] = [self.recogniser, *self.others.values()]
        if self.encoder is not None:
            used.append(self.encoder)
        smoke = [scorer.name for scorer in used if scorer.smoke_tier]
        if not smoke:
            return None
        return f"Smoke tier: scored by {' and '.join(smoke)}; not comparable with published numbers."


def score_item(
    system: str, expected: Expected, spoken: Spoken | None, scorers: Scorers, *, voice_E: Tensor | None = None
) -> ItemResult:
    """Judge one utterance; None for ``spoken`` gives the row of a missing one.

    Args:
        system: name of the system.
        expected: what it was asked to say.
        spoken: what it delivered.
        scorers: the judges, the same for every system.
        voice_E: the voice asked for, as ``scorers.encoder`` embeds it; None leaves the similarity out.
    """
    if spoken is None:
        return failed_item(system, expected)
    try:
        first = _heard(expected.text, spoken, scorers.recogniser)
        others = {label: _heard(expected.text, spoken, other) for label, other in scorers.others.items()}
    except DataError as error:
        return failed_item(system, expected, reason="error", error=str(error))
    counts = first.word_errors
    stability = assess(
        spoken.samples_N,
        spoken.sample_rate,
        expected.text,
        wer=counts.wer,
        has_eos=spoken.has_eos,
        codes=spoken.codes,
        config=scorers.stability,
    )
    likeness, unlike = _likeness(spoken, scorers.encoder, voice_E)
    return ItemResult(
        system=system,
        id=expected.id,
        speaker=expected.speaker,
        text=expected.text,
        hypothesis=first.hypothesis,
        substitutions=counts.substitutions,
        deletions=counts.deletions,
        insertions=counts.insertions,
        words=counts.words,
        wer=counts.wer,
        failure=stability.is_failure,
        failure_reasons=stability.reasons,
        has_eos=spoken.has_eos,
        duration_s=stability.duration_s,
        speaker_similarity=likeness,
        tokens=None if spoken.codes is None else int(spoken.codes.shape[-1]),
        audio_path=None,
        audio_sha256=_audio_sha256(spoken.samples_N),
        text_sha256=text_sha256(expected.text),
        recogniser=scorers.recogniser.name,
        speaker_encoder=None if scorers.encoder is None else scorers.encoder.name,
        error=unlike,
        values=_naturalness(spoken, scorers.naturalness),
        loop=first.loop,
        heard={scorers.label: first, **others} if others else {},
    )


def _heard(text: str, spoken: Spoken, recogniser: SpeechRecogniser) -> Heard:
    hypothesis = hear(recogniser, spoken.samples_N, spoken.sample_rate)
    found = word_errors(text, hypothesis)
    counts = (found.substitutions, found.deletions, found.insertions, found.words)
    return Heard(recogniser.name, hypothesis, *counts, loop=is_loop(text, hypothesis))


def _likeness(
    spoken: Spoken, encoder: SpeakerEncoder | None, voice_E: Tensor | None
) -> tuple[float | None, str | None]:
    """How near the voice is to the one that was asked for, and why that cannot be told."""
    if encoder is None or voice_E is None:
        return None, None
    try:
        return similarity(embed(encoder, spoken.samples_N, spoken.sample_rate), voice_E), None
    except DataError as fault:
        return None, str(fault)


def _naturalness(spoken: Spoken, scorers: tuple[NaturalnessScorer, ...]) -> dict[str, float]:
    """What the models guess, by metric; nothing where there is no sound."""
    scores: dict[str, float] = {}
    for scorer in scorers:
        scores |= scorer.score(spoken.samples_N, spoken.sample_rate)
    return scores


def _audio_sha256(samples_N: Tensor) -> str:
    finite_N = torch.nan_to_num(samples_N.detach().cpu().float().flatten())
    pcm = (finite_N.clamp(-1.0, 1.0) * 32767.0).round().to(torch.int16)
    return hashlib.sha256(pcm.numpy().tobytes()).hexdigest()
