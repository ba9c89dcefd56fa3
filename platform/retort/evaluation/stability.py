"""Rules that call an utterance a failure: what a mean hides and a listener does not forgive.

Paper 1's gains are mostly tail gains (METHODS.md 1.2), so every utterance is judged on its own: words mostly wrong, no
end of speech, too long or too short for its text, silence, a token loop, clipping, samples that are not numbers.
"""

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from retort.config import Config
from retort.errors import DataError
from retort.evaluation.wer import score_text
from retort.inference.runaway import Repeat, longest_repeat

_FRAME_S = 0.025
_FULL_SCALE = 0.999


class StabilityConfig(Config):
    """Limits of a healthy utterance.

    Speech runs at some 0.2 to 0.6 s per word; the bounds are generous, and ``pause_s`` allows for silence at the ends.
    """

    max_wer: float = Field(default=0.5, ge=0.0)
    min_s_per_word: float = Field(default=0.1, ge=0.0)
    max_s_per_word: float = Field(default=1.5, gt=0.0)
    pause_s: float = Field(default=1.0, ge=0.0)
    silence_dbfs: float = Field(default=-50.0, le=0.0)
    max_silence_ratio: float = Field(default=0.8, gt=0.0, le=1.0)
    max_clipped_ratio: float = Field(default=0.01, ge=0.0, le=1.0)
    max_repeat_ratio: float = Field(default=0.5, gt=0.0, le=1.0)
    min_repeat_copies: int = Field(default=4, ge=2)
    max_repeat_period: int = Field(default=64, ge=1)


DEFAULT_STABILITY = StabilityConfig()


@dataclass(frozen=True)
class Stability:
    """Measures of one utterance and the rules that it broke.

    ``reasons`` holds names out of: ``wer, no_eos, too_long, too_short, silence, clipping, not_finite, repeat``.
    """

    duration_s: float
    seconds_per_word: float
    silence_ratio: float
    clipped_ratio: float
    repeat: Repeat
    reasons: tuple[str, ...]

    @property
    def is_failure(self) -> bool:
        """Whether any rule was broken."""
        return bool(self.reasons)


def assess(
    samples_N: Tensor,
    sample_rate: int,
    text: str,
    *,
    wer: float | None = None,
    has_eos: bool | None = None,
    codes: Tensor | None = None,
    config: StabilityConfig = DEFAULT_STABILITY,
) -> Stability:
    """Judge one utterance.

    Args:
        samples_N: mono samples in -1..1.
        sample_rate: Hz.
        text: what should be said; its words set how long the speech may be.
        wer: of the utterance, a fraction; None where it was not recognised.
        has_eos: whether decoding ended by itself, False where it hit the length limit, None where it cannot tell.
        codes: tokens [T] or [K, T]; None skips the loop rule.
        config: the limits.

    Raises:
        DataError: ``sample_rate`` is not positive.
    """
    if sample_rate <= 0:
        raise DataError(f"sample rate {sample_rate} Hz: an utterance needs a positive one to have a duration")
    samples_N = samples_N.detach().flatten().float()
    finite = bool(torch.isfinite(samples_N).all())
    sound_N = torch.nan_to_num(samples_N, nan=0.0, posinf=0.0, neginf=0.0)
    duration_s = samples_N.numel() / sample_rate
    words = max(len(score_text(text).split()), 1)
    silence = silence_ratio(sound_N, sample_rate, config.silence_dbfs)
    clipped = float((sound_N.abs() >= _FULL_SCALE).float().mean()) if samples_N.numel() else 0.0
    repeat = Repeat(0, 0) if codes is None else longest_repeat(codes, max_period=config.max_repeat_period)
    broken = {
        "wer": wer is not None and wer > config.max_wer,
        "no_eos": has_eos is False,
        "too_long": duration_s > config.max_s_per_word * words + config.pause_s,
        "too_short": duration_s < config.min_s_per_word * words,
        "silence": silence > config.max_silence_ratio,
        "clipping": clipped > config.max_clipped_ratio,
        "not_finite": not finite,
        "repeat": codes is not None and is_loop(repeat, codes.shape[-1], config),
    }
    reasons = tuple(name for name, is_broken in broken.items() if is_broken)
    return Stability(duration_s, duration_s / words, silence, clipped, repeat, reasons)


def silence_ratio(samples_N: Tensor, sample_rate: int, silence_dbfs: float) -> float:
    """Share of 25 ms frames whose RMS is below ``silence_dbfs``; 1 where there are no samples."""
    if samples_N.numel() == 0:
        return 1.0
    frame = max(int(_FRAME_S * sample_rate), 1)
    padded = torch.nn.functional.pad(samples_N, (0, -samples_N.numel() % frame))
    power = padded.view(-1, frame).square().mean(dim=1)
    return float((power < 10.0 ** (silence_dbfs / 10.0)).float().mean())


def is_loop(repeat: Repeat, num_steps: int, config: StabilityConfig) -> bool:
    """Whether a repetition is a token loop: copied often enough, and most of the utterance's steps."""
    copies = repeat.steps / max(repeat.period, 1)
    return copies >= config.min_repeat_copies and repeat.steps > config.max_repeat_ratio * num_steps
