"""``outside/`` in a model folder: what an imported model keeps of its checkpoint, so that it can be written back.

It goes along with every student: ``outside.json`` (the original configuration and number format), the output rows of
text if the checkpoint had its own, and the small files that ``transformers`` wants beside the weights.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from pydantic import JsonValue
from torch import Tensor

from retort.config import Config, read_record
from retort.errors import ConfigError, DataError
from retort.models.outside.checkpoint import Checkpoint
from retort.tensors import check_values

FOLDER = "outside"
_DECLARATION, _WEIGHTS, _FILES = "outside.json", "rest.safetensors", "files"
_CARRIED = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_CURE = "restore it, or import the checkpoint again"
NumberFormat = Literal["float32", "bfloat16", "float16"]
DTYPES: Mapping[NumberFormat, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class Outside(Config):
    """Contents of ``outside.json``."""

    checkpoint: str
    """Fingerprint of what was imported."""
    number_format: NumberFormat
    config: dict[str, JsonValue]
    """The original ``config.json``."""


def write_outside(folder: Path, checkpoint: Checkpoint, fingerprint: str, rest: Mapping[str, Tensor]) -> None:
    """Write ``outside/`` into a model folder; ``rest`` is what ``translate`` put aside."""
    from safetensors.torch import save_file

    (folder / FOLDER / _FILES).mkdir(parents=True)
    number_format = next(name for name, dtype in DTYPES.items() if dtype == checkpoint.dtype)
    declared = Outside(checkpoint=fingerprint, number_format=number_format, config=dict(checkpoint.config))
    (folder / FOLDER / _DECLARATION).write_text(declared.model_dump_json(indent=2) + "\n", encoding="utf-8")
    save_file({name: t.to(checkpoint.dtype).contiguous() for name, t in rest.items()}, folder / FOLDER / _WEIGHTS)
    for name in _CARRIED:
        if (checkpoint.folder / name).is_file():
            shutil.copyfile(checkpoint.folder / name, folder / FOLDER / _FILES / name)


def carry_outside(source: Path, target: Path) -> None:
    """Copy ``outside/`` from a teacher's folder into its student's, if the teacher was imported."""
    if (source / FOLDER).is_dir():
        shutil.copytree(source / FOLDER, target / FOLDER)


def read_outside(folder: Path) -> tuple[Outside, dict[str, Tensor]]:
    """The declaration and the kept weights, in fp32.

    Raises:
        ConfigError: the model was not imported, nor was its teacher.
        DataError: a file is damaged, or a weight is NaN or infinite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / FOLDER / _DECLARATION
    if not path.is_file():
        raise ConfigError(
            f"{folder} was not made from an imported checkpoint (no {FOLDER}/{_DECLARATION}), so there is no layout to "
            "write it back in; export models that `retort import` made, or students of them"
        )
    declared = read_record(path, Outside, cure=_CURE)
    try:
        rest = {name: tensor.float() for name, tensor in load_file(folder / FOLDER / _WEIGHTS).items()}
    except (SafetensorError, OSError) as error:
        raise DataError(f"{folder / FOLDER}: damaged: {error}; {_CURE}") from error
    check_values(f"{folder / FOLDER / _WEIGHTS}: the weights are no numbers", rest, cure=_CURE)
    return declared, rest


def copy_files(folder: Path, target: Path) -> None:
    """Copy the small files of the original checkpoint from a model folder to an exported one."""
    for path in sorted((folder / FOLDER / _FILES).iterdir()):
        shutil.copyfile(path, target / path.name)
