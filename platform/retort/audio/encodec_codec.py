"""EnCodec at 24 kHz (Defossez et al., arXiv 2210.13438) behind the codec seam.

The 48 kHz model is left out: it is stereo and scales each second of sound, so its codes alone do not decode.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import field_validator
from torch import Tensor

from retort.audio.causal_layers import StreamedLayer, streamed
from retort.audio.codec_files import (
    check_codes,
    check_fingerprint,
    check_weights,
    fingerprint_of,
    read_codec_weights,
    read_safetensors,
    write_codec_folder,
)
from retort.config import Config
from retort.errors import DataError, StorageError

_BANDWIDTHS_KBPS = (1.5, 3.0, 6.0, 12.0, 24.0)
_CODEBOOK_SIZE = 1024
_SAMPLES_PER_TOKEN = 320
_BLOCK_FRAMES = 4
_BITS_PER_SECOND_PER_CODEBOOK = 750
_PUBLISHED_NAME = "encodec_24khz-d7cc33bc.th"


class EncodecConfig(Config):
    """Which EnCodec weights, and how many of the 32 codebooks to use."""

    kind: Literal["encodec"] = "encodec"
    checkpoint: Path | None = None
    """A local state dict (.th, .pt, .safetensors); without one the published weights are fetched by name."""
    bandwidth_kbps: float = 6.0
    """0.75 kbps per codebook: 6.0 means 8 codebooks."""

    @field_validator("bandwidth_kbps")
    @classmethod
    def _known_bandwidth(cls, value: float) -> float:
        if value not in _BANDWIDTHS_KBPS:
            raise ValueError(f"EnCodec at 24 kHz knows the bandwidths {_BANDWIDTHS_KBPS} kbps")
        return value

    @property
    def sample_rate(self) -> int:
        """Hz, fixed."""
        return 24_000

    @property
    def num_codebooks(self) -> int:
        """K, from the bandwidth."""
        return int(self.bandwidth_kbps * 1000) // _BITS_PER_SECOND_PER_CODEBOOK


class Encodec:
    """The 24 kHz model as a codec. Length law: ``decode(encode(x))`` has ``ceil(N / 320) * 320`` samples.

    Args:
        config: bandwidth and where the weights came from.
        weights: state dict of ``encodec.EncodecModel.encodec_model_24khz``.
        where: file that the weights came from, for the error message.

    Raises:
        DataError: the weights do not fit the model.
    """

    def __init__(self, config: EncodecConfig, weights: Mapping[str, Tensor], where: Path) -> None:
        from encodec import EncodecModel

        # The random weights of the empty model must not shift anybody's random numbers.
        with torch.random.fork_rng(devices=[]):
            model = EncodecModel.encodec_model_24khz(pretrained=False)
        check_weights(where, weights, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
        model.load_state_dict(weights)
        model.set_target_bandwidth(config.bandwidth_kbps)
        self.config = config
        self._model: Any = model.eval().requires_grad_(False)
        identity = {"kind": config.kind, "bandwidth_kbps": config.bandwidth_kbps}
        self._fingerprint = fingerprint_of(config.kind, identity, model.state_dict())

    @property
    def sample_rate(self) -> int:
        """Hz of the audio."""
        return self.config.sample_rate

    @property
    def frame_rate(self) -> float:
        """Tokens per second in each stream."""
        return self.sample_rate / _SAMPLES_PER_TOKEN

    @property
    def num_codebooks(self) -> int:
        """K."""
        return self.config.num_codebooks

    @property
    def codebook_size(self) -> int:
        """V."""
        return _CODEBOOK_SIZE

    def fingerprint(self) -> str:
        """Name of this codec by content: bandwidth and weights, not the path that they came from."""
        return self._fingerprint

    @torch.no_grad()
    def encode(self, samples_N: Tensor) -> Tensor:
        """Codes [K, T] int64, T = ceil(N / 320)."""
        if samples_N.numel() == 0:
            return torch.zeros(self.num_codebooks, 0, dtype=torch.int64)
        codes_BKT: Tensor = self._model.encode(samples_N.float()[None, None])[0][0]
        return codes_BKT[0]

    @torch.no_grad()
    def decode(self, codes_KT: Tensor) -> Tensor:
        """Samples [T * 320]; fewer than K codebooks give a coarser sound.

        Raises:
            DataError: a code lies outside the codebook.
        """
        stream = self.stream()
        return torch.cat([stream.push(codes_KT), stream.finish()])

    def stream(self) -> "EncodecStream":
        """Decode while codes still arrive; the samples are those of :meth:`decode`, bit for bit."""
        return EncodecStream(self)

    def latents(self, codes_KT: Tensor) -> Tensor:
        """What the decoder takes, [1, D, T].

        Raises:
            DataError: a code lies outside the codebook.
        """
        check_codes(codes_KT, self.num_codebooks, self.codebook_size, self._fingerprint)
        latents_1DT: Tensor = self._model.quantizer.decode(codes_KT[:, None])
        return latents_1DT

    def streamed_decoder(self) -> StreamedLayer:
        """The decoder with a state of its own."""
        return streamed(self._model.decoder.model)

    def save(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors``; the path of the original checkpoint is not kept."""
        config = self.config.replace(checkpoint=None)
        write_codec_folder(folder, config, self._model.state_dict(), self._fingerprint)


class EncodecStream:
    """Codes in, samples out as soon as they are final; see :class:`~retort.audio.codec.CodecStream`.

    The decoder runs in blocks of a fixed number of frames, so that the samples do not depend on how the codes come; the
    last block is filled up with zeros, which causal layers do not hear. The first sound comes after eight frames, of
    which the first convolution reflects six.
    """

    def __init__(self, codec: Encodec) -> None:
        self._codec, self._decoder = codec, codec.streamed_decoder()
        self._latents: Tensor | None = None
        self._num_frames = self._num_given = 0

    @torch.no_grad()
    def push(self, codes_KT: Tensor) -> Tensor:
        """Samples that became final.

        Raises:
            DataError: a code lies outside the codebook.
        """
        latents = self._codec.latents(codes_KT)
        self._num_frames += latents.shape[2]
        return self._give(self._decode(latents))

    @torch.no_grad()
    def finish(self) -> Tensor:
        """The remaining samples."""
        missing = self._num_frames * _SAMPLES_PER_TOKEN - self._num_given
        if missing == 0 or self._latents is None:
            return torch.zeros(0)
        parts, found = [], 0
        while found < missing:
            held = self._latents.shape[2] % _BLOCK_FRAMES
            parts.append(self._decode(self._latents.new_zeros(1, self._latents.shape[1], _BLOCK_FRAMES - held)))
            found += parts[-1].shape[0]
        return self._give(torch.cat(parts)[:missing])

    def _decode(self, latents_1DT: Tensor) -> Tensor:
        held = latents_1DT if self._latents is None else torch.cat([self._latents, latents_1DT], dim=2)
        whole = held.shape[2] // _BLOCK_FRAMES * _BLOCK_FRAMES
        self._latents = held[:, :, whole:]
        blocks = [held[:, :, at : at + _BLOCK_FRAMES] for at in range(0, whole, _BLOCK_FRAMES)]
        parts = [self._decoder.push(block)[0, 0] for block in blocks]
        return torch.cat(parts) if parts else torch.zeros(0)

    def _give(self, samples_N: Tensor) -> Tensor:
        self._num_given += samples_N.shape[0]
        return samples_N


def load_encodec(config: EncodecConfig) -> Encodec:
    """Build the codec from ``config.checkpoint``, or from the published weights where there is none.

    Raises:
        DataError: the checkpoint is missing, unreadable, or of another model.
        StorageError: the published weights could not be fetched.
    """
    if config.checkpoint is None:
        return Encodec(config, _fetch_published_weights(), Path(_PUBLISHED_NAME))
    if not config.checkpoint.is_file():
        raise DataError(f"checkpoint {config.checkpoint}: no such file; give the EnCodec 24 kHz state dict")
    if config.checkpoint.suffix == ".safetensors":
        return Encodec(config, read_safetensors(config.checkpoint)[0], config.checkpoint)
    return Encodec(config, _read_torch_weights(config.checkpoint), config.checkpoint)


def load_saved_encodec(folder: Path, config: EncodecConfig) -> Encodec:
    """Read what :meth:`Encodec.save` wrote; ``config.checkpoint`` is not looked at.

    Raises:
        DataError: the weights are missing, damaged, or of another model.
    """
    weights, saved_fingerprint = read_codec_weights(folder)
    codec = Encodec(config, weights, folder)
    check_fingerprint(folder, saved_fingerprint, codec.fingerprint())
    return codec


def _read_torch_weights(path: Path) -> dict[str, Tensor]:
    cure = "give the EnCodec 24 kHz state dict, or convert it to safetensors"
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        first_line = str(error).partition("\n")[0]
        raise DataError(f"{path}: not a plain file of weights: {first_line}; {cure}") from error
    if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise DataError(f"{path}: holds something else than a mapping of names to tensors; {cure}")
    return weights


def _fetch_published_weights() -> dict[str, Tensor]:
    import encodec.model

    url = encodec.model.ROOT_URL + _PUBLISHED_NAME
    try:
        return dict(torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True))
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        cure = f"fetch {_PUBLISHED_NAME} where there is a network and set checkpoint to the file"
        raise StorageError(f"the published EnCodec weights could not be fetched: {error}; {cure}") from error
