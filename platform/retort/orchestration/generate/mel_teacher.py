"""A denoiser opened as the teacher of a mel set."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from retort.config import Config, validate
from retort.errors import ConfigError, DataError
from retort.models.mel_diffusion import MelDiffusion, MelDiffusionConfig
from retort.models.mel_lineage import MelDiffusionLineage
from retort.models.weights import CONFIG_FILE, WEIGHTS_FILE


class SavedMelDiffusion(Config):
    """Contents of ``config.json``."""

    model: MelDiffusionConfig
    lineage: MelDiffusionLineage


@dataclass(frozen=True)
class MelTeacher:
    """A denoiser in evaluation mode with its lineage and fingerprint."""

    model: MelDiffusion
    lineage: MelDiffusionLineage
    fingerprint: str


def open_mel_teacher(folder: Path) -> MelTeacher:
    """Load a denoiser's folder.

    Raises:
        DataError: it is not one, or its weights do not fit its configuration.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config, weights = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    if not config.is_file() or not weights.is_file():
        raise DataError(f"{folder} is not a denoiser: it needs {CONFIG_FILE} and {WEIGHTS_FILE}; train one first")
    try:
        saved = validate(json.loads(config.read_text()), SavedMelDiffusion, where=str(config))
        model = MelDiffusion(saved.model)
        model.load_state_dict(load_file(weights))
    except (ConfigError, json.JSONDecodeError, SafetensorError, RuntimeError) as error:
        raise DataError(f"{folder}: not a usable denoiser: {error}") from error
    digest = hashlib.sha256(saved.model.model_dump_json().encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.float().contiguous().view(torch.uint8).numpy().tobytes())
    return MelTeacher(model.eval(), saved.lineage, f"mel_diffusion-{digest.hexdigest()[:16]}")
