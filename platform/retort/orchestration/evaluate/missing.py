"""Strings without a sound: failures in every table, and beyond a stated share the end of the job."""

from collections.abc import Mapping
from typing import Any

from retort.errors import DataError
from retort.run_config import EvaluateConfig
from retort.store.artifact import Artifact
from retort.store.place import shipped

_REASONS = ("missing", "error")


def missing_of(summary: Mapping[str, Any]) -> dict[str, list[int]]:
    """Of each system that did not deliver everything: how many strings have no sound, of how many."""
    missing = {
        system["name"]: [sum(system["failures"].get(reason, 0) for reason in _REASONS), system["utterances"]]
        for system in summary["systems"]
    }
    return {name: counts for name, counts in missing.items() if counts[0]}


def refuse_missing(evaluation: Artifact, config: EvaluateConfig) -> None:
    """Say that an evaluation is written, but of fewer sounds than it may be.

    Raises:
        DataError: names the systems, how much is missing, the report, and the cure.
    """
    # Evaluations from before this was recorded have no such figure.
    found: Any = evaluation.info.metrics.get("missing", {})
    told = [
        f"{name} {count} of {among}"
        for name, (count, among) in found.items()
        if count > config.max_missing_fraction * among
    ]
    if told:
        raise DataError(
            f"no sound was delivered for some strings ({'; '.join(told)}), more than max_missing_fraction "
            f"{config.max_missing_fraction:g} allows; each is a failure in {shipped(evaluation.path)}/report.html, "
            "which is written. Mend the recordings or the model, or raise max_missing_fraction"
        )
