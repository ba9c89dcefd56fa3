"""Which recognisers had a part in making a model: who chose its layers, filtered its data, judged its trial."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from retort.config import load_tree
from retort.errors import RetortError
from retort.evaluation.asr import RecogniserConfig, recogniser_name
from retort.location import parse_location
from retort.models.codec_lm_lineage import CodecLMLineage
from retort.models.mel_lineage import MelDiffusionLineage
from retort.models.weights import Lineage
from retort.models.zero_shot_lineage import ZeroShotLineage
from retort.run_config.tune import TRIALS
from retort.store.artifact import ARTIFACT_FILE, read_artifact
from retort.store.results import result_of

_RECOGNISER: TypeAdapter[Any] = TypeAdapter(RecogniserConfig)
_AND = " and "


def listeners_of(model: Path, lineage: Lineage) -> dict[str, str]:
    """Names of recognisers, and what each did for the model in this folder, as far as the records are still there."""
    found: dict[str, str] = {}
    match lineage:
        case CodecLMLineage(selected_by=str(name)):
            found = with_part(found, name, "chose the layers")
        case CodecLMLineage() | MelDiffusionLineage() | ZeroShotLineage():
            pass
    for name in _filtered(model):
        found = with_part(found, name, "filtered the data")
    for name in _swept(model):
        found = with_part(found, name, "judged the sweep")
    return found


def with_part(parts: Mapping[str, str], name: str, part: str) -> dict[str, str]:
    """``parts``, and that the recogniser of this name did this too, each thing once."""
    before = parts[name].split(_AND) if name in parts else []
    return {**parts, name: _AND.join(dict.fromkeys([*before, part]))}


def _filtered(model: Path) -> Iterator[str]:
    """Those that filtered synthetic data that the model was trained on."""
    if not (model / ARTIFACT_FILE).is_file():
        return
    for place in _texts(read_artifact(model, verify=False).info.config):
        try:
            config: Any = read_artifact(result_of(parse_location(place)), verify=False).info.config
        except (RetortError, OSError, ValueError):
            continue  # no place, or what was there is gone
        for key in ("filters", "source"):  # of tokens, and of mels
            filters = config.get(key) or {}
            filters = filters.get("filters", filters) if isinstance(filters, Mapping) else {}
            yield from _names([filters.get("recogniser")])


def _swept(model: Path) -> Iterator[str]:
    """Those that judged the trials of the sweep that made the model."""
    for folder in model.resolve().parents:
        if folder.name == TRIALS and (folder.parent / "run.yaml").is_file():
            tree: Any = load_tree(folder.parent / "run.yaml")
            evaluation = (tree.get("trial") or [{}])[-1]
            yield from _names([evaluation.get("recogniser"), *(evaluation.get("recognisers") or [])])


def _names(trees: list[Any]) -> Iterator[str]:
    for tree in trees:
        try:
            if tree is not None:
                yield recogniser_name(_RECOGNISER.validate_json(json.dumps(tree)))
        except (ValidationError, RetortError):
            continue  # it cannot judge here: its folder or its wheel is gone


def _texts(tree: Any) -> Iterator[str]:
    if isinstance(tree, str) and tree:
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from _texts(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _texts(value)
