"""Print a tour's ``summary.json`` as the tables of the README and the log.

Usage: ``python -m benchmarks.results_table runs/demo``
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from retort.evaluation.finding import Finding
from retort.evaluation.findings import AT_BEST
from retort.evaluation.metrics import labels_of
from retort.evaluation.noise_floor import sentence


def main(folder: Path) -> None:
    """Print both tables, the seconds of each job, and the findings."""
    summary = json.loads((folder / "summary.json").read_text())
    print(systems_table(summary["systems"]))
    if summary.get("speed_noise_floor"):
        print(f"\n{sentence(summary['speed_noise_floor'])}")
    print()
    print(comparisons_table(summary["comparisons"]))
    print()
    times = folder / "times.json"
    if times.is_file():
        seconds = json.loads(times.read_text())
        print("Seconds:", ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()), end=" ")
        print(f"(sum {sum(seconds.values()):.0f})")
    for finding in summary["findings"]:
        print(f"- {Finding(**finding).line}")


def systems_table(systems: list[dict[str, Any]]) -> str:
    """One row per system, with the columns that some system has a value for; at its best temperature words alone."""
    at_best = {s["name"].removesuffix(AT_BEST): s for s in systems if s["name"].endswith(AT_BEST)}
    plain = [s for s in systems if not s["name"].endswith(AT_BEST)]
    columns = [column for column in _columns(plain[0]) if any(s.get(column.field) is not None for s in plain)]
    titles = [*(column.title for column in columns), *(["WER at its best temperature"] if at_best else [])]
    lines = [f"| system | parameters | {' | '.join(titles)} |", "|---" * (2 + len(titles)) + "|"]
    for s in plain:
        parameters = "" if s["parameters"] is None else f"{s['parameters'] / 1e6:.2f}M"
        cells = [_number(s.get(c.field), c.digits) + _interval(s.get(c.interval), c.digits) for c in columns]
        cells += [_words_of(at_best[s["name"]]) if s["name"] in at_best else ""] if at_best else []
        lines.append("| " + " | ".join([f"`{s['name']}`", parameters, *cells]) + " |")
    return "\n".join(lines)


def _words_of(system: Mapping[str, Any]) -> str:
    """Word errors by every recogniser, and the temperature."""
    rates = [system[f"wer_capped@{label}"] for label in labels_of(system)] or [system["wer_corpus"]]
    return f"{', '.join(_number(rate, 3) for rate in rates)} (T = {system['temperature']:g})"


class _Column(NamedTuple):
    title: str
    field: str
    digits: int
    interval: str = ""


def _columns(system: Mapping[str, Any]) -> list[_Column]:
    """Words by every recogniser, where there are several; summaries of old have no intervals of speed."""
    words = [
        _Column(f"WER by {label}, capped (95 % interval)", f"wer_capped@{label}", 3, f"wer_capped@{label}_ci95")
        for label in labels_of(system)
    ]
    return [
        *(words or [_Column("WER (95 % interval)", "wer_corpus", 3, "wer_ci95")]),
        _Column("failures", "failure_rate", 3),
        _Column("DistillMOS", "distillmos", 2),
        _Column("DNSMOS", "dnsmos", 2),
        _Column("voice similarity", "speaker_similarity", 3),
        _Column("KL from the target, nats", "target_kl", 3),
        _Column("tokens/s at batch 1", "tokens_per_second_batch1", 0, "tokens_per_second_batch1_ci95"),
        _Column("tokens/s, saturated", "tokens_per_second", 0, "tokens_per_second_ci95"),
        _Column("RTF", "rtf", 3, "rtf_ci95"),
        _Column("peak MB", "peak_memory_mb", 0),
    ]


def comparisons_table(comparisons: list[dict[str, Any]]) -> str:
    """One row per pair and metric."""
    lines = [
        "| from | to | metric | difference (95 % interval) | probability of improvement |",
        "|---|---|---|---|---|",
    ]
    for c in comparisons:
        interval = "" if c["ci95"] is None else f" ({c['ci95'][0]:+.3f} to {c['ci95'][1]:+.3f})"
        better = _number(c["probability_of_improvement"], 3)
        lines.append(f"| {c['a']} | {c['b']} | {c['metric']} | {c['difference']:+.3f}{interval} | {better} |")
    return "\n".join(lines)


def _interval(ends: list[float] | None, digits: int) -> str:
    return "" if ends is None else f" ({ends[0]:,.{digits}f} to {ends[1]:,.{digits}f})"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
