import math

import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from retort.audio.mel import MEL_FLOOR, MelConfig, log_mel, mel_to_magnitude

CONFIG = MelConfig()
SILENCE = math.log(MEL_FLOOR)


def tone(frequency_hz: float, num_samples: int = 16000, level: float = 0.5) -> torch.Tensor:
    return level * torch.sin(2 * math.pi * frequency_hz * torch.arange(num_samples) / CONFIG.sample_rate)


def chirp(num_samples: int = 16000) -> torch.Tensor:
    seconds_N = torch.arange(num_samples) / CONFIG.sample_rate
    return 0.3 * torch.sin(2 * math.pi * (200 + 900 * seconds_N) * seconds_N)


@pytest.mark.parametrize(
    "config",
    [CONFIG, MelConfig(sample_rate=24000, num_mels=100, hop_samples=256, window_samples=1024, f_max_hz=12000.0)],
)
def test_features_equal_torchaudio(config: MelConfig) -> None:
    reference = torchaudio.transforms.MelSpectrogram(
        sample_rate=config.sample_rate,
        n_fft=config.fft_size,
        win_length=config.window_samples,
        hop_length=config.hop_samples,
        f_min=config.f_min_hz,
        f_max=config.f_max_hz,
        n_mels=config.num_mels,
        power=1.0,
        norm="slaney",
        mel_scale="slaney",
        pad_mode="constant",
    )
    samples_N = chirp(7777)
    expected_MT = reference(samples_N).clamp(min=MEL_FLOOR).log()
    assert torch.allclose(log_mel(samples_N, config), expected_MT, atol=1e-3)


@given(st.integers(0, 4000), st.sampled_from([(), (2,), (2, 3)]))
@settings(max_examples=30, deadline=None)
def test_shape_law(num_samples: int, batch: tuple[int, ...]) -> None:
    features = log_mel(torch.zeros(*batch, num_samples), CONFIG)
    assert features.shape == (*batch, 80, 1 + num_samples // 200)
    assert torch.allclose(features, torch.tensor(SILENCE))


@pytest.mark.parametrize("changes", [{"hop_samples": 500}, {"window_samples": 2048}, {"f_max_hz": 9000.0}])
def test_configs_that_lose_the_sound_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="must hold"):
        CONFIG.replace(**changes)


def test_inverse_mel_is_non_negative_and_agrees_after_the_filters() -> None:
    features_MT = log_mel(chirp(), CONFIG)
    magnitude_FT = mel_to_magnitude(features_MT[None], CONFIG)[0]
    assert magnitude_FT.min() >= 0
    filters_MF = torchaudio.functional.melscale_fbanks(513, 0.0, 8000.0, 80, 16000, "slaney", "slaney").T
    loud_MT = features_MT > features_MT.max() - 5
    error_MT = ((filters_MF @ magnitude_FT).clamp(min=MEL_FLOOR).log() - features_MT).abs()
    assert error_MT[loud_MT].mean() < 0.1
