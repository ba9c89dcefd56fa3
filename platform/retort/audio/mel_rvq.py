"""Mel-RVQ: a codec that is fitted on the corpus itself in seconds and needs no foreign weights.

Log-mel frames are stacked, standardised, and quantised by residual k-means (multiple-stage vector quantisation, Juang
and Gray, ICASSP 1982): each codebook quantises what the ones before it left over. The way back is the sum of the
entries, then Griffin-Lim in pieces, so that sound begins before the utterance ends. It is meant for demos and smoke
tests; its sound is not comparable with neural codecs.

Entry 0 of every codebook is reserved: codes that are all zero mean digital silence.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from retort.audio.codec_files import (
    check_codes,
    check_fingerprint,
    check_weights,
    fingerprint_of,
    read_codec_weights,
    write_codec_folder,
)
from retort.audio.griffin_lim import GriffinLimStream
from retort.audio.mel import MEL_FLOOR, MelConfig, log_mel
from retort.config import Config
from retort.errors import DataError

_MAX_FIT_TOKENS = 60_000
_SEEDING_TOKENS = 8_192
_CHUNK_TOKENS = 4_096


class MelRVQConfig(Config):
    """Shape and fit of a mel-RVQ codec."""

    kind: Literal["mel_rvq"] = "mel_rvq"
    num_codebooks: int = Field(default=4, ge=1, le=32)
    codebook_size: int = Field(default=256, ge=2, le=65536)
    frames_per_token: int = Field(default=2, ge=1, le=16)
    """Mel frames stacked into one token."""
    mel: MelConfig = MelConfig()
    soft_floor: float = Field(default=1e-3, ge=0.0)
    """Added to mel amplitudes before the log, so that no entries are spent on what lies below it."""
    griffin_lim_iterations: int = Field(default=32, ge=0)
    fit_seed: int = 0
    kmeans_iterations: int = Field(default=12, ge=1)


class MelRVQ:
    """A fitted codec. Its length law: ``decode(encode(x))`` has ``ceil(N / samples_per_token) * samples_per_token``.

    Args:
        config: the shape.
        means_D: mean of the stacked features, D = frames_per_token * num_mels.
        scales_D: their standard deviation.
        centroids_KVD: codebooks in standardised units.
    """

    def __init__(self, config: MelRVQConfig, means_D: Tensor, scales_D: Tensor, centroids_KVD: Tensor) -> None:
        dim = config.frames_per_token * config.mel.num_mels
        assert means_D.shape == scales_D.shape == (dim,)
        assert centroids_KVD.shape == (config.num_codebooks, config.codebook_size, dim)
        self.config = config
        self._means_D, self._scales_D, self._centroids_KVD = means_D, scales_D, centroids_KVD
        self._fingerprint = fingerprint_of(config.kind, config.model_dump(mode="json"), self._weights())

    @property
    def sample_rate(self) -> int:
        """Hz of the audio."""
        return self.config.mel.sample_rate

    @property
    def samples_per_token(self) -> int:
        """Audio samples that one token stands for."""
        return self.config.mel.hop_samples * self.config.frames_per_token

    @property
    def frame_rate(self) -> float:
        """Tokens per second."""
        return self.sample_rate / self.samples_per_token

    @property
    def num_codebooks(self) -> int:
        """K."""
        return self.config.num_codebooks

    @property
    def codebook_size(self) -> int:
        """V."""
        return self.config.codebook_size

    def fingerprint(self) -> str:
        """Name of this codec by content: config and weights."""
        return self._fingerprint

    def encode(self, samples_N: Tensor) -> Tensor:
        """Codes [K, T] int64, T = ceil(N / samples_per_token)."""
        return self.encode_log_mel(soft_floored_log_mel(samples_N.to(self._means_D.device), self.config))

    def encode_log_mel(self, mel_TM: Tensor) -> Tensor:
        """Codes [K, T] of a log-mel [T * frames_per_token, M] as :func:`soft_floored_log_mel` gives it."""
        residual_TD = (mel_TM.reshape(-1, len(self._means_D)) - self._means_D) / self._scales_D
        codes = []
        for centroids_VD in self._centroids_KVD:
            codes_T = nearest(residual_TD, centroids_VD)
            residual_TD = residual_TD - centroids_VD[codes_T]
            codes.append(codes_T)
        return torch.stack(codes)

    def decode(self, codes_KT: Tensor) -> Tensor:
        """Samples [T * samples_per_token]; fewer than K codebooks give a coarser sound.

        Raises:
            DataError: a code lies outside the codebook.
        """
        stream = self.stream()
        return torch.cat([stream.push(codes_KT), stream.finish()])

    def stream(self) -> "MelRVQStream":
        """Decode while codes still arrive; the samples are those of :meth:`decode`, bit for bit."""
        return MelRVQStream(self)

    def decode_log_mel(self, codes_KT: Tensor) -> Tensor:
        """Log-mel [M, T * frames_per_token] that the codes stand for.

        Raises:
            DataError: a code lies outside the codebook.
        """
        check_codes(codes_KT, self.num_codebooks, self.codebook_size, self._fingerprint)
        num_tokens = codes_KT.shape[1]
        codes_KT = codes_KT.to(self._means_D.device)
        standard_TD = torch.zeros(num_tokens, len(self._means_D), device=self._means_D.device)
        for centroids_VD, codes_T in zip(self._centroids_KVD, codes_KT, strict=False):
            standard_TD = standard_TD + centroids_VD[codes_T]
        features_TD = standard_TD * self._scales_D + self._means_D
        frames_TM = features_TD.reshape(num_tokens * self.config.frames_per_token, self.config.mel.num_mels)
        return without_soft_floor(frames_TM, self.config).T

    def save(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors``."""
        write_codec_folder(folder, self.config, self._weights(), self.fingerprint())

    def _weights(self) -> dict[str, Tensor]:
        return {"means_D": self._means_D, "scales_D": self._scales_D, "centroids_KVD": self._centroids_KVD}


class MelRVQStream:
    """Codes in, samples out as soon as they are final; see :class:`~retort.audio.codec.CodecStream`."""

    def __init__(self, codec: MelRVQ) -> None:
        config = codec.config
        self._codec = codec
        self._phases = GriffinLimStream(
            config.mel, block_frames=config.frames_per_token, num_iterations=config.griffin_lim_iterations
        )

    def push(self, codes_KT: Tensor) -> Tensor:
        """Samples that became final.

        Raises:
            DataError: a code lies outside the codebook.
        """
        codec = self._codec
        check_codes(codes_KT, codec.num_codebooks, codec.codebook_size, codec.fingerprint())
        # One token at a time: what is computed for it must not depend on how many come together.
        parts = [self._phases.push(codec.decode_log_mel(codes_KT[:, t : t + 1])) for t in range(codes_KT.shape[1])]
        return torch.cat(parts) if parts else torch.zeros(0)

    def finish(self) -> Tensor:
        """The remaining samples."""
        return self._phases.finish()


def load_mel_rvq(folder: Path, config: MelRVQConfig) -> MelRVQ:
    """Read what :meth:`MelRVQ.save` wrote.

    Raises:
        DataError: the weights are missing, damaged, or of another shape than the config says.
    """
    dim = config.frames_per_token * config.mel.num_mels
    shapes = {"means_D": (dim,), "scales_D": (dim,), "centroids_KVD": (config.num_codebooks, config.codebook_size, dim)}
    weights, saved_fingerprint = read_codec_weights(folder)
    check_weights(folder, weights, shapes)
    codec = MelRVQ(config, weights["means_D"], weights["scales_D"], weights["centroids_KVD"])
    check_fingerprint(folder, saved_fingerprint, codec.fingerprint())
    return codec


def fit_mel_rvq(recordings: Iterable[Tensor], config: MelRVQConfig) -> MelRVQ:
    """Fit the codebooks on recordings [N] at ``config.mel.sample_rate``; same input and seed, same codec.

    Raises:
        DataError: the recordings together give fewer tokens than a codebook has entries.
    """
    features = [_stacked_features(samples_N, config) for samples_N in recordings]
    features_TD = torch.cat(features) if features else torch.zeros(0, 1)
    if len(features_TD) < config.codebook_size:
        raise DataError(
            f"{len(features_TD)} tokens of audio cannot fill codebooks of {config.codebook_size} entries; "
            "give more recordings or lower codebook_size"
        )
    generator = torch.Generator().manual_seed(config.fit_seed)
    if len(features_TD) > _MAX_FIT_TOKENS:
        features_TD = features_TD[torch.randperm(len(features_TD), generator=generator)[:_MAX_FIT_TOKENS]]
    means_D, scales_D = features_TD.mean(dim=0), features_TD.std(dim=0).clamp(min=1e-3)
    residual_TD = (features_TD - means_D) / scales_D
    silence_D = (_stacked_features(torch.zeros(1), config)[0] - means_D) / scales_D
    codebooks = []
    for index in range(config.num_codebooks):
        reserved_D = silence_D if index == 0 else torch.zeros_like(silence_D)
        centroids_VD = _kmeans(residual_TD, reserved_D, config, generator)
        residual_TD = residual_TD - centroids_VD[nearest(residual_TD, centroids_VD)]
        codebooks.append(centroids_VD)
    return MelRVQ(config, means_D, scales_D, torch.stack(codebooks))


def nearest(points_TD: Tensor, centroids_VD: Tensor) -> Tensor:
    """Index [T] of the nearest centroid by Euclidean distance, the first of equals."""
    half_norms_V = centroids_VD.square().sum(dim=1) / 2
    indices_T = torch.empty(len(points_TD), dtype=torch.int64, device=points_TD.device)
    for start in range(0, len(points_TD), _CHUNK_TOKENS):
        chunk_TD = points_TD[start : start + _CHUNK_TOKENS]
        # |x - c|^2 / 2 without the |x|^2 that all centroids share.
        indices_T[start : start + _CHUNK_TOKENS] = torch.addmm(half_norms_V, chunk_TD, centroids_VD.T, alpha=-1).argmin(
            1
        )
    return indices_T


def soft_floored_log_mel(samples_N: Tensor, config: MelRVQConfig) -> Tensor:
    """The log-mel [T * frames_per_token, M] that is quantised, T = ceil(N / samples_per_token).

    The soft floor is added to the amplitudes, the audio is padded with zeros to whole tokens, and the frame at its very
    end is left out. :func:`without_soft_floor` is the way back to a log-mel that gives sound.
    """
    samples_per_token = config.mel.hop_samples * config.frames_per_token
    num_tokens = -(-samples_N.shape[-1] // samples_per_token)
    padded_N = functional.pad(samples_N.float(), (0, num_tokens * samples_per_token - samples_N.shape[-1]))
    frames_TM = log_mel(padded_N, config.mel).T[: num_tokens * config.frames_per_token]
    return with_soft_floor(frames_TM, config)


def with_soft_floor(mel_TM: Tensor, config: MelRVQConfig) -> Tensor:
    """Log-mel [T, M] with the soft floor added to its amplitudes."""
    return (mel_TM.exp() + config.soft_floor).log()


def without_soft_floor(mel_TM: Tensor, config: MelRVQConfig) -> Tensor:
    """Log-mel [T, M] of the amplitudes that :func:`soft_floored_log_mel` raised."""
    return (mel_TM.exp() - config.soft_floor).clamp(min=MEL_FLOOR).log()


def _stacked_features(samples_N: Tensor, config: MelRVQConfig) -> Tensor:
    """Features [T, D]: the frames of each token side by side."""
    return soft_floored_log_mel(samples_N, config).reshape(-1, config.frames_per_token * config.mel.num_mels)


def _kmeans(points_TD: Tensor, reserved_D: Tensor, config: MelRVQConfig, generator: torch.Generator) -> Tensor:
    """Lloyd's iterations from k-means++ seeds; centroid 0 stays at ``reserved_D``, empty clusters are seeded again."""
    centroids_VD = _seed_centroids(points_TD, reserved_D, config.codebook_size, generator)
    for _ in range(config.kmeans_iterations):
        codes_T = nearest(points_TD, centroids_VD)
        counts_V = torch.bincount(codes_T, minlength=config.codebook_size)
        sums_VD = torch.zeros_like(centroids_VD).index_add_(0, codes_T, points_TD)
        centroids_VD = sums_VD / counts_V.clamp(min=1)[:, None]
        empty_V = counts_V == 0
        centroids_VD[empty_V] = points_TD[torch.randint(len(points_TD), (int(empty_V.sum()),), generator=generator)]
        centroids_VD[0] = reserved_D
    return centroids_VD


def _seed_centroids(points_TD: Tensor, first_D: Tensor, num_centroids: int, generator: torch.Generator) -> Tensor:
    """k-means++ (Arthur and Vassilvitskii, SODA 2007) on a sample of the points, starting at ``first_D``."""
    sample_TD = points_TD[torch.randperm(len(points_TD), generator=generator)[:_SEEDING_TOKENS]]
    norms_T = sample_TD.square().sum(dim=1)
    centroids = [first_D]
    distances_T = torch.full_like(norms_T, torch.inf)
    for _ in range(num_centroids - 1):
        last_D = centroids[-1]
        to_last_T = (norms_T - 2 * (sample_TD @ last_D) + last_D.square().sum()).clamp(min=0.0)
        distances_T = torch.minimum(distances_T, to_last_T)
        weights_T = distances_T + 1e-9  # Identical points leave no distance to draw by.
        centroids.append(sample_TD[torch.multinomial(weights_T, 1, generator=generator)[0]])
    return torch.stack(centroids)
