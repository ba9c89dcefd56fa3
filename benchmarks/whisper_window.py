"""What Whisper hears, and what it costs, in windows of its own thirty seconds and in short ones.

    python -m benchmarks.whisper_window ../shared/data/fsdd --clips 40

Clips: recordings of spoken digits joined by threes (FSDD), digits by robotic voices of espeak-ng, sentences by one of
them, and, where `hibari` is installed, by a natural synthetic voice. ``bare`` is a short window with nothing behind it.
"""

import argparse
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retort.audio.files import read_audio
from retort.evaluation.asr import FasterWhisperConfig
from retort.evaluation.wer import is_loop, word_errors
from retort.evaluation.whisper import FasterWhisper
from retort.text.espeak import speak

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SENTENCES = (
    "the birch canoe slid on the smooth planks",
    "glue the sheet to the dark blue background",
    "it is easy to tell the depth of a well",
    "these days a chicken leg is a rare dish",
    "rice is often served in round bowls",
    "the juice of lemons makes fine punch",
    "the box was thrown beside the parked truck",
    "the hogs were fed chopped corn and garbage",
    "four hours of steady work faced us",
    "a large size in stockings is hard to sell",
    "the boy was there when the sun rose",
    "a rod is used to catch pink salmon",
)
Clip = tuple[str, Tensor, int]


class Bare(FasterWhisper):
    """Short windows as they are: no states of silence behind them, no second look at what does not end."""

    def _behind_silence(self, encoded: Any) -> Any:
        return encoded

    def _decoded(self, encoded: Any, most: int) -> tuple[str, bool]:
        return super()._decoded(encoded, max(most, self._model.max_length // 2))[0], True


def robot(text: str, voice: str) -> Clip:
    """A sentence by espeak-ng."""
    speech = speak(text, voice=voice, words_per_minute=160)
    return text, torch.from_numpy(speech.samples_N), speech.sample_rate


def joined(folder: Path, speaker: str, digits: Sequence[int], take: random.Random) -> Clip:
    """Recordings of one speaker with a tenth of a second behind each."""
    parts, rate = [], 0
    for digit in digits:
        audio = read_audio((folder / f"{digit}_{speaker}_{take.randrange(40)}.wav").read_bytes())
        rate = audio.sample_rate
        parts += [audio.samples_N, torch.zeros(rate // 10)]
    return " ".join(DIGITS[digit] for digit in digits), torch.cat(parts), rate


def natural() -> Iterator[Clip]:
    """The sentences by hibari, where it is installed."""
    try:
        from hibari import SAMPLE_RATE, Hibari
    except ImportError:
        return
    voice = Hibari()
    for text in SENTENCES:
        yield text, torch.from_numpy(np.asarray(voice(text), dtype=np.float32)), SAMPLE_RATE


def clips(folder: Path, count: int) -> Mapping[str, Sequence[Clip]]:
    """Every set, ``count`` clips of digits each."""
    take = random.Random(0)
    speakers = sorted({path.stem.split("_")[1] for path in folder.glob("*.wav")})
    strings = [[take.randrange(10) for _ in range(take.randint(2, 5))] for _ in range(count)]
    found = {
        "FSDD, three digits": [
            joined(folder, take.choice(speakers), [take.randrange(10) for _ in range(3)], take) for _ in range(count)
        ],
        "robotic digits": [
            robot(" ".join(DIGITS[d] for d in s), take.choice(["en-us+klatt4", "en-us+edward"])) for s in strings
        ],
        "robotic sentences": [robot(text, "en-us+edward") for text in SENTENCES],
        "hibari": list(natural()),
    }
    return {name: said for name, said in found.items() if said}


def main() -> None:
    """Print one line per recogniser and set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("fsdd", type=Path)
    parser.add_argument("--clips", type=int, default=40)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    whole = FasterWhisperConfig(margin_s=None)
    recognisers = {
        "thirty seconds": FasterWhisper(whole),
        **{f"bare, margin {s:g} s": Bare(FasterWhisperConfig(margin_s=s)) for s in (1.0, 4.0)},
        **{f"margin {s:g} s": FasterWhisper(FasterWhisperConfig(margin_s=s)) for s in (2.0, 4.0, 6.0)},
    }
    print("| window | clips | WER, capped | WER | loops | CPU seconds per minute of sound |\n|---|---|---|---|---|---|")
    for name, said in clips(arguments.fsdd, arguments.clips).items():
        for window, recogniser in recognisers.items():
            recogniser.transcribe(*said[0][1:])  # the states of silence
            begin = time.process_time()
            heard = [(text, recogniser.transcribe(samples_N, rate)) for text, samples_N, rate in said]
            cost = time.process_time() - begin
            minutes = sum(samples_N.numel() / rate for _, samples_N, rate in said) / 60
            errors = [word_errors(text, words) for text, words in heard]
            words = sum(found.words for found in errors)
            capped, plain = sum(found.capped for found in errors) / words, sum(f.errors for f in errors) / words
            loops = sum(is_loop(text, words) for text, words in heard)
            print(
                f"| {window} | {name} | {capped:.3f} | {plain:.3f} | {loops} of {len(said)} | {cost / minutes:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
