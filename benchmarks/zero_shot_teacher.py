"""How a zero-shot model learns to speak: word errors after some steps of its first stage, by settings.

``python -m benchmarks.zero_shot_teacher runs/demo-zero-shot/phone_mels --output FOLDER --contrast 0`` trains by the
task of ``retort pretrain`` in this process, on one thread, and prints the loss terms on training and on test rows, and
Whisper's word error rate on test rows: from the recordings' own mels, from the model's with the recordings' durations,
and with its own. Sound is Griffin-Lim's.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from retort.data.phone_mel_stream import PhoneMelBatchConfig, PhoneMelStream
from retort.data.phone_mels import PhoneMelRow, PhoneMelSet
from retort.evaluation.hearing import hear
from retort.evaluation.wer import word_errors
from retort.evaluation.whisper import FasterWhisper, FasterWhisperConfig
from retort.inference.inversion import GriffinLimInversion, open_inversion
from retort.inference.zero_shot_making import MelWish, ZeroShotMaker
from retort.methods.zero_shot_pretrain import ZeroShotPretrainConfig, ZeroShotPretraining
from retort.models.zero_shot.presets import ZeroShotPreset, shape_of
from retort.models.zero_shot.timbre import ResemblyzerTimbreConfig
from retort.store.results import result_of
from retort.training.fit import PlainOptimizer, fit, student_weights
from retort.training.schedule import OptimizerConfig
from retort.training.seam import Place, StepOutput


def train(args: argparse.Namespace, folder: Path) -> None:
    """Train by the settings, and write the model."""
    losses = ZeroShotPretrainConfig().losses
    contrastive = losses.contrastive.replace(
        weight=args.contrast, batches=args.contrast_batches, fraction=args.contrast_fraction
    )
    losses = losses.replace(contrastive=contrastive, mel_ssim=args.ssim, kl=args.kl, kl_free_nats=args.kl_free_nats)
    method = ZeroShotPretrainConfig(losses=losses)
    shape = shape_of(ZeroShotPreset(name=args.preset, dropout=args.dropout))
    given = {name: int(value) for name, _, value in (pair.partition("=") for pair in args.shape)}
    batch = PhoneMelBatchConfig(max_utterances=16, max_frames=6400, prompt_max_frames=160)
    task = ZeroShotPretraining(
        data=args.phone_mels, model=shape.replace(**given), timbre=ResemblyzerTimbreConfig(), method=method,
        batch=batch, seed=0,
    )  # fmt: skip
    problem = task.build(Place())
    config = OptimizerConfig(
        learning_rate=args.learning_rate, warmup_steps=100, betas=(0.9, 0.98), final_fraction=0.05, ema_decay=0.99
    )
    optimizer = PlainOptimizer(problem.objective, config, args.steps)
    begin = time.process_time()

    def told(step: int, out: StepOutput) -> None:
        if (step + 1) % args.tell_every == 0 or step + 1 == args.steps:
            print(f"step {step + 1}, {(time.process_time() - begin) / 60:.1f} min of CPU: {_terms([out])}", flush=True)

    batches = ((problem.batches.batch(n), None) for n in range(args.steps))
    fit(problem.objective, problem.teacher, batches, optimizer, told)
    optimizer.use_average()
    problem.trained(student_weights(optimizer.weights())).save(folder)
    problem.objective.eval()
    for split in ("train", "test"):
        rows = PhoneMelSet.open(result_of(args.phone_mels)).split(split)
        stream = PhoneMelStream(rows, batch, seed=1)
        with torch.no_grad():
            found = [problem.objective(one, problem.teacher.targets(one)) for one in map(stream.batch, range(8))]
        print(f"{split}, without dropout: {_terms(found)}", flush=True)


def _terms(found: Sequence[StepOutput]) -> str:
    """Means of the loss terms, those of the contrast over the batches that have one."""
    means = {name: [float(out.metrics[name]) for out in found] for name in found[0].metrics}
    means["contrastive"] = [value for value in means.get("contrastive", []) if value != 0]
    return ", ".join(f"{name} {sum(each) / len(each):.3f}" for name, each in means.items() if each)


def judge(args: argparse.Namespace, folder: Path) -> None:
    """Print the word error rates."""
    test = PhoneMelSet.open(result_of(args.phone_mels)).split("test")
    rows: list[PhoneMelRow] = [test[place] for place in range(0, len(test), max(1, len(test) // args.rows))][
        : args.rows
    ]
    maker, whisper = ZeroShotMaker.open(folder), FasterWhisper(FasterWhisperConfig())
    inverter = open_inversion(GriffinLimInversion(), maker.mel)

    def said(row: PhoneMelRow, frames_P: Tensor | None) -> Tensor:
        prompt = next((other for other in rows if other.speaker == row.speaker and other.id != row.id), row)
        wish = MelWish(
            maker.numbers(row.phones), prompt.mel_TM[: maker.prompt_max_frames], prompt.timbre_E, 0, 0.667,
            frames_P=frames_P,
        )  # fmt: skip
        return maker.make(wish)[0]

    ways: dict[str, Callable[[PhoneMelRow], Tensor]] = {
        "the recordings' mels": lambda row: row.mel_TM,
        "the recordings' durations": lambda row: said(row, row.frames_P),
        "its own durations": lambda row: said(row, None),
    }
    for name, mel_of in ways.items():
        print(f"{name}: WER {_wer(rows, lambda row, of=mel_of: inverter.sound(of(row).T), whisper):.3f}", flush=True)  # type: ignore[misc]


def _wer(rows: Sequence[PhoneMelRow], sound_of: Callable[[PhoneMelRow], Tensor], whisper: FasterWhisper) -> float:
    """Errors capped at each row's words, over all words."""
    counts = [word_errors(row.text, hear(whisper, sound_of(row), 16_000)) for row in rows]
    return sum(min(count.words, count.errors) for count in counts) / sum(count.words for count in counts)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phone_mels", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="folder of the model")
    parser.add_argument("--preset", default="zero_shot_tiny")
    parser.add_argument("--shape", nargs="*", default=[], help="fields of the shape, as decoder_dim=192")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--contrast", type=float, default=0.01)
    parser.add_argument("--contrast-batches", type=float, default=0.25)
    parser.add_argument("--contrast-fraction", type=float, default=0.25)
    parser.add_argument("--ssim", type=float, default=0.0)
    parser.add_argument("--kl", type=float, default=0.1)
    parser.add_argument("--kl-free-nats", type=float, default=0.0)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--tell-every", type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.output.mkdir(parents=True)
    train(args, args.output)
    judge(args, args.output)


if __name__ == "__main__":
    main()
