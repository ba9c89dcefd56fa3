"""Melody, pace and variety: known by construction."""

import math

import pytest
import torch

from retort.evaluation.findings import find
from retort.evaluation.prosody import energy_spread, f0_spread, prosody_of, sample_spread, speaking_rate
from tests.evaluation.test_findings import pair, system

RATE = 16_000


def glide(low_hz: float, high_hz: float, seconds: float = 2.0, rate: int = RATE) -> torch.Tensor:
    """A tone with harmonics whose pitch rises evenly in semitones."""
    t_N = torch.arange(int(seconds * rate)) / rate
    hz_N = low_hz * (high_hz / low_hz) ** (t_N / seconds)
    phase_N = 2.0 * math.pi * torch.cumsum(hz_N / rate, dim=0)
    return sum(torch.sin(k * phase_N) / k for k in (1, 2, 3, 4)) * 0.2


@pytest.mark.parametrize("rate", [16_000, 24_000])
def test_the_spread_of_an_even_rise_is_known(rate):
    """Of an octave spread evenly, the middle 68 % are 8.16 semitones, and half of that 4.08."""
    assert f0_spread(glide(100.0, 200.0, rate=rate), rate) == pytest.approx(4.08, abs=0.3)
    assert f0_spread(glide(150.0, 150.0, rate=rate), rate) == pytest.approx(0.0, abs=0.1)


@pytest.mark.parametrize("sound", [torch.zeros(RATE), torch.zeros(0), torch.full((100,), 0.1)])
def test_where_nothing_is_voiced_there_is_no_spread(sound):
    assert f0_spread(sound, RATE) is None


@pytest.mark.parametrize("rate", [16_000, 24_000])
def test_the_spread_of_an_even_swell_is_known_whatever_its_level_and_its_pauses(rate):
    """Of 20 dB spread evenly, the middle 68 % are 13.6 dB, and half of that 6.8."""
    t_N = torch.arange(2 * rate) / rate
    swell_N = 0.3 * torch.sin(2 * math.pi * 400.0 * t_N) * 10.0 ** (-(t_N / 2.0))
    assert energy_spread(swell_N, rate) == pytest.approx(6.8, abs=0.3)  # frames of 64 ms lie within two seconds
    with_pause_N = torch.cat([swell_N * 0.3, torch.zeros(rate)])
    assert energy_spread(with_pause_N, rate) == pytest.approx(6.8, abs=0.6)  # and some across its end
    assert energy_spread(torch.zeros(rate), rate) is None
    click_N = torch.zeros(rate)
    click_N[100:110] = 0.5
    assert energy_spread(click_N[:1000], rate) is None


@pytest.mark.parametrize("hz", [60.0, 70.0, 80.0, 95.0, 150.0, 300.0])
def test_pulses_of_a_steady_voice_are_no_changes_of_its_level(hz):
    pulses_N = torch.zeros(2 * RATE)
    pulses_N[(torch.arange(int(2 * hz)) * RATE / hz).long()] = 0.5
    assert energy_spread(pulses_N, RATE) == pytest.approx(0.0, abs=0.3)


def test_the_rate_counts_words_from_the_first_to_the_last_sound():
    sound = torch.cat([torch.zeros(RATE), glide(120.0, 130.0, 1.5), torch.zeros(RATE // 2)])
    assert speaking_rate(sound, RATE, "One, two three!") == pytest.approx(2.0, rel=0.02)
    assert speaking_rate(sound, RATE, "735") == pytest.approx(4 / 1.5, rel=0.02), "seven hundred thirty five"
    assert speaking_rate(torch.zeros(RATE), RATE, "one") is None
    assert speaking_rate(sound, RATE, "...") is None


def test_equal_samples_have_no_spread_pace_counts_little_and_other_sounds_much():
    sound = glide(100.0, 200.0)
    assert sample_spread([(sound, RATE), (sound, RATE)]) == pytest.approx(0.0, abs=1e-9)
    slower = sample_spread([(sound, RATE), (glide(100.0, 200.0, 2.5), RATE)])
    other = sample_spread([(sound, RATE), (glide(250.0, 110.0), RATE)])
    assert slower is not None
    assert other is not None
    assert slower < 0.5 * other
    three = sample_spread([(sound, RATE), (sound, RATE), (glide(250.0, 110.0), RATE)])
    assert three == pytest.approx(other * 2 / 3, rel=1e-6), "the mean over pairs"
    assert sample_spread([(sound, RATE), (torch.zeros(RATE), RATE)]) is None


def test_only_what_can_be_measured_is_there():
    assert set(prosody_of(glide(100.0, 200.0), RATE, "one two")) == {
        "f0_spread",
        "energy_spread",
        "speaking_rate",
    }
    assert prosody_of(torch.zeros(RATE), RATE, "one two") == {}


@pytest.mark.parametrize(
    ("ci95", "roles", "words"),
    [
        (
            [-0.9, -0.2],
            ("teacher", "student"),
            "student has less F0 spread in an utterance than teacher.",
        ),
        ([0.2, 0.9], ("teacher", "student"), "student has more F0 spread"),
        ([-0.9, 0.2], ("teacher", "student"), None),
        ([-0.9, -0.2], ("control", "student"), None),
        (None, ("teacher", "student"), None),
    ],
)
def test_what_a_student_lost_against_its_teacher_is_said(ci95, roles, words):
    row = pair("teacher", "student", -0.5, ci95, metric="f0_spread", is_asked_for=False)
    found = [f for f in find([system("teacher", roles[0]), system("student", roles[1])], [row]) if "F0" in f.text]
    assert [f.tone for f in found] == (["bad"] if words else [])
    assert all(words in f.text for f in found)
