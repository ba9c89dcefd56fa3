import pytest
import torch

from retort.audio.mel import MelConfig, log_mel
from retort.errors import DataError
from retort.evaluation.mel_distance import mel_distance_db


def test_half_the_amplitude_is_six_decibels_away() -> None:
    sound_N = torch.rand(4000, generator=torch.Generator().manual_seed(0)) - 0.5
    loud_MT, quiet_MT = (log_mel(gain * sound_N, MelConfig()) for gain in (1.0, 0.5))
    assert mel_distance_db(loud_MT, loud_MT) == 0.0
    assert mel_distance_db(quiet_MT, loud_MT) == pytest.approx(6.0206, abs=1e-3)
    assert mel_distance_db(quiet_MT, loud_MT) == mel_distance_db(loud_MT, quiet_MT)


def test_it_is_a_mean_over_channels_and_frames() -> None:
    reference_MT = torch.zeros(4, 10)
    changed_MT = reference_MT.clone()
    changed_MT[1, 3] = -1.0
    whole = mel_distance_db(torch.ones(4, 10), reference_MT)
    assert mel_distance_db(changed_MT, reference_MT) == pytest.approx(whole / 40)


@pytest.mark.parametrize("shape", [(4, 9), (3, 10)])
def test_frames_that_do_not_belong_together_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(DataError, match="have no frames in common"):
        mel_distance_db(torch.zeros(shape), torch.zeros(4, 10))
    with pytest.raises(DataError, match="have no frames in common"):
        mel_distance_db(torch.zeros(4, 0), torch.zeros(4, 0))
