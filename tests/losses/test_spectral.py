import math

import pytest
import torch
from torch import Tensor

from retort.audio.mel import MelConfig, log_mel
from retort.audio.spectra import FLOOR, Resolution, magnitudes, resolutions_at
from retort.losses.spectral import mel_distance, stft_loss

RESOLUTIONS = resolutions_at(16000)


def noise(seed: int, rows: int = 2, count: int = 4000) -> Tensor:
    return 0.1 * torch.randn(rows, count, generator=torch.Generator().manual_seed(seed))


def test_resolutions_are_windows_of_10_25_and_50_ms() -> None:
    assert (Resolution(256, 40, 160), Resolution(512, 100, 400), Resolution(1024, 200, 800)) == RESOLUTIONS
    assert [r.window_samples for r in resolutions_at(24000)] == [240, 600, 1200]
    assert all(r.fft_size >= r.window_samples for r in resolutions_at(22050))


def test_magnitudes_agree_with_a_slow_transform() -> None:
    resolution, samples_N = RESOLUTIONS[0], noise(0, rows=1, count=400)[0]
    found_FT = magnitudes(samples_N[None], resolution)[0]
    window_W = torch.hann_window(160).double()
    padded_N = torch.nn.functional.pad(samples_N.double(), (80, 80))
    for t in (0, 3, 10):
        frame_W = padded_N[t * 40 : t * 40 + 160] * window_W
        for f in (0, 7, 128):
            turns_W = torch.exp(-2j * math.pi * f * torch.arange(160).double() / 256)
            expected = max(float((frame_W * turns_W).sum().abs()), FLOOR)
            assert float(found_FT[f, t]) == pytest.approx(expected, rel=1e-4)


def test_equal_sounds_lose_nothing_and_others_do() -> None:
    sound_BN, other_BN = noise(0), noise(1)
    assert [float(term) for term in stft_loss(sound_BN, sound_BN, RESOLUTIONS)] == pytest.approx([0.0, 0.0], abs=1e-9)
    assert float(mel_distance(sound_BN, sound_BN, MelConfig())) == 0.0
    assert all(float(term) > 0.1 for term in stft_loss(sound_BN, other_BN, RESOLUTIONS))
    assert float(mel_distance(sound_BN, other_BN, MelConfig())) > 0.1


def test_phases_alone_do_not_count() -> None:
    sound_BN = noise(0)
    for term in stft_loss(-sound_BN, sound_BN, RESOLUTIONS):
        assert float(term) < 1e-6


def test_louder_sounds_lose_as_much_and_a_louder_one_its_factor() -> None:
    sound_BN, other_BN = noise(0), noise(1)
    for soft, loud in zip(
        stft_loss(other_BN, sound_BN, RESOLUTIONS), stft_loss(8 * other_BN, 8 * sound_BN, RESOLUTIONS), strict=True
    ):
        assert float(loud) == pytest.approx(float(soft), rel=1e-3)
    convergence, distance = stft_loss(2 * sound_BN, sound_BN, RESOLUTIONS)
    assert float(convergence) == pytest.approx(1.0, rel=1e-4)
    assert float(distance) == pytest.approx(math.log(2.0), rel=1e-3)
    assert float(mel_distance(2 * sound_BN, sound_BN, MelConfig())) == pytest.approx(math.log(2.0), rel=1e-3)


def test_the_mel_distance_is_that_of_log_mels() -> None:
    first_BN, second_BN = noise(0), noise(1)
    by_hand = (log_mel(first_BN, MelConfig()) - log_mel(second_BN, MelConfig())).abs().mean()
    assert torch.equal(mel_distance(first_BN, second_BN, MelConfig()), by_hand)


def test_silence_behind_the_valid_samples_does_not_count() -> None:
    lengths_B = torch.tensor([4000, 2400])
    made_BN, true_BN = noise(0), noise(1)
    made_BN[1, 2400:] = true_BN[1, 2400:] = 0.0
    short = stft_loss(made_BN, true_BN, RESOLUTIONS, lengths_B)
    padded = (torch.nn.functional.pad(x, (0, 1700)) for x in (made_BN, true_BN))
    for one, other in zip(short, stft_loss(*padded, RESOLUTIONS, lengths_B), strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(short, stft_loss(made_BN, true_BN, RESOLUTIONS), strict=True):
        assert not math.isclose(float(one), float(other), rel_tol=1e-3) or one is short[0]


def test_gradients_of_silence_and_of_equal_sounds_are_finite() -> None:
    for true_BN in (torch.zeros(1, 2000), noise(0, rows=1)):
        made_BN = true_BN.clone().requires_grad_()
        (sum(stft_loss(made_BN, true_BN + 0.0, RESOLUTIONS)) + mel_distance(made_BN, true_BN, MelConfig())).backward()  # type: ignore[union-attr]
        assert made_BN.grad is not None
        assert bool(torch.isfinite(made_BN.grad).all())
