"""Every system's figures apart for voices that training rows have, and for those that only held-out rows have."""

from collections.abc import Collection, Sequence
from typing import Any

from retort.evaluation.items import ItemResult
from retort.evaluation.metrics import labels_of, metrics_of
from retort.evaluation.results import BootstrapConfig, SystemInfo, summarise

SEEN, UNSEEN = "seen", "unseen"


def by_voices(
    items: Sequence[ItemResult], systems: Sequence[SystemInfo], trained: Collection[str], bootstrap: BootstrapConfig
) -> tuple[dict[str, Any], ...]:
    """Rows of ``voices`` in ``summary.json``: each system's metrics of quality, seen voices first.

    Args:
        items: rows of all systems, missing ones included.
        systems: in the order of the tables.
        trained: speakers of the training rows.
        bootstrap: how intervals are drawn.

    Returns:
        A row for each system and kind of voice; nothing where all voices asked for are of one kind.
    """
    kinds = {
        SEEN: [item for item in items if item.speaker in trained],
        UNSEEN: [item for item in items if item.speaker is not None and item.speaker not in trained],
    }
    if not all(kinds.values()):
        return ()
    found = {kind: summarise(rows, systems, bootstrap=bootstrap).systems for kind, rows in kinds.items()}
    return tuple(
        _row(kind, figures)
        for both in zip(*found.values(), strict=True)
        for kind, figures in zip(found, both, strict=True)
    )


def _row(kind: str, figures: dict[str, Any]) -> dict[str, Any]:
    told = [m for m in metrics_of(labels_of(figures)).values() if m.is_of_items and m.table == "quality"]
    keys = [key for metric in told for key in (metric.field, metric.interval) if key is not None]
    return {
        "system": figures["name"],
        "voices": kind,
        "utterances": figures["utterances"],
        **{key: figures[key] for key in keys if figures[key] is not None},
    }
