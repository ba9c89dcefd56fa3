"""Griffin-Lim: whole utterances, and streams that give the same samples in pieces."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retort.audio.griffin_lim import GriffinLimStream, griffin_lim
from retort.audio.mel import MEL_FLOOR, MelConfig, log_mel

CONFIG = MelConfig()
SILENCE = math.log(MEL_FLOOR)


def tone(frequency_hz: float, num_samples: int = 16000, level: float = 0.5) -> Tensor:
    return level * torch.sin(2 * math.pi * frequency_hz * torch.arange(num_samples) / CONFIG.sample_rate)


def chirp(num_samples: int = 16000) -> Tensor:
    seconds_N = torch.arange(num_samples) / CONFIG.sample_rate
    return 0.3 * torch.sin(2 * math.pi * (200 + 900 * seconds_N) * seconds_N)


def test_same_seed_same_samples() -> None:
    features_MT = log_mel(chirp(), CONFIG)
    first_N = griffin_lim(features_MT, CONFIG, num_iterations=4, seed=1)
    torch.manual_seed(99)
    assert torch.equal(first_N, griffin_lim(features_MT, CONFIG, num_iterations=4, seed=1))
    assert not torch.allclose(first_N, griffin_lim(features_MT, CONFIG, num_iterations=4, seed=2))


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


@given(st.integers(0, 40))
@settings(max_examples=20, deadline=None)
def test_a_stream_gives_as_many_samples_as_its_frames_stand_for(num_blocks: int) -> None:
    stream = GriffinLimStream(CONFIG, block_frames=4, num_iterations=1)
    blocks = log_mel(chirp(800 * 40), CONFIG)[:, : 4 * num_blocks].split(4, dim=1) if num_blocks else ()
    parts = [stream.push(block) for block in blocks]
    assert sum(map(len, parts)) <= 800 * num_blocks
    assert sum(map(len, [*parts, stream.finish()])) == 800 * num_blocks


def test_samples_come_early_and_are_never_taken_back() -> None:
    """What a stream has given does not depend on what follows."""
    features_MT = log_mel(chirp(), CONFIG)[:, :80]
    other_MT = torch.cat([features_MT[:, :48], torch.full((80, 32), -4.0)], dim=1)
    given_N = []
    for features in (features_MT, other_MT):
        stream = GriffinLimStream(CONFIG, block_frames=4, num_iterations=4)
        parts = [stream.push(block) for block in features.split(4, dim=1)]
        first = next(index for index, part in enumerate(parts) if len(part))
        assert first == 2, "two blocks and one in view"
        given_N.append(torch.cat(parts[:12]))
    assert len(given_N[0]) >= 1000
    assert torch.equal(given_N[0], given_N[1])


def test_pieces_sound_as_close_to_the_features_as_the_whole() -> None:
    features_MT = log_mel(chirp(), CONFIG)[:, :80]
    stream = GriffinLimStream(CONFIG, block_frames=4, num_iterations=16)
    pieces_N = torch.cat([*(stream.push(block) for block in features_MT.split(4, dim=1)), stream.finish()])

    def distance(samples_N: Tensor) -> float:
        return float((log_mel(samples_N, CONFIG)[:, :80] - features_MT)[features_MT > -5].abs().mean())

    assert distance(pieces_N) < 1.2 * distance(griffin_lim(features_MT, CONFIG, num_iterations=16))


def test_a_block_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="a block has 4 frames, got 3"):
        GriffinLimStream(CONFIG, block_frames=4, num_iterations=1).push(torch.zeros(80, 3))
