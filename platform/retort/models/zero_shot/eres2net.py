"""ERes2NetV2, the paper's speaker encoder (Chen et al., arXiv 2406.02167), with the front-end that it listens through.

Names and shapes of the weights are those of 3D-Speaker's public checkpoints, such as
``iic/speech_eres2netv2_sv_zh-cn_16k-common``, which are read from a local file; nothing is downloaded. Blocks are split
into two halves, of which the second hears the first; the deeper stages weigh the two by local attention.
"""

import hashlib
import math
import pickle
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from retort.audio.files import resample
from retort.audio.mel import MelConfig
from retort.errors import DataError
from retort.models.zero_shot.mel_bridge import MelBridge
from retort.tensors import check_shapes, check_values

_RATE = 16_000
_WINDOW, _HOP, _FFT = 400, 160, 512
_PREEMPHASIS, _LOW_HZ = 0.97, 20.0
_TINY = 1.1920929e-07
"""Least energy before the log: Kaldi's, the epsilon of 32-bit numbers."""
_BASE_WIDTH, _SCALE, _EXPANSION = 26, 2, 2
_CHANNELS, _BLOCKS, _NUM_MELS, _DIM = 64, (3, 4, 6, 3), 80, 192
_CEILING = 20.0


class ERes2NetTimbre:
    """Timbres of 192 numbers.

    Args:
        path: weights of a 3D-Speaker checkpoint, as a file of safetensors or of torch.
        mel: of the mels that :meth:`of_mels` is given.
        device: where it computes.

    Raises:
        DataError: the file is no such checkpoint.
    """

    dim = _DIM
    num_parameters = 17_859_632

    def __init__(self, path: Path, mel: MelConfig, *, device: torch.device | str = "cpu") -> None:
        self.name = eres2net_name(path)
        self._network = ERes2NetV2()
        self._network.load_state_dict(_weights(path, self._network))
        self._network.to(device).eval().requires_grad_(requires_grad=False)
        self._bridge = MelBridge(
            mel, _heard_filters(), _povey(), hop_samples=_HOP, first_centre_samples=_WINDOW // 2
        )  # fmt: skip

    def embed(self, samples_N: Tensor, sample_rate: int) -> Tensor:
        """Timbre [E]; see :class:`retort.models.zero_shot.timbre.TimbreEncoder`."""
        voiced_N = samples_N.float() if sample_rate == _RATE else resample(samples_N.float(), sample_rate, _RATE)
        if voiced_N.numel() < _WINDOW or not bool(voiced_N.any()) or not bool(torch.isfinite(voiced_N).all()):
            raise DataError(
                f"{samples_N.numel()} samples at {sample_rate} Hz hold no voice; give a recording of speech"
            )
        device = next(self._network.parameters()).device
        with torch.no_grad():
            return self._of_features(kaldi_fbank(voiced_N).to(device)).cpu()

    def of_mels(self, log_mel_BTM: Tensor, mask_BT: Tensor) -> Tensor:
        """Timbres [B, E]; see :class:`retort.models.zero_shot.timbre.TimbreEncoder`. Each row is heard by itself."""
        powers_BTK, valid_BT = self._bridge.powers(log_mel_BTM, mask_BT)
        rows = [powers_TK[valid_T] for powers_TK, valid_T in zip(powers_BTK, valid_BT, strict=True)]
        return torch.stack([self._of_features(powers_TK.clamp_min(_TINY).log()) for powers_TK in rows])

    def _of_features(self, features_TK: Tensor) -> Tensor:
        centred_TK = features_TK - features_TK.mean(0, keepdim=True)
        return functional.normalize(self._network(centred_TK[None])[0], dim=-1)


def eres2net_name(path: Path) -> str:
    """Name of the encoder of a file: the file's, and the beginning of its hash.

    Raises:
        DataError: there is no such file.
    """
    if not path.is_file():
        raise DataError(f"{path}: there are no weights of ERes2NetV2; give the file of a 3D-Speaker checkpoint")
    with path.open("rb") as file:
        return f"eres2netv2:{hashlib.file_digest(file, 'sha256').hexdigest()[:12]}"


class ERes2NetV2(nn.Module):
    """Mean-normalised features [B, T, 80] to timbres [B, 192]; batch norms must be in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, _CHANNELS, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(_CHANNELS)
        wide = _CHANNELS
        stages = []
        for stage, count in enumerate(_BLOCKS):
            planes, blocks = _CHANNELS << stage, []
            for number in range(count):
                stride = 2 if stage > 0 and number == 0 else 1
                blocks.append(_Block(wide, planes, stride, is_fused=stage >= 2))
                wide = planes * _EXPANSION
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.layer3_ds = nn.Conv2d(_CHANNELS * 8, _CHANNELS * 16, 3, padding=1, stride=2, bias=False)
        self.fuse34 = _Fusion(_CHANNELS * 16)
        self.seg_1 = nn.Linear(_NUM_MELS // 8 * _CHANNELS * 8 * _EXPANSION * 2, _DIM)

    def forward(self, features_BTK: Tensor) -> Tensor:
        """Timbres, of any size."""
        x = functional.relu(self.bn1(self.conv1(features_BTK.transpose(1, 2)[:, None])))
        third = self.layer3(self.layer2(self.layer1(x)))
        fused_BCKT = self.fuse34(self.layer4(third), self.layer3_ds(third))
        # The checkpoints' own pooling has the deviation of a sample, which one frame has none of.
        correction = min(1, fused_BCKT.shape[-1] - 1)
        mean, deviation = fused_BCKT.mean(-1), (fused_BCKT.var(-1, correction=correction) + 1e-8).sqrt()
        return self.seg_1(torch.cat([mean.flatten(1), deviation.flatten(1)], dim=1))  # type: ignore[no-any-return]


class _Block(nn.Module):
    def __init__(self, channels_in: int, planes: int, stride: int, *, is_fused: bool) -> None:
        super().__init__()
        width, channels_out = planes * _BASE_WIDTH // 64, planes * _EXPANSION
        self.conv1 = nn.Conv2d(channels_in, width * _SCALE, 1, stride=stride, bias=False)
        self.bn1 = nn.BatchNorm2d(width * _SCALE)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(_SCALE))
        self.bns = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(_SCALE))
        self.fuse_models = nn.ModuleList(_Fusion(width) for _ in range(_SCALE - 1 if is_fused else 0))
        self.conv3 = nn.Conv2d(width * _SCALE, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        same = stride == 1 and channels_in == channels_out
        self.shortcut = nn.Sequential()
        if not same:
            projection = nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        first, second = _clipped(self.bn1(self.conv1(x))).chunk(_SCALE, dim=1)
        heard = _clipped(self.bns[0](self.convs[0](first)))
        joined = self.fuse_models[0](heard, second) if len(self.fuse_models) else heard + second
        out = torch.cat([heard, _clipped(self.bns[1](self.convs[1](joined)))], dim=1)
        return _clipped(self.bn3(self.conv3(out)) + self.shortcut(x))


class _Fusion(nn.Module):
    """Attentional fusion: how much of either is decided place by place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 4
        self.local_att = nn.Sequential(
            nn.Conv2d(2 * channels, inner, 1),
            nn.BatchNorm2d(inner),
            nn.SiLU(),
            nn.Conv2d(inner, channels, 1),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        share = torch.tanh(self.local_att(torch.cat([x, y], dim=1)))
        return x * (1.0 + share) + y * (1.0 - share)


def _clipped(x: Tensor) -> Tensor:
    return x.clamp(0.0, _CEILING)


def kaldi_fbank(samples_N: Tensor) -> Tensor:
    """Kaldi's log mel energies [T, 80] of mono samples [N] at 16 kHz, at least one window long, without dither."""
    frames_TN = samples_N.unfold(0, _WINDOW, _HOP)
    frames_TN = frames_TN - frames_TN.mean(1, keepdim=True)
    before_TN = functional.pad(frames_TN[None], (1, 0), mode="replicate")[0, :, :-1]
    windowed_TN = (frames_TN - _PREEMPHASIS * before_TN) * _povey()
    power_TF = torch.fft.rfft(windowed_TN, _FFT).abs().square()
    energy_TK: Tensor = (power_TF @ _mel_filters().T).clamp_min(_TINY)
    return energy_TK.log()


def _povey() -> Tensor:
    return torch.hann_window(_WINDOW, periodic=False).pow(0.85)


def _mel_filters() -> Tensor:
    """Kaldi's triangles [K, F], which are even on its mel scale; half the sample rate belongs to none."""
    hz_F = torch.linspace(0, _RATE / 2, _FFT // 2 + 1, dtype=torch.float64)
    low, high = (1127.0 * math.log1p(hz / 700.0) for hz in (_LOW_HZ, _RATE / 2))
    edges = torch.linspace(low, high, _NUM_MELS + 2, dtype=torch.float64)
    slopes = (1127.0 * torch.log1p(hz_F / 700.0) - edges[:, None]) / (edges[1] - edges[0])
    filters_KF = torch.minimum(slopes[:-2], -slopes[2:]).clamp_min(0.0)
    filters_KF[:, -1] = 0.0
    return filters_KF.float()


def _heard_filters() -> Tensor:
    """The filters with what pre-emphasis does to the power of each bin."""
    angle_F = torch.linspace(0, torch.pi, _FFT // 2 + 1)
    return _mel_filters() * (1.0 + _PREEMPHASIS**2 - 2.0 * _PREEMPHASIS * angle_F.cos())


def _weights(path: Path, network: nn.Module) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    cure = "give the file of a 3D-Speaker checkpoint of ERes2NetV2 (w26, s2, 192 numbers)"
    try:
        if path.suffix == ".safetensors":
            weights: dict[str, Tensor] = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise DataError(f"{path}: no weights of ERes2NetV2: {str(error)[:200]}; {cure}") from None
    found, expected = ({name: tuple(w.shape) for name, w in tree.items()} for tree in (weights, network.state_dict()))
    check_shapes(f"{path}: no weights of ERes2NetV2", found, expected, cure=cure)
    check_values(f"{path}: no weights of ERes2NetV2", weights, cure=cure)
    return weights
