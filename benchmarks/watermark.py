"""How well the weak watermark is found, after which harm, and how often it is found where it is not.

``python -m benchmarks.watermark FOLDER`` reads the WAV files of a folder of speech; the figures are those of that
speech. Marked is each file, cut to the length that is asked for; unmarked it is searched with many keys.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from retort.audio.files import read_audio, resample
from retort.audio.marked_files import raw_samples, read_marked
from retort.audio.watermark import SAMPLE_RATE, Samples, SpreadSpectrum, fold
from retort.serving.formats import SpeechEncoder, whole_file
from retort.serving.requests import AudioFormat

_LEVEL_DB, _SECONDS = -22.0, (1.0, 2.0, 4.0)


def harms() -> dict[str, Callable[[Samples], Samples]]:
    """What may happen to speech on its way, by name."""

    def noisy(snr_db: float) -> Callable[[Samples], Samples]:
        def harm(sound: Samples) -> Samples:
            draw = np.random.default_rng(0).normal(size=len(sound)).astype(np.float32)
            return sound + draw * np.float32(np.sqrt(np.square(sound).mean()) * 10 ** (-snr_db / 20))

        return harm

    def through(rate: int) -> Callable[[Samples], Samples]:
        def harm(sound: Samples) -> Samples:
            there = resample(torch.from_numpy(sound), SAMPLE_RATE, rate)
            return np.asarray(resample(there, rate, SAMPLE_RATE).numpy())

        return harm

    def encoded(name: AudioFormat, speed: float = 1.0) -> Callable[[Samples], Samples]:
        def harm(sound: Samples) -> Samples:
            encoder = SpeechEncoder(name, SAMPLE_RATE, speed=speed)
            body = encoder.push(torch.from_numpy(sound)) + encoder.finish()
            whole = whole_file(name, body, encoder.num_samples)
            return (raw_samples(whole) if name == "pcm" else read_marked(whole, max_seconds=600)).samples_N

        return harm

    formats: tuple[AudioFormat, ...] = get_args(AudioFormat)
    return {
        **{name: encoded(name) for name in formats},
        "16 kHz": through(16_000), "8 kHz": through(8_000),
        "noise at 30 dB": noisy(30), "20 dB": noisy(20), "10 dB": noisy(10),
        "tempo x1.05": encoded("pcm", speed=1.05),
    }  # fmt: skip


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--keys", type=int, default=2000, help="wrong keys, each tried on every file")
    arguments = parser.parse_args()
    audios = [read_audio(path) for path in sorted(arguments.folder.rglob("*.wav"))]
    clips = [np.asarray(resample(a.samples_N, a.sample_rate, SAMPLE_RATE).numpy()) for a in audios]
    watermark = SpreadSpectrum(b"the key of the benchmark", level_db=_LEVEL_DB)
    marked = []
    for clip in clips:
        stream = watermark.stream()
        marked.append(np.concatenate([stream.push(clip), stream.finish()]))
    levels = [10 * np.log10(np.square(m - c).mean() / np.square(c).mean()) for c, m in zip(clips, marked, strict=True)]
    print(f"{len(clips)} files, mark {np.mean(levels):.1f} dB below the sound\n")
    print("| after | " + " | ".join(f"{seconds:g} s: found, median score" for seconds in _SECONDS) + " |")
    print("|---" * (1 + len(_SECONDS)) + "|")
    for name, harm in harms().items():
        cells = []
        for seconds in _SECONDS:
            pieces = [part for clip in marked for part in _pieces(clip, seconds)]
            scores = np.array([watermark.detect(harm(piece)).score for piece in pieces])
            cells.append(f"{(scores >= watermark.threshold).sum()}/{len(scores)}, {np.median(scores):.1f}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    folded = [fold(clip) for clip in clips]
    wrong = [
        SpreadSpectrum(b"wrong key %8d" % key, level_db=_LEVEL_DB).score(one)
        for key in range(arguments.keys)
        for one in folded
    ]
    above = sum(score >= watermark.threshold for score in wrong)
    print(f"\nWrong keys: {above} of {len(wrong)} at {watermark.threshold:g} or more; the largest {max(wrong):.2f}")


def _pieces(clip: Samples, seconds: float) -> list[Samples]:
    size = int(seconds * SAMPLE_RATE)
    return [clip[at : at + size] for at in range(0, len(clip) - size + 1, size)]


if __name__ == "__main__":
    main()
