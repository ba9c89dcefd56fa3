"""All ways to keep some of a teacher's layers, scored untrained: where the choice of each criterion stands among them.

``python -m benchmarks.layer_choices runs/demo-prune/prune`` reads the choices of ``retort prune``, lets the teacher say
test strings with every subset of as many layers, and prints the word error rate of each, the rank of each criterion's
choice (1 is the best), and Spearman's rank correlation between what a criterion's scores promise (the sum of those of
the layers that go) and the word errors that were found.
"""

import argparse
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr

from retort.config import load_config
from retort.evaluation.asr import open_recogniser
from retort.evaluation.judge import Judge, System, TestStrings
from retort.evaluation.results import SystemInfo, summarise
from retort.evaluation.scoring import Scorers
from retort.inference.speech import SpeechEngine
from retort.inference.synthesizer import Synthesizer
from retort.methods.layer_pruning import MEASURED
from retort.models.layer_choice import LayerChoice, read_choice
from retort.orchestration.prune.job import IMPORTANCE_FILE
from retort.run_config import PruneConfig
from retort.store.results import RUN_FILE, result_of

Layers = tuple[int, ...]


def scored(prune: Path, *, split: str, num_strings: int, num_kept: int | None) -> tuple[LayerChoice, dict[Layers, Any]]:
    """Word errors of every subset of layers: its figures, as ``summary.json`` has them."""
    config = load_config(prune / RUN_FILE, PruneConfig)
    choice = read_choice(prune)
    whole = Synthesizer.open(result_of(config.teacher), precision=config.precision)
    strings = TestStrings(result_of(config.data), split=split, count=num_strings)
    ids = sorted(strings.rows, key=lambda name: (strings.rows[name].num_frames, name))
    judge = Judge(
        strings,
        Scorers(open_recogniser(config.recogniser), None, config.stability),
        max_frames=config.max_frames,
        seed=config.seed,
    )
    found: dict[Layers, Any] = {}
    for layers in itertools.combinations(range(choice.num_layers), num_kept or choice.num_kept):
        name = "-".join(map(str, layers))
        system = System(name, "model", SpeechEngine(whole.with_layers(layers)), config.decoding)
        items = [
            verdict.item
            for begin in range(0, len(ids), config.batch_size)
            for verdict in judge.judge(system, ids[begin : begin + config.batch_size])
        ]
        found[layers] = summarise(items, [SystemInfo(name, "control")]).systems[0]
        print(f"{name}: WER {found[layers]['wer_corpus']:.4f}", flush=True)
    return choice, found


def table(choice: LayerChoice, importance: Mapping[str, Any], found: Mapping[Layers, Any]) -> str:
    """Two tables as Markdown: subsets by their word errors, and criteria by where their choices stand."""
    ranked = sorted(found, key=lambda layers: float(found[layers]["wer_corpus"]))
    size = len(ranked[0])
    chosen = {criterion: by_count[size] for criterion, by_count in choice.kept.items()}
    lines = ["| rank | layers kept | WER (95 % interval) | failures | chosen by |", "|---|---|---|---|---|"]
    for rank, layers in enumerate(ranked, 1):
        figures = found[layers]
        low, high = figures["wer_ci95"]
        by = ", ".join(name for name, kept in chosen.items() if tuple(kept) == layers)
        lines.append(
            f"| {rank} | {', '.join(map(str, layers))} | {figures['wer_corpus']:.3f} ({low:.3f} to {high:.3f}) | "
            f"{figures['failure_rate']:.3f} | {by} |"
        )
    lines += ["", "| criterion | rank of its choice | rank correlation |", "|---|---|---|"]
    wer = [float(found[layers]["wer_corpus"]) for layers in ranked]
    for criterion, kept in chosen.items():
        correlation = ""
        if criterion in MEASURED:
            scores = {row["layer"]: float(row[criterion]) for row in importance["layers"]}
            promised = [sum(score for layer, score in scores.items() if layer not in layers) for layers in ranked]
            correlation = f"{float(spearmanr(promised, wer).statistic):.2f}"
        lines.append(f"| {criterion} | {ranked.index(tuple(kept)) + 1} of {len(ranked)} | {correlation} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Score, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prune", type=Path, help="output folder of `retort prune`")
    parser.add_argument("--split", default="test", help="of the strings; the layers were chosen on others")
    parser.add_argument("--strings", type=int, default=200)
    parser.add_argument("--kept", type=int, help="how many layers stay; left out, as many as were chosen")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    choice, found = scored(args.prune, split=args.split, num_strings=args.strings, num_kept=args.kept)
    importance = json.loads((result_of(args.prune) / IMPORTANCE_FILE).read_text())
    print(table(choice, importance, found))


if __name__ == "__main__":
    main()
