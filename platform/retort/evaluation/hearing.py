"""What every recogniser shares: the rate at which it listens, silence that it is never given, and its words."""

from typing import Protocol

import torch
from torch import Tensor

from retort.errors import DataError, RetortError

RECOGNISER_RATE = 16_000
"""Sample rate, in Hz, that every recogniser here listens at."""


class SpeechRecogniser(Protocol):
    """Turns samples into words. ``smoke_tier`` recognisers are not comparable with published numbers."""

    name: str
    smoke_tier: bool

    def transcribe(self, samples_N: Tensor, sample_rate: int) -> str:
        """Words heard in mono samples [N] in -1..1; the result does not depend on earlier calls."""


def loudest_frame_dbfs(samples_N: Tensor, sample_rate: int, *, frame_s: float = 0.025) -> float:
    """RMS of the loudest frame in dB relative to full scale; minus infinity for digital silence or no samples."""
    frame = max(int(frame_s * sample_rate), 1)
    samples_N = samples_N.detach().flatten().float()
    if samples_N.numel() == 0:
        return float("-inf")
    padded = torch.nn.functional.pad(samples_N, (0, -samples_N.numel() % frame))
    power = padded.view(-1, frame).square().mean(dim=1).max()
    return float(10.0 * torch.log10(power))


def audible_16k(samples_N: Tensor, sample_rate: int, silence_dbfs: float) -> Tensor | None:
    """Samples at 16 kHz, or None where there is nothing to hear.

    Recognisers hear words in silence (pocketsphinx: "dog"), so silence never reaches them. Non-finite samples count as
    silence too: the stability rules name that failure.
    """
    samples_N = samples_N.detach().cpu().float().flatten()
    if not bool(torch.isfinite(samples_N).all()) or loudest_frame_dbfs(samples_N, sample_rate) < silence_dbfs:
        return None
    if sample_rate != RECOGNISER_RATE:
        from retort.audio.files import resample

        samples_N = resample(samples_N, sample_rate, RECOGNISER_RATE)
    return samples_N if samples_N.numel() else None  # nothing is left of the shortest sounds


def hear(recogniser: SpeechRecogniser, samples_N: Tensor, sample_rate: int) -> str:
    """The words that a recogniser hears in one sound.

    Raises:
        DataError: it cannot take this sound, whatever its library raises; others may be heard all the same.
    """
    try:
        return recogniser.transcribe(samples_N, sample_rate)
    except RetortError:
        raise
    except Exception as error:
        fault = f"{type(error).__name__}: {error}"
        raise DataError(
            f"{recogniser.name} cannot hear {samples_N.numel()} samples at {sample_rate} Hz: {fault}"
        ) from error
