"""Which shifts of hibari's voice a demo can speak in: by two recognisers, DistillMOS and a speaker encoder.

``python -m benchmarks.natural_voices --shifts 0 -2 -4 2 --speed 1.15`` says digit strings in each voice and prints a
table in Markdown. ``--codec`` adds what is left of them after the demo's codec, with more codebooks, finer tokens and
more Griffin-Lim iterations in turn. The strings are not those of the demo's test (another seed).
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from retort.audio.codec import MelRVQConfig, new_codec
from retort.audio.files import Audio, resample
from retort.config import validate
from retort.data.digits import DIGIT_WORDS, DigitsConfig, DigitString, DigitVoices, digit_strings
from retort.evaluation.asr import FasterWhisperConfig, PocketSphinxConfig, open_recogniser
from retort.evaluation.hearing import RECOGNISER_RATE, hear
from retort.evaluation.naturalness import DistillMOS
from retort.evaluation.speaker import ResemblyzerConfig, embed, open_speaker_encoder
from retort.evaluation.wer import word_errors

_DEMO = {"kind": "mel_rvq", "num_codebooks": 4, "frames_per_token": 4, "griffin_lim_iterations": 8}
_CODECS: tuple[dict[str, int], ...] = (
    {},
    {"griffin_lim_iterations": 32},
    {"codebook_size": 1024},
    {"num_codebooks": 8},
    {"num_codebooks": 8, "griffin_lim_iterations": 32},
    {"frames_per_token": 2},
)
_SEED = 18


@dataclass(frozen=True)
class Said:
    """A string and its sound at the recognisers' rate."""

    string: DigitString
    samples_N: Tensor


class Judges:
    """Two recognisers, a guess of naturalness, and an encoder of voices."""

    def __init__(self) -> None:
        self.recognisers = (
            open_recogniser(PocketSphinxConfig(words=DIGIT_WORDS, noise_gate_db=35.0)),
            open_recogniser(FasterWhisperConfig()),
        )
        self.naturalness = DistillMOS()
        self.encoder = open_speaker_encoder(ResemblyzerConfig())

    def row(self, name: str, said: Sequence[Said], *, of_naturalness: int = 15) -> str:
        """A line of the table: errors capped at an utterance's words."""
        errors, words = [0] * len(self.recognisers), 0
        for one in said:
            for place, recogniser in enumerate(self.recognisers):
                counts = word_errors(one.string.text, hear(recogniser, one.samples_N, RECOGNISER_RATE))
                wrong = counts.substitutions + counts.deletions + counts.insertions
                errors[place] += min(wrong, counts.words)
            words += len(one.string.text.split())
        scores = [self.naturalness.score(one.samples_N, RECOGNISER_RATE)["distillmos"] for one in said[:of_naturalness]]
        seconds = sum(one.samples_N.numel() for one in said) / RECOGNISER_RATE / words
        figures = (f"{seconds:.2f}", *(f"{count / words:.3f}" for count in errors), f"{sum(scores) / len(scores):.2f}")
        return f"| {name} | {' | '.join(figures)} |"

    def voices(self, said: Sequence[Said]) -> Tensor:
        """Embeddings [n, E]."""
        return torch.stack([embed(self.encoder, one.samples_N, RECOGNISER_RATE) for one in said])


def say(config: DigitsConfig, change: Callable[[Audio], Audio] = lambda said: said) -> list[Said]:
    """The strings of a corpus."""
    voices, found = DigitVoices(config), []
    for string in digit_strings(config):
        said = change(voices.speak(string))
        found.append(Said(string, resample(said.samples_N, said.sample_rate, RECOGNISER_RATE)))
    return found


def corpus(voices: Sequence[str], speed: float, strings: int) -> DigitsConfig:
    """Strings of the demo's lengths."""
    return DigitsConfig(
        kind="digits", num_strings=strings, test_strings=0, min_digits=2, max_digits=5, voices=tuple(voices),
        hibari_speed=speed, seed=_SEED,
    )  # fmt: skip


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shifts", type=float, nargs="+", default=[0.0, -2.0, -4.0])
    parser.add_argument("--speed", type=float, default=1.15)
    parser.add_argument("--strings", type=int, default=30)
    parser.add_argument("--fit", type=int, default=400, help="strings that a codec is fitted on")
    parser.add_argument("--codec", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    judges, embeddings = Judges(), {}
    names = ["hibari" if shift == 0 else f"hibari@{shift:g}" for shift in args.shifts]
    print("| voice | s a word | WER pocketsphinx | WER Whisper | DistillMOS |\n|---|---|---|---|---|")
    for name in names:
        said = say(corpus([name], args.speed, args.strings))
        print(judges.row(name, said), flush=True)
        embeddings[name] = judges.voices(said[:12])
    print("\n| cosine of | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    for name, own in embeddings.items():
        print(
            f"| {name} | " + " | ".join(f"{float((own @ other.T).mean()):.2f}" for other in embeddings.values()) + " |"
        )
    if not args.codec:
        return
    rows = say(corpus(names, args.speed, args.fit + args.strings))
    fit, test = rows[: args.fit], rows[args.fit :]
    print("\n| codec | s a word | WER pocketsphinx | WER Whisper | DistillMOS |\n|---|---|---|---|---|")
    print(judges.row("none", test), flush=True)

    def recordings(sample_rate: int) -> Iterator[Tensor]:
        return (resample(one.samples_N, RECOGNISER_RATE, sample_rate) for one in fit)

    for change in _CODECS:
        tree = {**_DEMO, **change}
        config = validate(tree, MelRVQConfig, where="codec")
        codec = new_codec(config, recordings)
        again = [Said(one.string, codec.decode(codec.encode(one.samples_N))) for one in test]
        told = ", ".join(f"{key} {value}" for key, value in change.items()) or "the demo's"
        print(judges.row(told, again), flush=True)


if __name__ == "__main__":
    main()
