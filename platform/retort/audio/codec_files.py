"""What codecs share: their folder and its checks.

The folder holds ``config.json`` and ``model.safetensors``; the latter carries the fingerprint of both.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retort.config import Config
from retort.errors import DataError
from retort.tensors import check_shapes, check_values

CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"
CURE = "fit or import the codec again, or copy its folder again from where it was made"


def fingerprint_of(kind: str, identity: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    """``kind-`` and 16 hex digits of the SHA-256 over the identity (JSON values) and the weights."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"{kind}-{digest.hexdigest()[:16]}"


def write_codec_folder(folder: Path, config: Config, weights: Mapping[str, Tensor], fingerprint: str) -> None:
    """Write both files; the config comes last, so that a folder cut short does not open."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
    save_file(tensors, folder / WEIGHTS_NAME, metadata={"fingerprint": fingerprint})
    (folder / CONFIG_NAME).write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_codec_weights(folder: Path) -> tuple[dict[str, Tensor], str]:
    """Weights of a saved codec and the fingerprint that they were saved under.

    Raises:
        DataError: the file is missing or is not whole.
    """
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        raise DataError(f"{path}: no such file, so {folder} is not a whole codec; {CURE}")
    weights, metadata = read_safetensors(path)
    return weights, metadata.get("fingerprint", "no fingerprint")


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, and the metadata.

    Raises:
        DataError: the file is not whole.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as stored:
            weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a mapping)
            return weights, stored.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: damaged: {error}; {CURE}") from error


def check_weights(where: Path, weights: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Compare names and shapes of weights with what a config asks for, and look whether they are numbers.

    Raises:
        DataError: names or shapes differ, or a value is NaN or infinite; the first few are named.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    check_shapes(f"{where}: the weights do not fit", shapes, expected, cure=CURE)
    check_values(f"{where}: the weights are no numbers", weights, cure=CURE)


def check_fingerprint(where: Path, saved: str, found: str) -> None:
    """Compare the fingerprint in the file with that of its content.

    Raises:
        DataError: they differ, so the weights or the config were changed since.
    """
    if saved != found:
        raise DataError(
            f"{where}: the codec was saved as {saved}, the content is {found}: changed or damaged since; {CURE}"
        )


def check_codes(codes_KT: Tensor, num_codebooks: int, codebook_size: int, fingerprint: str) -> None:
    """Check that codes are within a codec's codebooks; the first few codebooks alone are fine.

    Raises:
        DataError: they are not.
    """
    if codes_KT.numel():
        low, high = int(codes_KT.min()), int(codes_KT.max())
    else:
        low = high = 0
    if codes_KT.dim() != 2 or not 0 < len(codes_KT) <= num_codebooks or low < 0 or high >= codebook_size:
        raise DataError(
            f"codes of shape {tuple(codes_KT.shape)} from {low} to {high} do not fit {num_codebooks} codebooks of "
            f"{codebook_size} entries; decode with the codec that encoded them, this one is {fingerprint}"
        )
