import math

import pytest
import torch

from retort.audio.mel import MelConfig, log_mel
from retort.audio.pitch import f0_track


def buzz(hz, seconds, rate):
    """A voiced sound: ten harmonics."""
    t = torch.arange(int(seconds * rate)) / rate
    return 0.1 * sum(torch.sin(2 * math.pi * k * hz * t) / k for k in range(1, 11))


@pytest.mark.parametrize(("rate", "hop"), [(16000, 200), (24000, 256)])
def test_the_track_has_the_frames_of_a_mel_and_the_pitch_of_the_voice(rate, hop):
    sound = torch.cat([buzz(110.0, 0.5, rate), 0.001 * torch.randn(rate // 2), buzz(220.0, 0.5, rate)])
    f0_T = f0_track(sound, rate, hop_samples=hop)
    mel = MelConfig(sample_rate=rate, hop_samples=hop, window_samples=1024, fft_size=1024)
    assert len(f0_T) == log_mel(sound, mel).shape[1]
    seconds_T = torch.arange(len(f0_T)) * hop / rate
    first, silence, second = (f0_T[(seconds_T > a) & (seconds_T < a + 0.3)] for a in (0.1, 0.6, 1.1))
    assert torch.allclose(first, torch.full_like(first, 110.0), rtol=0.01)
    assert not silence.any()
    assert torch.allclose(second, torch.full_like(second, 220.0), rtol=0.01)
    assert torch.equal(f0_T, f0_track(sound, rate, hop_samples=hop))
