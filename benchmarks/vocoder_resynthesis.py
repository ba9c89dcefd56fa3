"""How natural recordings sound whose phases are made up again: by Griffin-Lim, and by a vocoder that was trained here.

``python -m benchmarks.vocoder_resynthesis`` has hibari's voice say English sentences (of the extra ``english``), trains
a vocoder on them by the task of ``retort pretrain``, in this process, and judges what becomes of the mels of
sentences that it did not hear. ``--vocoder FOLDER`` takes one that is trained already. It prints a Markdown table:
DistillMOS, word error rate by Whisper, and seconds on one thread for a second of sound.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from retort.audio.files import resample, wav_bytes
from retort.audio.hibari import Voices
from retort.audio.mel import MelConfig, log_mel
from retort.data.english import EnglishTexts, english_texts
from retort.data.readers_manifest import ManifestConfig
from retort.data.recordings import AudioConfig
from retort.data.sound_stream import SoundBatchConfig
from retort.data.splits import SplitConfig
from retort.evaluation.naturalness import DistillMOSConfig, open_naturalness
from retort.evaluation.wer import word_errors
from retort.evaluation.whisper import FasterWhisper, FasterWhisperConfig
from retort.inference.inversion import GriffinLimInversion, Inverter, VocoderInversion, open_inversion
from retort.methods.vocoder_pretrain import (
    AdversaryConfig,
    VocoderPreset,
    VocoderPretrainConfig,
    VocoderPretraining,
    VocoderSound,
)
from retort.training.fit import Adversary, PlainOptimizer, fit, student_weights
from retort.training.schedule import OptimizerConfig
from retort.training.seam import Place, StepOutput

MEL = MelConfig()
SHIFTS = (0.0, -3.0)
"""Semitones of pitch and formants: two people, as an encoder of speakers hears it."""
Said = list[tuple[str, Tensor]]


def say(folder: Path, train: int, test: int) -> Said:
    """Write a corpus of training sentences; returns texts and recordings of those that are kept out."""
    voices, kept, lines = Voices(), [], []
    for i, text in enumerate(english_texts(EnglishTexts(train=train, validation=0, test=test))):
        audio = voices.speak(text.text, "heart", shift=SHIFTS[i % len(SHIFTS)], seed=i)
        assert audio is not None, text.text
        samples_N = resample(audio.samples_N, audio.sample_rate, MEL.sample_rate)
        if text.split == "test":
            kept.append((text.text, samples_N))
            continue
        (folder / f"{i}.wav").write_bytes(wav_bytes(samples_N, MEL.sample_rate))
        lines.append({"id": str(i), "text": text.text, "speaker": "s", "audio": f"{i}.wav", "split": "train"})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return kept


def train(corpus: Path, steps: int, adversary: AdversaryConfig | None, output: Path) -> float:
    """Train a tiny vocoder; returns the minutes of CPU."""
    sound = VocoderSound(
        ManifestConfig(kind="manifest", path=corpus / "manifest.jsonl"),
        AudioConfig(target_lufs=None),
        SplitConfig(),
        MEL,
    )
    method, size = VocoderPretrainConfig(adversary=adversary), VocoderPreset(name="tiny")
    problem = VocoderPretraining(sound, size, method, SoundBatchConfig(segments=8), 1, 0).build(Place())
    optimizer = OptimizerConfig(
        learning_rate=1e-3, warmup_steps=100, final_fraction=0.05, betas=(0.8, 0.99), weight_decay=0.01
    )
    judge = None
    if problem.adversary is not None:
        judge = Adversary(problem.adversary, PlainOptimizer(problem.adversary, optimizer, steps))

    def told(step: int, out: StepOutput) -> None:
        if step % 100 == 99:
            print(step + 1, {name: round(float(value), 3) for name, value in out.metrics.items()}, flush=True)

    begin = time.process_time()
    plain = PlainOptimizer(problem.objective, optimizer, steps)
    batches = ((problem.batches.batch(n), None) for n in range(steps))
    fit(problem.objective, problem.teacher, batches, plain, told, judge)
    problem.trained(student_weights(plain.weights())).save(output)
    return (time.process_time() - begin) / 60.0


def line(
    name: str, kept: Said, made_of: Callable[[Tensor], Tensor], judges: tuple[Callable[[Tensor], float], FasterWhisper]
) -> str:
    """One row of the table."""
    distillmos, whisper = judges
    scores, errors, words, seconds, sound_s = [], 0, 0, 0.0, 0.0
    for text, samples_N in kept:
        begin = time.process_time()
        made_N = made_of(samples_N)
        seconds += time.process_time() - begin
        sound_s += len(samples_N) / MEL.sample_rate
        scores.append(distillmos(made_N))
        counted = word_errors(text, whisper.transcribe(made_N, MEL.sample_rate))
        errors, words = errors + counted.errors, words + counted.words
    mean = torch.tensor(scores).mean()
    return f"| {name} | {float(mean):.2f} | {errors / words:.3f} | {seconds / sound_s:.4f} |"


def inverters(vocoders: Sequence[Path]) -> dict[str, Inverter]:
    """What makes sound of mels, by name."""
    found: dict[str, Inverter] = {}
    for iterations in (4, 32):
        found[f"Griffin-Lim, {iterations} rounds"] = open_inversion(GriffinLimInversion(num_iterations=iterations), MEL)
    for folder in vocoders:
        opened = open_inversion(VocoderInversion(path=folder), MEL)
        found[opened.name] = opened
    return found


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentences", type=int, default=400)
    parser.add_argument("--held-out", type=int, default=24)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--adversary-from", type=int, help="step at which the discriminator begins; none without it")
    parser.add_argument("--vocoder", type=Path, action="append", default=[], help="folder of a trained one")
    given = parser.parse_args()
    torch.set_num_threads(1)
    adversary = None if given.adversary_from is None else AdversaryConfig(from_step=given.adversary_from)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kept = say(folder, 1 if given.vocoder else given.sentences, given.held_out)
        vocoders = list(given.vocoder)
        if not vocoders:
            minutes = train(folder, given.steps, adversary, folder / "vocoder")
            print(f"\ntrained for {minutes:.1f} minutes of CPU\n")
            vocoders = [folder / "vocoder"]
        found = inverters(vocoders)
        scorer, whisper = open_naturalness(DistillMOSConfig()), FasterWhisper(FasterWhisperConfig())
        judges = (lambda made_N: scorer.score(made_N, MEL.sample_rate)["distillmos"], whisper)
        print("| sound | DistillMOS | word error rate | RTF |\n|---|---|---|---|")
        print(line("recordings", kept, lambda samples_N: samples_N, judges))
        for name, inverter in found.items():
            print(line(name, kept, lambda x, made=inverter: made.sound(log_mel(x, MEL)), judges), flush=True)  # type: ignore[misc]


if __name__ == "__main__":
    main()
