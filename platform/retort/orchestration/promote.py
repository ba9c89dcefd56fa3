"""Promotion: a model that passes the gate becomes the next version of a name in the registry, with its card."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from retort.data.tokens import TokenSet
from retort.errors import ConfigError, DataError, QualityGateError
from retort.evaluation.findings import AT_BEST
from retort.evaluation.items import read_results
from retort.evaluation.metrics import OBJECTIVES, labels_of, metrics_of
from retort.evaluation.model_card import card_text
from retort.evaluation.pareto import figures_of
from retort.evaluation.preference import DEFAULT_GATE, check_gate, choose, parse_gate, parse_preference
from retort.evaluation.results import read_summary
from retort.evaluation.temperatures import at_best
from retort.inference.decoding import Decoding, at_temperature
from retort.inference.opening import open_speaker
from retort.location import parse_location
from retort.orchestration.evaluate.kept import model_input
from retort.orchestration.tune.job import FRONT_FILE
from retort.store.artifact import Artifact, code_version, read_artifact
from retort.store.registry import Card, Registry, check_name
from retort.store.results import result_of


@dataclass(frozen=True)
class _Candidate:
    model: Path
    evaluation: Path
    system: Mapping[str, Any]
    """Its figures, as a system of ``summary.json``."""
    gate: str
    sweep: Mapping[str, Any] | None = None


def promote(
    source: Path,
    name: str,
    *,
    best: str | None = None,
    gate: str | None = None,
    evaluation: Path | None = None,
    system: str | None = None,
    registry: Path = Path("runs/registry"),
) -> dict[str, Any]:
    """Take a sweep's winner, or a trained model, through the gate into the registry.

    Args:
        source: output of a sweep, or of a training job.
        name: under which it is served.
        best: which trial of a sweep, such as ``wer<=0.2, fastest``.
        gate: constraints at the worse end of the 95 % intervals; None takes the sweep's, or the default.
        evaluation: the evaluation whose figures count; a sweep's trials have their own.
        system: its name there, where one model stands under several; ``NAME@best`` where the evaluation chose it a
            temperature of its own, at which it is then served.
        registry: folder of the registry.

    Returns the summary: name, version, where it is, and the gate's checks.

    Raises:
        ConfigError: the options do not fit the source.
        DataError: the source, or the evaluation, is missing or does not belong to it (another model lay at its path
            when it was judged); or the name is none.
        QualityGateError: the gate is not passed, or no trial satisfies ``best``; the registry stays as it was.
    """
    check_name(name)
    found = read_artifact(result_of(source))
    if found.info.kind == "sweep":
        candidate = _winner(source, found, best, gate, evaluation, system)
    elif found.info.kind == "model":
        candidate = _trained(source, found, best, gate, evaluation, system)
    else:
        raise ConfigError(f"{source} holds a result of kind {found.info.kind}, promote a sweep or a model")
    model, judged = read_artifact(result_of(candidate.model)), read_artifact(result_of(candidate.evaluation))
    system_name = str(candidate.system["name"])
    _refuse_other_model(candidate, model, judged)
    checks = check_gate(parse_gate(candidate.gate), candidate.system)
    if not all(check.passed for check in checks):
        failed = "; ".join(str(check) for check in checks if not check.passed)
        raise QualityGateError(f"{candidate.model} is not promoted: {failed}")
    tree = _card(name, candidate, model, judged, [str(check) for check in checks])
    card = Card(tree, card_text(tree))
    added = Registry(registry).add(name, model, card, evaluation=judged.fingerprint, system=system_name)
    return {
        "name": name,
        "version": int(added.info.version),
        "path": str(added.path),
        "model": str(candidate.model),
        **({"trial": candidate.sweep["number"]} if candidate.sweep else {}),
        "gate": "; ".join(str(check) for check in checks),
        "figures": figures_of(candidate.system),
    }


def _refuse_other_model(candidate: _Candidate, model: Artifact, judged: Artifact) -> None:
    """Another one may have lain at its path when it was judged; evaluations of old do not say."""
    system = str(candidate.system["name"])
    was = judged.info.inputs.get(model_input(system.removesuffix(AT_BEST)), model.fingerprint)
    if was != model.fingerprint:
        raise DataError(
            f"{candidate.evaluation} judged {was} as {system}, and {candidate.model} holds {model.fingerprint} now: "
            "its figures are another model's; evaluate it again"
        )


def _winner(
    source: Path, sweep: Artifact, best: str | None, gate: str | None, evaluation: Path | None, system: str | None
) -> _Candidate:
    if best is None:
        raise ConfigError(f"{source} is a sweep; say which trial, such as --best 'wer<=0.2, fastest'")
    tree = json.loads((sweep.path / FRONT_FILE).read_bytes())
    rows = [row for row in tree["trials"] if row["system"] is not None]
    row = rows[choose([figures_of(row["system"]) for row in rows], parse_preference(best))]
    folder = sweep.path.parent
    model = folder / row["model"]
    chosen = {"path": str(source), "number": row["number"], "parameters": row["parameters"], "best": best}
    if evaluation is None:
        judged_as = {**row["system"], "name": tree["system"]}
        return _Candidate(model, folder / row["evaluation"], judged_as, gate or tree["gate"], chosen)
    figures = _system(evaluation, model, system)
    return _Candidate(model, evaluation, figures, gate or tree["gate"], chosen)


def _trained(
    source: Path, model: Artifact, best: str | None, gate: str | None, evaluation: Path | None, system: str | None
) -> _Candidate:
    if best is not None:
        raise ConfigError(f"{source} is one model; --best chooses among the trials of a sweep")
    if evaluation is None:
        raise ConfigError(f"{source} is one model; name what judged it: --evaluation runs/demo/evaluation")
    return _Candidate(source, evaluation, _system(evaluation, model.path, system), gate or DEFAULT_GATE)


def _system(evaluation: Path, model: Path, name: str | None) -> Mapping[str, Any]:
    """The figures that an evaluation has of a model.

    Raises:
        DataError: it judged none, or several systems with it and ``name`` is none of them.
    """
    names = [tree["name"] for tree in _systems_with(evaluation, model)]
    unasked = [known for known in names if not known.endswith(AT_BEST)]
    if name is not None and name not in names:
        raise DataError(
            f"{evaluation} has no system {name!r} with the model {model}; it has {', '.join(names) or 'none'}"
        )
    if len(unasked) != 1 and name is None:
        cure = "evaluate it first" if not names else f"choose one with --system: {', '.join(names)}"
        raise DataError(f"{evaluation} judged {len(unasked)} systems with the model {model}; {cure}")
    summary = read_summary(result_of(evaluation) / "summary.json")
    figures: Mapping[str, Any] = next(s for s in summary["systems"] if s["name"] == (name or unasked[0]))
    return figures


def _systems_with(evaluation: Path, model: Path) -> list[dict[str, Any]]:
    """Configurations of an evaluation's systems that speak with ``model``; behind them, the same at their best."""
    config: Any = read_artifact(result_of(evaluation), verify=False).info.config
    found = []
    for tree in config["systems"]:
        try:
            if tree["model"] is not None and result_of(parse_location(tree["model"])).samefile(result_of(model)):
                found.append(tree)
        except DataError:
            continue  # another system's model is gone
    chosen = read_summary(result_of(evaluation) / "summary.json").get("temperatures") or {"best": {}}
    best: Mapping[str, float] = chosen["best"]
    return [*found, *(_at_best(tree, model, best[tree["name"]]) for tree in found if tree["name"] in best)]


def _at_best(tree: Mapping[str, Any], model: Path, temperature: float) -> dict[str, Any]:
    """A system's configuration at the temperature that was chosen for it."""
    wanted = TypeAdapter[Decoding | None](Decoding | None).validate_python(tree.get("decoding"))
    served = at_temperature(open_speaker(model).decoding(wanted), temperature).model_dump(mode="json")
    return {**tree, "name": at_best(tree["name"]), "decoding": served}


def _card(name: str, candidate: _Candidate, model: Artifact, judged: Artifact, checks: list[str]) -> dict[str, Any]:
    facts = open_speaker(model.path).facts
    lineage = facts.lineage.model_dump(mode="json")
    figures = {
        key: {"value": candidate.system.get(metric.field), "ci95": candidate.system.get(metric.interval or "")}
        for key, metric in metrics_of(labels_of(candidate.system), OBJECTIVES).items()
    }
    rows = read_results(judged.path / "results.jsonl")
    said = _systems_with(judged.path, model.path)
    spoken = next((t for t in said if t["name"] == candidate.system.get("name")), said[0] if said else {})
    return {
        "name": name,
        "model": {"fingerprint": facts.fingerprint, "parameters": facts.parameters, **lineage},
        "figures": figures,
        "utterances": candidate.system.get("utterances"),
        "note": read_summary(judged.path / "summary.json").get("note"),
        "scorers": sorted({scorer for row in rows for scorer in row.scorers}),
        "gate": checks,
        "sweep": candidate.sweep,
        "evaluation": str(candidate.evaluation),
        "serving": {
            "decoding": spoken.get("decoding"),
            "part_characters": _longest_text(model.info.config.get("data")),
        },
        "retort": code_version(),
    }


def _longest_text(data: Any) -> int | None:
    """Characters of the longest training text: what is said in one go when it is served. None if the data are gone."""
    try:
        texts = TokenSet.open(result_of(parse_location(str(data)))).split("train").column("text")
    except DataError:
        return None
    return max(map(len, texts), default=None)
