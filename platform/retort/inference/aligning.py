"""Where each phone of a text lies in its recording: the best path through an aligner's phones, and whether to trust it.

The path is CTC's, through ``torchaudio.functional.forced_align``, whose blank is the pause here: between any two phones
there may be one, and each phone lasts as long as its class does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from retort.audio.mel import log_mel
from retort.config import Config
from retort.models.aligner import PAUSE, Aligner, normalised, without_stress


class PlausibilityConfig(Config):
    """What an alignment must satisfy; a row whose alignment does not is rejected."""

    min_log_prob: float = Field(default=-1.5, le=0)
    """Of a frame's class on the path, in nats, on average."""
    max_phone_s: float = Field(default=0.8, gt=0)
    """Longest phone; pauses may be longer."""
    max_shortest_ratio: float = Field(default=0.5, gt=0, le=1)
    """Share of phones that got a single frame: text that is not said is squeezed together somewhere."""


@dataclass(frozen=True)
class Alignment:
    """Phones and pauses in order; they fill the recording without gaps.

    Attributes:
        labels: IPA as the text front-end writes it, stress included; empty for a pause.
        frames: how long each lasts.
        frame_rate: frames per second. Frame ``t`` is centred on ``t / frame_rate`` seconds.
        log_prob: of a frame's class on the path, on average.
    """

    labels: tuple[str, ...]
    frames: tuple[int, ...]
    frame_rate: float
    log_prob: float

    def starts_s(self) -> list[float]:
        """When each begins: half a frame before the centre of its first."""
        starts, place = [], 0
        for frames in self.frames:
            starts.append(max(0.0, (place - 0.5) / self.frame_rate))
            place += frames
        return starts


class Misaligned(Exception):  # noqa: N818 (it reads as the verdict that it is)
    """A text that is not the recording's, or cannot be told to be: a code for counting, and the reason in words."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(code, detail)
        self.code, self.detail = code, detail


class PhoneAligner:
    """Aligns recordings.

    Args:
        model: on the CPU.
        limits: of a plausible alignment.
    """

    def __init__(self, model: Aligner, limits: PlausibilityConfig) -> None:
        self.model, self.limits = model.eval(), limits
        self._classes = {phone: number for number, phone in enumerate(model.config.phones, start=PAUSE + 1)}

    @torch.inference_mode()
    def align(self, samples_N: Tensor, phones: Sequence[str]) -> Alignment:
        """Align the phones of a text.

        Args:
            samples_N: at the rate of the aligner's mels.
            phones: of :func:`retort.text.espeak.phones_of_all`, in the aligner's voice.

        Raises:
            Misaligned: unspeakable_text, unknown_phone, too_many_phones, unlikely_alignment, long_phone or
                squeezed_phones.
        """
        if not phones:
            raise Misaligned("unspeakable_text", "its text has no phones")
        mel = self.model.config.mel
        log_probs_TC = self.model(normalised(log_mel(samples_N, mel).T)[None])[0]
        path_T, scores_T = best_path(log_probs_TC, self.classes(phones))
        labels, frames = segments(path_T, phones)
        found = Alignment(labels, frames, mel.frame_rate, float(scores_T.mean()))
        check_alignment(found, self.limits)
        return found

    def classes(self, phones: Sequence[str]) -> Tensor:
        """Classes [S] of phones.

        Raises:
            Misaligned: unknown_phone.
        """
        plain = without_stress(phones)
        unknown = sorted({phone for phone in plain if phone not in self._classes})
        if unknown:
            raise Misaligned("unknown_phone", f"the aligner was trained without {', '.join(unknown)}")
        return torch.tensor([self._classes[phone] for phone in plain])


def check_alignment(found: Alignment, limits: PlausibilityConfig) -> None:
    """Refuse one that cannot be believed.

    Raises:
        Misaligned: unlikely_alignment, long_phone or squeezed_phones.
    """
    if found.log_prob < limits.min_log_prob:
        raise Misaligned(
            "unlikely_alignment",
            f"{found.log_prob:.2f} nats a frame, below {limits.min_log_prob:g}: another text, or not all of it",
        )
    phones = [(label, frames) for label, frames in zip(found.labels, found.frames, strict=True) if label]
    longest, frames = max(phones, key=lambda phone: phone[1])
    if frames / found.frame_rate > limits.max_phone_s:
        raise Misaligned(
            "long_phone", f"{longest} lasts {frames / found.frame_rate:.2f} s, more than {limits.max_phone_s:g}"
        )
    squeezed = sum(frames == 1 for _, frames in phones) / len(phones)
    if squeezed > limits.max_shortest_ratio:
        raise Misaligned("squeezed_phones", f"{squeezed:.0%} of the phones got a single frame")


def best_path(log_probs_TC: Tensor, classes_S: Tensor) -> tuple[Tensor, Tensor]:
    """The most likely class of each frame, given the order of the phones, and its log-probability.

    Args:
        log_probs_TC: of an aligner.
        classes_S: of the phones.

    Raises:
        Misaligned: too_many_phones.
    """
    import torchaudio

    repeats = int((classes_S[1:] == classes_S[:-1]).sum())
    if len(log_probs_TC) < len(classes_S) + repeats:
        raise Misaligned("too_many_phones", f"{len(classes_S)} phones for {len(log_probs_TC)} frames")
    path_1T, scores_1T = torchaudio.functional.forced_align(
        log_probs_TC[None].float().contiguous(), classes_S[None].int(), blank=PAUSE
    )
    return path_1T[0].long(), scores_1T[0]


def segments(path_T: Tensor, phones: Sequence[str]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """A path's phones and pauses with their lengths in frames, the phones as they were given."""
    classes, counts = torch.unique_consecutive(path_T, return_counts=True)
    left = iter(phones)
    labels = tuple("" if number == PAUSE else next(left) for number in classes.tolist())
    assert next(left, None) is None, "a path holds every phone"
    return labels, tuple(counts.tolist())
