"""AudioSeal (San Roman et al., arXiv 2401.17264) as a watermark: weights of a local folder, sound in blocks.

The folder holds ``config.json`` (``nbits`` and ``seanet`` of the model card) and the networks' state dicts as
``generator.safetensors`` and ``detector.safetensors``; docs/security.md says how to make it of the published files.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from retort.audio.codec_files import CURE, check_weights, read_safetensors
from retort.audio.files import resample
from retort.audio.watermark import SAMPLE_RATE, Detection, Samples
from retort.errors import DataError, MissingRequirementError
from retort.tensors import check_values

_ITS_RATE = 16_000
_BLOCK = SAMPLE_RATE
"""Samples that are marked at once: the network looks both ways, so a stream can mark whole blocks only."""
_WRONG_BITS = 1


class AudioSeal:
    """A network's mark with a message of 16 bits.

    The score is the share of samples that the detector takes for marked, and 0 where more than one bit of the message
    is another's.

    Args:
        folder: see the module.
        message: 0 to 65,535; who made the speech, as it were.

    Raises:
        DataError: the folder lacks a file, or its weights are not of the network that it describes.
        MissingRequirementError: ``audioseal`` is not installed.
    """

    threshold = 0.5

    def __init__(self, folder: Path, *, message: int) -> None:
        try:
            from audioseal.builder import create_detector, create_generator
            from audioseal.libs.moshi.utils import compile as compiling
        except ImportError as error:
            raise MissingRequirementError("AudioSeal is not installed; run: pip install audioseal") from error
        # Else its layers are compiled during the first request, for minutes, by a compiler that may be missing.
        # For good, not by its context: that is one switch for all threads.
        compiling._compile_disabled = True
        tree = _card(folder)
        with torch.random.fork_rng(devices=[]):
            self._generator = _filled(create_generator(_typed(tree)), folder / "generator.safetensors")
            self._detector = _filled(create_detector(_typed(tree)), folder / "detector.safetensors")
        self._bits_B = torch.tensor([message >> bit & 1 for bit in range(int(tree["nbits"]))])

    def stream(self) -> "AudioSealStream":
        """See :class:`Watermark`."""
        return AudioSealStream(self)

    @torch.no_grad()
    def mark(self, block_N: Tensor) -> Tensor:
        """The marked block, of ``_BLOCK`` samples."""
        narrow = resample(block_N, SAMPLE_RATE, _ITS_RATE)
        mark = self._generator.get_watermark(narrow[None, None], message=self._bits_B[None])[0, 0]
        return block_N + _fitted(resample(mark, _ITS_RATE, SAMPLE_RATE), block_N.numel())

    @torch.no_grad()
    def detect(self, samples_N: Samples) -> Detection:
        """See :class:`Watermark`."""
        narrow = resample(torch.from_numpy(samples_N.astype(np.float32)), SAMPLE_RATE, _ITS_RATE)
        if narrow.numel() == 0:
            return Detection(0.0, self.threshold)
        found_2T, bits_B = self._detector(narrow[None, None])
        share = float((found_2T[0, 1] > 0.5).float().mean())
        num_wrong = int(((bits_B[0] > 0.5).long() != self._bits_B).sum())
        return Detection(share if num_wrong <= _WRONG_BITS else 0.0, self.threshold)


class AudioSealStream:
    """See :class:`MarkStream`. A second is held back: the first sound is that much later.

    Args:
        seal: marks a block.
    """

    def __init__(self, seal: AudioSeal) -> None:
        self._seal, self._held = seal, torch.zeros(0)

    def push(self, samples_N: Samples) -> Samples:
        """See :class:`MarkStream`."""
        self._held = torch.cat([self._held, torch.from_numpy(samples_N.astype(np.float32))])
        whole = self._held.numel() // _BLOCK * _BLOCK
        ready, self._held = self._held[:whole], self._held[whole:]
        return self._marked(list(torch.split(ready, _BLOCK)) if whole else [])

    def finish(self) -> Samples:
        """See :class:`MarkStream`."""
        left = self._held.numel()
        return self._marked([_fitted(self._held, _BLOCK)])[:left] if left else np.zeros(0, np.float32)

    def _marked(self, blocks: list[Tensor]) -> Samples:
        return torch.cat([torch.zeros(0), *map(self._seal.mark, blocks)]).numpy()


def _card(folder: Path) -> dict[str, Any]:
    try:
        tree = json.loads((folder / "config.json").read_bytes())
        if isinstance(tree["nbits"], int) and isinstance(tree["seanet"], dict):
            return dict(tree)
        raise ValueError("nbits must be a number and seanet a mapping")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}/config.json is not an AudioSeal card ({error}); see docs/security.md") from error


def _typed(tree: Mapping[str, Any]) -> Any:
    from audioseal.builder import AudioSealWMConfig, DecoderConfig, SEANetConfig

    # Published weights come with their weight norm; loaded ones have it folded in.
    try:
        seanet = SEANetConfig(**{**tree["seanet"], "norm": "none"})
    except TypeError as error:
        raise DataError(f"the AudioSeal card does not fit: {error}; take `seanet` from the model card") from None
    return AudioSealWMConfig(tree["nbits"], seanet, DecoderConfig(None, None, 1.0))


def _filled(network: nn.Module, path: Path) -> Any:
    from audioseal.loader import convert_state_dict_for_scriptable_model, load_state_dict

    if not path.is_file():
        raise DataError(f"{path}: no such file; see docs/security.md for how to make it")
    weights = read_safetensors(path)[0]
    check_values(f"{path}: the weights are no numbers", weights, cure=CURE)
    if not any(".inner_conv." in name for name in weights):  # the published names are those of an older version
        weights = convert_state_dict_for_scriptable_model(weights)
    plain = not any(name.endswith(("weight_g", "original0")) for name in weights)
    if plain:
        check_weights(path, weights, {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()})
    try:
        load_state_dict(network, weights)
    except (RuntimeError, AttributeError, AssertionError) as error:
        raise DataError(f"{path}: not the weights of this card: {str(error).splitlines()[0]}") from None
    return network.eval().requires_grad_(False)


def _fitted(samples_N: Tensor, length: int) -> Tensor:
    return nn.functional.pad(samples_N[:length], (0, max(0, length - samples_N.numel())))
