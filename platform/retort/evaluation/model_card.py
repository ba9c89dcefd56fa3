"""A model card in words: what the model is, how it was judged, and what it must not be compared with."""

from collections.abc import Iterator, Mapping
from typing import Any

from retort.evaluation.metrics import METRICS, find_metric


def card_text(card: Mapping[str, Any]) -> str:
    """Markdown of a card.

    Args:
        card: the tree of ``card.json``; see :func:`retort.orchestration.promote.promote`.
    """
    return "\n".join(_lines(card)) + "\n"


def _lines(card: Mapping[str, Any]) -> Iterator[str]:
    yield f"# {_plain(card['name'])}"
    yield ""
    if card["note"]:
        yield f"> {_plain(card['note'])}"
        yield ""
    yield "## Model"
    yield ""
    yield from _table(("", ""), [(name, value) for name, value in card["model"].items() if value not in (None, [], ())])
    yield ""
    yield f"## Figures on {card['utterances']} utterances"
    yield ""
    rows = [
        (find_metric(name, METRICS).label, _figure(name, f["value"]), _span(name, f))
        for name, f in card["figures"].items()
    ]
    yield from _table(("figure", "value", "95 % interval"), rows)
    yield ""
    yield f"Scored by {_plain(', '.join(card['scorers']))}. Evaluation: `{card['evaluation']}`."
    yield ""
    yield "## Gate"
    yield ""
    yield from (f"- {_plain(line)}" for line in card["gate"])
    if card["sweep"] is not None:
        yield ""
        yield "## Where it comes from"
        yield ""
        number, path, best = (card["sweep"][key] for key in ("number", "path", "best"))
        yield f'Trial {number} of the sweep `{path}`, chosen by "{best}".'
        yield ""
        yield from _table(("setting", "value"), list(card["sweep"]["parameters"].items()))
    yield ""
    yield f"Made with retort {card['retort']}."


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(_plain(cell) for cell in row) + " |"


def _figure(name: str, value: float | None) -> str:
    return "not measured" if value is None else find_metric(name, METRICS).text(value)


def _span(name: str, figure: Mapping[str, Any]) -> str:
    """The interval; what has none because of too few utterances says so."""
    interval = figure["ci95"]
    if interval is not None:
        return " to ".join(find_metric(name, METRICS).text(end) for end in interval)
    return "n too small" if find_metric(name, METRICS).is_of_items and figure["value"] is not None else ""


def _plain(value: Any) -> str:
    """One line of text that cannot end a table's cell."""
    return " ".join(str(value).split()).replace("|", "\\|")
