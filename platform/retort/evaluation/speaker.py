"""Speaker encoders and the cosine between voices: Resemblyzer (embedded, smoke tier) and x-vector models by path.

Similarities of different encoders are different measures: the encoder's ``name`` is written beside every score.
"""

import warnings
from pathlib import Path
from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from retort.audio.librosa_parts import open_librosa
from retort.config import Config
from retort.errors import ConfigError, DataError, MissingRequirementError, RetortError
from retort.evaluation.hearing import loudest_frame_dbfs
from retort.evaluation.local_models import load_local

ENCODER_RATE = 16_000
"""Sample rate, in Hz, that the encoders here listen at."""

SILENCE_DBFS = -60.0
"""Below this there is no voice to compare."""


class SpeakerEncoder(Protocol):
    """Maps a recording to a point on the unit sphere. ``smoke_tier`` ones are not comparable with published numbers."""

    name: str
    smoke_tier: bool

    def embed(self, samples_N: Tensor, sample_rate: int) -> Tensor:
        """Voice [E] of L2 norm 1 of mono samples [N]; raises DataError where there is no voice, as in silence."""


class ResemblyzerConfig(Config):
    """The English d-vector in the Resemblyzer wheel: for relative gates and demonstrations."""

    kind: Literal["resemblyzer"] = "resemblyzer"


class TransformersSpeakerConfig(Config):
    """An x-vector checkpoint (WavLM-SV, wav2vec2-SV) in a local folder, as ``transformers`` writes it."""

    kind: Literal["wavlm_sv"] = "wavlm_sv"
    path: Path


SpeakerEncoderConfig = Annotated[ResemblyzerConfig | TransformersSpeakerConfig, Field(discriminator="kind")]


def encoder_name(config: ResemblyzerConfig | TransformersSpeakerConfig) -> str:
    """The ``name`` of the encoder that ``config`` names, without loading it."""
    match config:
        case ResemblyzerConfig():
            return Resemblyzer.name
        case TransformersSpeakerConfig():
            return f"{config.kind}:{config.path.name}"


def open_speaker_encoder(
    config: ResemblyzerConfig | TransformersSpeakerConfig, *, device: torch.device | str = "cpu"
) -> SpeakerEncoder:
    """Load the encoder that ``config`` names; nothing is downloaded.

    Raises:
        ConfigError: the folder is missing, incomplete or not such a checkpoint.
        MissingRequirementError: the library that the encoder needs is not installed.
    """
    match config:
        case ResemblyzerConfig():
            return Resemblyzer(device=device)
        case TransformersSpeakerConfig():
            return TransformersSpeaker(config, device=device)


def similarity(a_E: Tensor, b_E: Tensor) -> float:
    """Cosine of two voices, in -1..1.

    Raises:
        ConfigError: they have different sizes, so they are of different encoders.
    """
    if a_E.shape != b_E.shape:
        raise ConfigError(
            f"voices of {a_E.shape[-1]} and of {b_E.shape[-1]} numbers are of different speaker encoders and do not "
            "compare; evaluate with the encoder that the token set was prepared with"
        )
    return float(torch.nn.functional.cosine_similarity(a_E.float(), b_E.float(), dim=-1).clamp(-1.0, 1.0))


def embed(encoder: SpeakerEncoder, samples_N: Tensor, sample_rate: int) -> Tensor:
    """The voice [E] of one sound.

    Raises:
        DataError: it has none, or the encoder cannot take this sound, whatever its library raises.
    """
    try:
        voice_E = encoder.embed(samples_N, sample_rate)
    except RetortError:
        raise
    except Exception as error:
        raise _no_voice(encoder, samples_N, sample_rate, f"{type(error).__name__}: {error}") from error
    if not bool(torch.isfinite(voice_E).all()):
        raise _no_voice(encoder, samples_N, sample_rate, "it gives numbers that are none")
    return voice_E


def _no_voice(encoder: SpeakerEncoder, samples_N: Tensor, sample_rate: int, fault: str) -> DataError:
    return DataError(f"{encoder.name} finds no voice in {samples_N.numel()} samples at {sample_rate} Hz: {fault}")


def _voiced_16k(samples_N: Tensor, sample_rate: int) -> Tensor:
    samples_N = samples_N.detach().cpu().float().flatten()
    if not bool(torch.isfinite(samples_N).all()) or loudest_frame_dbfs(samples_N, sample_rate) < SILENCE_DBFS:
        raise DataError(
            f"{samples_N.numel()} samples at {sample_rate} Hz hold no voice (silent or not finite); "
            "give a recording of speech"
        )
    if sample_rate == ENCODER_RATE:
        return samples_N
    from retort.audio.files import resample

    resampled_N = resample(samples_N, sample_rate, ENCODER_RATE)
    if not resampled_N.numel():
        raise DataError(f"{samples_N.numel()} samples at {sample_rate} Hz are too short for a voice")
    return resampled_N


class Resemblyzer:
    """Resemblyzer's d-vector with its own silence trimming and volume."""

    name = "resemblyzer-0.1"
    smoke_tier = True
    _SHORTEST_N = ENCODER_RATE // 10

    def __init__(self, *, device: torch.device | str = "cpu") -> None:
        try:
            with warnings.catch_warnings():
                # It still imports scipy.ndimage.morphology, which SciPy has deprecated.
                warnings.simplefilter("ignore", DeprecationWarning)
                open_librosa()
                import resemblyzer
        except ImportError as error:
            raise MissingRequirementError(
                "Resemblyzer is not installed; pip install --no-deps Resemblyzer, and webrtcvad-wheels with librosa"
            ) from error
        self._trim = resemblyzer.preprocess_wav
        self._encoder = resemblyzer.VoiceEncoder(torch.device(device), verbose=False)

    def embed(self, samples_N: Tensor, sample_rate: int) -> Tensor:
        """Voice [256]; see :class:`SpeakerEncoder`."""
        voiced = _voiced_16k(samples_N, sample_rate).numpy()
        trimmed = self._trim(voiced)
        # Its voice detector finds nothing in some very short words; the whole recording is then the better evidence.
        kept = trimmed if len(trimmed) >= self._SHORTEST_N else voiced
        return torch.nn.functional.normalize(torch.from_numpy(self._encoder.embed_utterance(kept)).float(), dim=0)


class TransformersSpeaker:
    """An x-vector head over WavLM or wav2vec2."""

    smoke_tier = False
    _SHORTEST_N = ENCODER_RATE // 2

    def __init__(self, config: TransformersSpeakerConfig, *, device: torch.device | str = "cpu") -> None:
        self.name = encoder_name(config)
        self._device = torch.device(device)
        self._model = load_local("AutoModelForAudioXVector", config.path).to(self._device)
        self._features = load_local("AutoFeatureExtractor", config.path, weights=False)

    @torch.inference_mode()
    def embed(self, samples_N: Tensor, sample_rate: int) -> Tensor:
        """Voice [E]; see :class:`SpeakerEncoder`."""
        voiced_N = _voiced_16k(samples_N, sample_rate)
        # The time-delay layers span some 0.4 s: repeat what is shorter, silence would shift the statistics.
        voiced_N = voiced_N.repeat(-(-self._SHORTEST_N // voiced_N.numel()))
        inputs = self._features(voiced_N.numpy(), sampling_rate=ENCODER_RATE, return_tensors="pt").to(self._device)
        voice_E = self._model(**inputs).embeddings[0].float().cpu()
        return torch.nn.functional.normalize(voice_E, dim=0)
