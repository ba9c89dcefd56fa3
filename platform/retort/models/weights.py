"""Model folders: ``config.json`` and ``model.safetensors``, and what the model was made from.

A student carries the guidance it was distilled at, and refuses to be guided again.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from retort.config import Config, validate
from retort.errors import ConfigError, DataError
from retort.models.codec_lm import CodecLM, CodecLMConfig
from retort.nn.guidance import Guidance, GuidanceConfig

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


class Lineage(Config):
    """What a model's weights stand for."""

    method: Literal["pretrain", "cfg_distill", "multilevel_distill", "layer_pruning", "fine_tune", "import"]
    """``layer_pruning`` is a pruned model that was not trained; ``fine_tune`` is cross-entropy without a teacher."""
    codec_fingerprint: str
    text_fingerprint: str
    teacher_fingerprint: str | None = None
    """Of the teacher that it was distilled from."""
    distilled_at: GuidanceConfig | None = None
    """The guidance that is baked in; None for a model that may be guided."""
    trained_drops: tuple[Literal["no_text", "no_speaker", "null"], ...] = ()
    """Null conditions that were seen in training, without which guidance against them is not valid."""
    kept_layers: tuple[int, ...] | None = None
    """The teacher's layers that it was copied from, where a choice among them was made."""
    selected_by: str | None = None
    """Name of the recogniser that the choice of layers was made with, which should not be the one that judges it."""


class SavedModel(Config):
    """Contents of ``config.json``."""

    model: CodecLMConfig
    lineage: Lineage


@dataclass(frozen=True)
class LoadedModel:
    """A model with its lineage and fingerprint (SHA-256 over configuration and weights)."""

    model: CodecLM
    lineage: Lineage
    fingerprint: str

    def check_guidance(self, guidance: Guidance) -> None:
        """Refuse guidance that is not valid for this model.

        Raises:
            ConfigError: a distilled student would be guided twice, or a null condition was never trained.
        """
        if not guidance.is_guided:
            return
        if self.lineage.distilled_at is not None:
            baked = self.lineage.distilled_at.model_dump_json()
            raise ConfigError(f"this student has guidance baked in ({baked}); guiding it again would guide twice")
        untrained = [c for c in guidance.conditions if c != "full" and c not in self.lineage.trained_drops]
        if untrained:
            raise ConfigError(
                f"guidance against {', '.join(untrained)} needs a model trained with those drops; "
                f"this one saw {', '.join(self.lineage.trained_drops) or 'none'} (data.drop_* in its run file)"
            )


def save_model(folder: Path, model: CodecLM, lineage: Lineage) -> None:
    """Write ``config.json`` and ``model.safetensors`` (fp32)."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    saved = SavedModel(model=model.config, lineage=lineage)
    (folder / CONFIG_FILE).write_text(saved.model_dump_json(indent=2) + "\n")
    save_file({k: v.detach().float().cpu().contiguous() for k, v in model.state_dict().items()}, folder / WEIGHTS_FILE)


def load_model(folder: Path) -> LoadedModel:
    """Load a model folder in fp32 and evaluation mode.

    Raises:
        DataError: the folder is not a model, or its weights do not fit its configuration.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / CONFIG_FILE).is_file() or not (folder / WEIGHTS_FILE).is_file():
        raise DataError(
            f"{folder} is not a model: it needs {CONFIG_FILE} and {WEIGHTS_FILE}; train one or fix the path"
        )
    text = (folder / CONFIG_FILE).read_text()
    try:
        saved = validate(json.loads(text), SavedModel, where=str(folder / CONFIG_FILE))
        weights = load_file(folder / WEIGHTS_FILE)
        model = CodecLM(saved.model)
        model.load_state_dict(weights)
    except (ConfigError, json.JSONDecodeError, SafetensorError, RuntimeError) as error:
        raise DataError(f"{folder}: not a usable model: {error}") from error
    return LoadedModel(model.eval(), saved.lineage, fingerprint_of(model))


def fingerprint_of(model: CodecLM) -> str:
    """Content hash of a model: its configuration and fp32 weights."""
    digest = hashlib.sha256(model.config.model_dump_json().encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return f"codec_lm-{digest.hexdigest()[:16]}"
