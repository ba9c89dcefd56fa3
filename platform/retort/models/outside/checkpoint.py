"""A checkpoint folder in Hugging Face layout: ``config.json`` and safetensors, in one file or in shards.

Only JSON and safetensors are read. Pickled weights (``.bin``, ``.pt``) are never opened, and Python files that lie in
the folder are never imported.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retort.errors import DataError
from retort.tensors import check_shapes, check_values

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
INDEX_FILE = WEIGHTS_FILE + ".index.json"
FORMATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_COPY = "copy the folder again from where it came, whole"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_ADAPTER = re.compile(
    r"adapter_config\.json|(adapters?([_.-].*)?|.*lora.*)\.(safetensors|bin|pt|pth|npz)", re.IGNORECASE
)
"""As PEFT, MLX and diffusers call them."""
_BUFFER = ".rotary_emb.inv_freq"
"""Old checkpoints store this table, which follows from the configuration."""


@dataclass(frozen=True)
class Checkpoint:
    """A folder whose weight files were found and opened once, without their values.

    Attributes:
        folder: where it is.
        config: the tree of ``config.json``.
        files: of each tensor, the file that holds it.
        shapes: of each tensor.
        dtype: the number format of all tensors.
    """

    folder: Path
    config: Mapping[str, Any]
    files: Mapping[str, Path]
    shapes: Mapping[str, tuple[int, ...]]
    dtype: torch.dtype

    @classmethod
    def open(cls, folder: Path) -> "Checkpoint":
        """Read the configuration and the headers of the weight files.

        Raises:
            DataError: a file is missing or damaged, the weights are pickled, are quantised or of mixed formats, or an
                adapter lies beside them.
        """
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; give the folder that holds {CONFIG_FILE} and {WEIGHTS_FILE}")
        _refuse_adapters(folder)
        config = read_json(folder / CONFIG_FILE)
        files: dict[str, Path] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        formats: dict[str, str] = {}
        for path, promised in _weight_files(folder).items():
            found = {name: header for name, header in _header(path).items() if not name.endswith(_BUFFER)}
            lacking = sorted(set(promised) - set(found))
            if lacking:
                raise DataError(f"{path}: {INDEX_FILE} says that {lacking[0]} is in it, and it is not; {_COPY}")
            twice = sorted(set(found) & set(files))
            if twice:
                raise DataError(f"{path}: {twice[0]} is also in {files[twice[0]].name}; {_COPY}")
            files |= dict.fromkeys(found, path)
            shapes |= {name: shape for name, (shape, _) in found.items()}
            formats |= {name: kind for name, (_, kind) in found.items()}
        return cls(folder, config, files, shapes, _one_format(folder, formats))

    def check(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Compare names and shapes of the tensors with what the configuration asks for.

        Raises:
            DataError: they differ; the first few faults are named.
        """
        cure = f"{_COPY}, or bring a checkpoint of a supported kind"
        check_shapes(f"{self.folder}: the weights do not fit {CONFIG_FILE}", self.shapes, expected, cure=cure)

    def tensor(self, name: str) -> Tensor:
        """The values of one tensor, in fp32.

        Raises:
            DataError: the file is damaged, or a value is NaN or infinite.
        """
        from safetensors import SafetensorError, safe_open

        path = self.files[name]
        try:
            with safe_open(path, framework="pt") as stored:
                values: Tensor = stored.get_tensor(name).float()
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path}: {name} cannot be read: {error}; {_COPY}") from error
        check_values(f"{path}: the weights are no numbers", {name: values}, cure=f"{_COPY}, or from an earlier save")
        return values

    def fingerprint(self) -> str:
        """Name by content of the configuration and all weight files."""
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for path in sorted(set(self.files.values())):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return f"hf-{digest.hexdigest()[:16]}"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        DataError: the file is missing or is none.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; a checkpoint folder holds {CONFIG_FILE} and {WEIGHTS_FILE}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not JSON: {error}; {_COPY}") from None
    if not isinstance(tree, dict):
        raise DataError(f"{path}: not a JSON object; {_COPY}")
    return tree


def _refuse_adapters(folder: Path) -> None:
    """A LoRA beside the weights, or one folder below them as PEFT writes it, would be left out without a word."""
    found = sorted(path for at in ("*", "*/*") for path in folder.glob(at) if _ADAPTER.fullmatch(path.name))
    if found:
        raise DataError(
            f"{folder}: {found[0].relative_to(folder)} is an adapter (LoRA), which is not applied here; write the "
            "checkpoint with it merged in, PeftModel.from_pretrained(base, adapter).merge_and_unload()"
            ".save_pretrained(FOLDER), and give that folder, or take the adapter away if it is not wanted"
        )


def _weight_files(folder: Path) -> dict[Path, list[str]]:
    """The weight files, each with the tensors that the index promises in it (none without an index)."""
    if (folder / WEIGHTS_FILE).is_file():
        return {folder / WEIGHTS_FILE: []}
    if not (folder / INDEX_FILE).is_file():
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLED)
        if pickled:
            raise DataError(
                f"{folder}: {pickled[0]} is a pickle, which can run code when it is opened, and is never read; load it "
                "where you trust it and write it again with save_pretrained(..., safe_serialization=True)"
            )
        raise DataError(f"{folder}: neither {WEIGHTS_FILE} nor {INDEX_FILE}; {_COPY}")
    place = read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(place, dict) or not place or not all(isinstance(name, str) for name in place.values()):
        raise DataError(f"{folder / INDEX_FILE}: no weight_map of tensors to files; {_COPY}")
    files: dict[Path, list[str]] = {}
    for tensor, name in sorted(place.items()):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise DataError(f"{folder / INDEX_FILE}: {name!r} is not the name of a safetensors file beside it; {_COPY}")
        if not (folder / name).is_file():
            raise DataError(f"{folder / name}: no such file, and {INDEX_FILE} places {tensor} in it; {_COPY}")
        files.setdefault(folder / name, [])
        if not tensor.endswith(_BUFFER):
            files[folder / name].append(tensor)
    return files


def _header(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and number format of each tensor of one file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as stored:
            slices = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118 (not a mapping)
            return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: damaged: {error}; {_COPY}") from error


def _one_format(folder: Path, formats: Mapping[str, str]) -> torch.dtype:
    kinds = sorted(set(formats.values()))
    if len(kinds) != 1 or kinds[0] not in FORMATS:
        raise DataError(
            f"{folder}: tensors in {', '.join(kinds) or 'no format'}; one of {', '.join(FORMATS)} for all of them is "
            "read, so write the checkpoint again in one number format, not quantised"
        )
    return FORMATS[kinds[0]]
