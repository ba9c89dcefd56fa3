"""What an evaluation keeps of the systems that are judged, and what of it is still right when it goes on.

A run may go on with another file than it was cut short with, and a finished one with more systems: what was judged
under another seed, with another model or by another recogniser must not get between.
"""

import hashlib
import json
import re
from pathlib import Path

from retort.evaluation.prosody import MEASURES
from retort.inference.black_box.opening import facts_of
from retort.run_config import EvaluateConfig, SystemConfig
from retort.store.artifact import read_artifact
from retort.store.commit import write_json_atomic
from retort.store.file_names import file_name
from retort.store.place import drop, push

_JUDGED = "judged.json"
_DECIDES = {
    "split", "num_strings", "speaker_encoder", "naturalness", "naturalness_strings", "prosody", "stability",
    "max_frames", "batch_size", "precision", "seed", "num_samples",
}  # fmt: skip


def drop_what_changed(folder: Path, config: EvaluateConfig) -> None:
    """Remove the pieces and sounds of systems that were judged otherwise, and note what the others are judged under.

    Args:
        folder: of the pieces; ``judged.json`` in it has a key for each system.
        config: with its inputs as committed folders of this node.
    """
    keys = {system.name: _key(config, system) for system in config.systems}
    path = folder / _JUDGED
    if folder.is_dir() and not path.is_file():  # nobody knows under what it was judged
        drop(folder)
    before = json.loads(path.read_bytes()) if path.is_file() else {}
    for name in [name for name, key in before.items() if keys.get(name) != key]:
        pieces, sounds = re.escape(file_name(name)), re.escape(name)
        own = re.compile(rf"{pieces}-\d+\.(jsonl|mels\.safetensors)|{sounds}--.+\.wav")
        for file in [file for file in folder.rglob("*") if own.fullmatch(file.name)]:
            drop(file)
    folder.mkdir(parents=True, exist_ok=True)
    write_json_atomic(path, keys)
    push(path)


def model_input(system: str) -> str:
    """Among the inputs of an evaluation, the model of a system."""
    return f"model of {system}"


def models_of(config: EvaluateConfig) -> dict[str, str]:
    """What is judged: the fingerprint of each system's model, since another may lie at its path later.

    Args:
        config: with its inputs as committed folders of this node.
    """
    models = {system.name: system.model for system in config.systems if system.model is not None}
    return {model_input(name): read_artifact(path, verify=False).fingerprint for name, path in models.items()}


def _key(config: EvaluateConfig, system: SystemConfig) -> str:
    """Names all that decides what a system's pieces hold."""
    told = {
        **config.model_dump(mode="json", include=_DECIDES),
        "listening": [recogniser.model_dump(mode="json") for recogniser in config.listening],
        "system": {key: value for key, value in system.said_by.items() if key != "model"},
        "model": None if system.model is None else read_artifact(system.model, verify=False).fingerprint,
        "teacher": None if system.teacher is None else facts_of(system.teacher).fingerprint,
        "data": read_artifact(config.data, verify=False).fingerprint,
        "mels": config.mel_reference is not None,
    }
    if config.prosody is not None:  # what an earlier version did not measure is measured now
        told["prosody_measures"] = MEASURES
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
