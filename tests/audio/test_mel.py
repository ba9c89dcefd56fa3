import math

import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from retort.audio.mel import MEL_FLOOR, MelConfig, griffin_lim, log_mel, mel_to_magnitude

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


def test_same_seed_same_samples() -> None:
    features_MT = log_mel(chirp(), CONFIG)
    first_N = griffin_lim(features_MT, CONFIG, num_iterations=4, seed=1)
    torch.manual_seed(99)
    assert torch.equal(first_N, griffin_lim(features_MT, CONFIG, num_iterations=4, seed=1))
    assert not torch.allclose(first_N, griffin_lim(features_MT, CONFIG, num_iterations=4, seed=2))


def test_an_item_sounds_alone_as_in_a_padded_batch() -> None:
    long_MT, short_MT = log_mel(chirp(8000), CONFIG), log_mel(tone(300, 3000), CONFIG)
    padded_MT = torch.full_like(long_MT, SILENCE)
    padded_MT[:, : short_MT.shape[1]] = short_MT
    batch_BN = griffin_lim(torch.stack([long_MT, padded_MT]), CONFIG, num_iterations=8)
    assert batch_BN.shape == (2, long_MT.shape[1] * 200)
    alone_N = griffin_lim(short_MT, CONFIG, num_iterations=8)
    assert torch.allclose(batch_BN[0], griffin_lim(long_MT, CONFIG, num_iterations=8), atol=1e-5)
    assert torch.allclose(batch_BN[1, : len(alone_N)], alone_N, atol=1e-5)


@pytest.mark.parametrize("frequency_hz", [150, 440, 1000, 3000])
def test_a_tone_keeps_its_peak_and_level(frequency_hz: int) -> None:
    rebuilt_N = griffin_lim(log_mel(tone(frequency_hz), CONFIG), CONFIG)[:16000]
    peak_hz = int(torch.fft.rfft(rebuilt_N).abs().argmax())
    # A mel filter knows a frequency only to within its own width.
    assert abs(peak_hz - frequency_hz) <= max(40, 0.04 * frequency_hz)
    assert 0.5 < float(rebuilt_N.std() / tone(frequency_hz).std()) < 1.4


def test_more_iterations_come_closer() -> None:
    features_MT = log_mel(chirp(), CONFIG)

    def distance(num_iterations: int) -> float:
        rebuilt_MT = log_mel(griffin_lim(features_MT, CONFIG, num_iterations=num_iterations), CONFIG)[:, :-1]
        return float((rebuilt_MT - features_MT)[features_MT > -5].abs().mean())

    distances = [distance(num_iterations) for num_iterations in (0, 8, 32)]
    assert distances == sorted(distances, reverse=True)
    assert distances[2] < 0.5 * distances[0]


def test_silence_stays_silent_and_no_frames_make_no_sound() -> None:
    assert torch.equal(griffin_lim(torch.full((80, 10), SILENCE), CONFIG).abs() < 1e-6, torch.full((2000,), True))
    assert griffin_lim(torch.zeros(80, 0), CONFIG).shape == (0,)
    assert griffin_lim(torch.zeros(0, 80, 5), CONFIG).shape == (0, 1000)
