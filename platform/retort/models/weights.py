"""Model folders: ``config.json`` and ``model.safetensors``, of whatever family.

A family is a configuration, a module and a lineage. A new one is added to the unions, with a function that loads
it, and nowhere else in this file.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import torch
from pydantic import Discriminator, Tag, TypeAdapter

from retort.config import Config, validate
from retort.config_faults import UNKNOWN_BRANCH
from retort.errors import ConfigError, DataError
from retort.models.codec_lm import CodecLM, CodecLMConfig
from retort.models.codec_lm_lineage import CodecLMLineage
from retort.models.mel_diffusion import MelDiffusion, MelDiffusionConfig
from retort.models.mel_lineage import MelDiffusionLineage
from retort.models.vocoder import Vocoder, VocoderConfig
from retort.models.vocoder_lineage import VocoderLineage
from retort.models.zero_shot.config import ZeroShotConfig
from retort.models.zero_shot.model import ZeroShot
from retort.models.zero_shot_lineage import ZeroShotLineage
from retort.tensors import check_shapes, check_values

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
_CURE = "restore the folder that `retort pretrain`, `distill`, `prune` or `import` wrote, or make it again"

M = TypeVar("M", CodecLM, MelDiffusion, ZeroShot, Vocoder)
L = TypeVar("L", bound=Config)


@dataclass(frozen=True)
class LoadedModel(Generic[M, L]):
    """A model with its lineage and fingerprint (SHA-256 over configuration and weights)."""

    model: M
    lineage: L
    fingerprint: str


class SavedCodecLM(Config):
    """Contents of ``config.json`` of a codec language model."""

    model: CodecLMConfig
    lineage: CodecLMLineage


class SavedMelDiffusion(Config):
    """Contents of ``config.json`` of a denoiser of mels."""

    model: MelDiffusionConfig
    lineage: MelDiffusionLineage


class SavedZeroShot(Config):
    """Contents of ``config.json`` of a zero-shot model."""

    model: ZeroShotConfig
    lineage: ZeroShotLineage


class SavedVocoder(Config):
    """Contents of ``config.json`` of a vocoder."""

    model: VocoderConfig
    lineage: VocoderLineage


LoadedCodecLM = LoadedModel[CodecLM, CodecLMLineage]
LoadedMelDiffusion = LoadedModel[MelDiffusion, MelDiffusionLineage]
LoadedVocoder = LoadedModel[Vocoder, VocoderLineage]
LoadedZeroShot = LoadedModel[ZeroShot, ZeroShotLineage]


def family_of(saved: Any) -> str:
    """The ``type`` of a model's configuration, in a tree or an object; models older than families are codec LMs."""
    model = saved.get("model") if isinstance(saved, Mapping) else saved.model
    found = model.get("type", "codec_lm") if isinstance(model, Mapping) else getattr(model, "type", "codec_lm")
    return str(found)


# The families: what is built, what is written, what is read.
Model = CodecLM | MelDiffusion | ZeroShot | Vocoder
Lineage = CodecLMLineage | MelDiffusionLineage | ZeroShotLineage
"""Of what can speak."""
AnySaved = SavedCodecLM | SavedMelDiffusion | SavedZeroShot | SavedVocoder
SavedModel = Annotated[
    Annotated[SavedCodecLM, Tag("codec_lm")]
    | Annotated[SavedMelDiffusion, Tag("mel_diffusion")]
    | Annotated[SavedZeroShot, Tag("zero_shot")]
    | Annotated[SavedVocoder, Tag("vocoder")],
    Discriminator(
        family_of,
        custom_error_type=UNKNOWN_BRANCH,
        custom_error_message=(
            "model.type: unknown family of models; it is one of codec_lm, mel_diffusion, zero_shot, vocoder"
        ),
    ),
]


def save_model(folder: Path, model: Model, lineage: Lineage | VocoderLineage) -> None:
    """Write ``config.json`` and ``model.safetensors`` (fp32); the lineage must be of the model's family.

    Raises:
        DataError: a weight is NaN or infinite; it is named, and nothing is written.
    """
    from safetensors.torch import save_file

    weights = {name: tensor.detach().float().cpu().contiguous() for name, tensor in model.state_dict().items()}
    check_values("the model is not written: its weights are no numbers", weights, cure="look at what it was made of")
    folder.mkdir(parents=True, exist_ok=True)
    family: TypeAdapter[Config] = TypeAdapter(SavedModel)
    saved = family.validate_python({"model": model.config, "lineage": lineage})
    (folder / CONFIG_FILE).write_text(saved.model_dump_json(indent=2) + "\n")
    save_file(weights, folder / WEIGHTS_FILE)


def load_codec_lm(folder: Path) -> LoadedCodecLM:
    """Load a model folder that must hold a codec language model, in fp32 and evaluation mode.

    Raises:
        ConfigError: it holds a model of another family, which is named.
        DataError: as :func:`read_saved`, or its weights do not fit its configuration or are no numbers.
    """
    match read_saved(folder):
        case SavedCodecLM() as saved:
            return _loaded(folder, CodecLM(saved.model), saved.lineage)
        case saved:
            raise ConfigError(
                f"{folder} is a model of the family {saved.model.type}, and a codec_lm is needed here; "
                "give the folder of a model that `retort pretrain`, `distill`, `prune` or `import` made of codec tokens"
            )


def load_mel_diffusion(folder: Path) -> LoadedMelDiffusion:
    """Load a model folder that must hold a denoiser of mels, in fp32 and evaluation mode.

    Raises:
        ConfigError: it holds a model of another family, which is named.
        DataError: as :func:`read_saved`, or its weights do not fit its configuration or are no numbers.
    """
    match read_saved(folder):
        case SavedMelDiffusion() as saved:
            return _loaded(folder, MelDiffusion(saved.model), saved.lineage)
        case saved:
            raise ConfigError(
                f"{folder} is a model of the family {saved.model.type}, and a mel_diffusion is needed here; "
                "give the folder of a denoiser that `retort pretrain` or `distill` made of a mel set"
            )


def load_vocoder(folder: Path) -> LoadedVocoder:
    """Load a model folder that must hold a vocoder, in fp32 and evaluation mode.

    Raises:
        ConfigError: it holds a model of another family, which is named.
        DataError: as :func:`read_saved`, or its weights do not fit its configuration or are no numbers.
    """
    match read_saved(folder):
        case SavedVocoder() as saved:
            return _loaded(folder, Vocoder(saved.model), saved.lineage)
        case saved:
            raise ConfigError(
                f"{folder} is a model of the family {saved.model.type}, and a vocoder is needed here; "
                "give the folder of one that `retort pretrain` made of recordings (family: vocoder)"
            )


def load_zero_shot(folder: Path) -> LoadedZeroShot:
    """Load a model folder that must hold a zero-shot model, in fp32 and evaluation mode.

    Raises:
        ConfigError: it holds a model of another family, which is named.
        DataError: as :func:`read_saved`, or its weights do not fit its configuration or are no numbers.
    """
    match read_saved(folder):
        case SavedZeroShot() as saved:
            return _loaded(folder, ZeroShot(saved.model), saved.lineage)
        case saved:
            raise ConfigError(
                f"{folder} is a model of the family {saved.model.type}, and a zero_shot is needed here; "
                "give the folder of a model that `retort pretrain` or `distill` made of phone mels"
            )


def read_saved(folder: Path) -> AnySaved:
    """The ``config.json`` of a model folder, by whose type families are told apart.

    Raises:
        DataError: the folder is not a model, or its family is not known.
    """
    try:
        saved: AnySaved = validate(
            _config_tree(folder),
            SavedModel,  # type: ignore[arg-type]
            where=str(folder / CONFIG_FILE),
        )
    except ConfigError as error:
        raise DataError(f"{folder}: not a usable model: {error}") from error
    return saved


def _loaded(folder: Path, model: M, lineage: L) -> LoadedModel[M, L]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(folder / WEIGHTS_FILE)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{folder}: not a usable model: {WEIGHTS_FILE} is damaged: {error}; {_CURE}") from error
    found, expected = ({name: tuple(t.shape) for name, t in tree.items()} for tree in (weights, model.state_dict()))
    where = f"{folder}: not a usable model"
    check_shapes(f"{where}: the weights do not fit {CONFIG_FILE}", found, expected, cure=_CURE)
    check_values(f"{where}: the weights are no numbers", weights, cure=_CURE)
    model.load_state_dict(weights)
    return LoadedModel(model.eval(), lineage, fingerprint_of(model))


def fingerprint_of(model: Model) -> str:
    """Content hash of a model: its configuration and fp32 weights."""
    digest = hashlib.sha256(model.config.model_dump_json().encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return f"{model.config.type}-{digest.hexdigest()[:16]}"


def _config_tree(folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG_FILE).is_file() or not (folder / WEIGHTS_FILE).is_file():
        raise DataError(
            f"{folder} is not a model: it needs {CONFIG_FILE} and {WEIGHTS_FILE}; train one or fix the path"
        )
    try:
        tree = json.loads((folder / CONFIG_FILE).read_text())
    except json.JSONDecodeError as error:
        raise DataError(f"{folder}: not a usable model: {error}") from error
    if not isinstance(tree, dict):
        raise DataError(f"{folder}: not a usable model: {CONFIG_FILE} is no mapping")
    return tree
