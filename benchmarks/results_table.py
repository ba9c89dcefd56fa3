"""Print a tour's ``summary.json`` as the tables of the README and the log.

Usage: ``python -m benchmarks.results_table runs/demo``
"""

import json
import sys
from pathlib import Path
from typing import Any

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
        print(f"- {finding['text']}")


def systems_table(systems: list[dict[str, Any]]) -> str:
    """One row per system; summaries of old have no intervals of speed."""
    lines = [
        "| system | parameters | WER (95 % interval) | failures | similarity | entropy | top-1 | tokens/s, batch 1 | "
        "tokens/s, saturated | RTF | peak MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for s in systems:
        low, high = s["wer_ci95"]
        cells = [
            s["name"],
            "" if s["parameters"] is None else f"{s['parameters'] / 1e6:.2f}M",
            f"{s['wer_corpus']:.3f} ({low:.3f} to {high:.3f})",
            f"{s['failure_rate']:.3f}",
            *(_number(s[key], digits) + _interval(s.get(f"{key}_ci95"), digits) for key, digits in _COLUMNS),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


_COLUMNS = (
    ("speaker_similarity", 3),
    ("entropy", 2),
    ("top1_probability", 2),
    ("tokens_per_second_batch1", 0),
    ("tokens_per_second", 0),
    ("rtf", 3),
    ("peak_memory_mb", 0),
)


def comparisons_table(comparisons: list[dict[str, Any]]) -> str:
    """One row per pair and metric."""
    lines = [
        "| from | to | metric | difference (95 % interval) | probability of improvement |",
        "|---|---|---|---|---|",
    ]
    for c in comparisons:
        interval = "" if c["ci95"] is None else f" ({c['ci95'][0]:+.3f} to {c['ci95'][1]:+.3f})"
        lines.append(
            f"| {c['a']} | {c['b']} | {c['metric']} | {c['difference']:+.3f}{interval} | "
            f"{c['probability_of_improvement']:.3f} |"
        )
    return "\n".join(lines)


def _interval(ends: list[float] | None, digits: int) -> str:
    return "" if ends is None else f" ({ends[0]:.{digits}f} to {ends[1]:.{digits}f})"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
