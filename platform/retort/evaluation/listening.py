"""The listening page: pairs of systems on the same sentence, in random order and without their names.

It is a file of its own beside the report, which names the systems and holds no script. The page draws the order and
which side comes first, and saves what :mod:`retort.evaluation.votes` reads. Names are in its source: it is blind to who
listens, not to who looks for them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retort.evaluation.items import ItemResult
from retort.evaluation.page import write_page
from retort.evaluation.sounds import AudioSample, fingerprint_of, fitting

LISTENING_PAGE = "listen.html"


def pairs_of(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The pairs of systems that a summary was asked to compare, in order, each once."""
    pairs: dict[frozenset[str], tuple[str, str]] = {}
    for row in summary["comparisons"]:
        if row.get("told_as", "asked") == "asked":
            pairs.setdefault(frozenset((row["a"], row["b"])), (row["a"], row["b"]))
    return list(pairs.values())


def trials_of(pairs: Sequence[tuple[str, str]], samples: Sequence[AudioSample]) -> list[tuple[str, str, str]]:
    """What there is to judge: (utterance, a, b) wherever both systems of a pair said a sentence that fits the page."""
    kept, _ = fitting(samples)
    return [
        (utterance, a, b)
        for a, b in pairs
        for utterance, said in kept.items()
        if {a, b} <= {sample.system for sample in said}
    ]


def write_listening_page(
    folder: Path, pairs: Sequence[tuple[str, str]], samples: Sequence[AudioSample], items: Sequence[ItemResult]
) -> Path | None:
    """Write ``listen.html`` into ``folder`` and return its path; None if there is nothing to compare by ear.

    Args:
        folder: where it goes.
        pairs: names of two systems each.
        samples: what systems said, of the whole evaluation.
        items: the rows of ``results.jsonl``, for the texts.

    Raises:
        MissingRequirementError: ``jinja2`` is not installed.
    """
    trials = trials_of(pairs, samples)
    if not trials:
        return None
    heard = {(utterance, system) for utterance, *systems in trials for system in systems}
    clips = [sample for sample in samples if (sample.id, sample.system) in heard]
    number = {(clip.id, clip.system): index for index, clip in enumerate(clips)}
    texts = {item.id: item.text for item in items}
    data = {
        "report": fingerprint_of(samples),
        "clips": [clip.uri() for clip in clips],
        "trials": [
            {
                "utterance": utterance,
                "text": texts.get(utterance, utterance),
                "systems": [a, b],
                "clips": [number[utterance, a], number[utterance, b]],
            }
            for utterance, a, b in trials
        ],
    }
    view = {"data": data, "num_trials": len(trials)}
    styles = ("report.css", "listen.css")
    return write_page(folder / LISTENING_PAGE, "listen.html.j2", "Listening", view, styles=styles, script="listen.js")
