"""Open ``transformers`` checkpoints from a local folder: no network, no remote code, no pickle, no missing weights."""

from pathlib import Path
from typing import Any

from retort.errors import ConfigError, DataError, MissingRequirementError

_ONLY_FOR_TRAINING = ("masked_spec_embed",)
"""Weights that published speech checkpoints leave out because only masked pre-training reads them."""


def load_local(class_name: str, path: Path, *, weights: bool = True) -> Any:
    """Load ``transformers.<class_name>`` from the folder ``path``, in eval mode where it is a model.

    Args:
        class_name: a ``transformers`` class with ``from_pretrained``.
        path: folder as ``save_pretrained`` writes it.
        weights: whether the class holds weights (a model) or only files (a processor).

    Raises:
        ConfigError: the folder or a file in it is missing or unreadable.
        DataError: the checkpoint lacks weights of the model, which would then be random.
        MissingRequirementError: ``transformers`` is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingRequirementError("transformers is not installed; pip install 'transformers>=5'") from error
    if not (path / "config.json").is_file():
        raise ConfigError(f"{path}: holds no config.json; give the folder of a checkpoint saved by transformers")
    if weights and not any(path.glob("*.safetensors")):
        raise ConfigError(f"{path}: holds no .safetensors weights; convert the checkpoint, other formats are not read")
    loader = getattr(transformers, class_name)
    try:
        if not weights:
            return loader.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
        model, info = loader.from_pretrained(
            str(path), local_files_only=True, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ConfigError(f"{path}: cannot be opened as {class_name}: {error}") from error
    missing = [name for name in info["missing_keys"] if not name.endswith(_ONLY_FOR_TRAINING)]
    if missing:
        raise DataError(f"{path}: {len(missing)} weights are missing, first {missing[0]!r}; is it a {class_name}?")
    return model.float().eval()
