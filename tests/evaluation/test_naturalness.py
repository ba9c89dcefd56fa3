"""DistillMOS and DNSMOS through their real loading paths; without the extras these tests are skipped."""

import pytest
import torch

from retort.errors import DataError, MissingRequirementError
from retort.evaluation import naturalness, wheels
from retort.evaluation.metrics import METRICS
from retort.evaluation.naturalness import DistillMOSConfig, DNSMOSConfig, open_naturalness
from retort.evaluation.wheels import missing
from retort.text.espeak import speak

RATE = 16_000
CONFIGS = [
    pytest.param(c, marks=pytest.mark.skipif(missing(c.modules) is not None, reason=str(missing(c.modules))), id=c.kind)
    for c in (DistillMOSConfig(), DNSMOSConfig())
]


def spoken() -> torch.Tensor:
    speech = speak("the birch canoe slid on the smooth planks", voice="en-us", words_per_minute=150)
    assert speech.sample_rate != RATE
    return torch.nn.functional.interpolate(
        torch.from_numpy(speech.samples_N)[None, None], scale_factor=RATE / speech.sample_rate, mode="linear"
    )[0, 0]


@pytest.mark.parametrize("config", CONFIGS)
def test_figures_are_metrics_within_the_scale_and_worse_in_noise(config):
    scorer, sound = open_naturalness(config), spoken()
    clean = scorer.score(sound, RATE)
    noisy = scorer.score(sound + 0.3 * torch.randn(sound.shape, generator=torch.Generator().manual_seed(0)), RATE)
    assert clean
    assert set(clean) == set(noisy) <= set(METRICS)
    assert all(0.9 <= value <= 5.1 for value in (*clean.values(), *noisy.values()))
    assert all(noisy[name] < clean[name] - 0.1 for name in clean if name != "dnsmos_signal"), (clean, noisy)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_same_sound_has_the_same_figures_whatever_came_before_and_silence_has_none(config):
    scorer, sound = open_naturalness(config), spoken()
    before = scorer.score(sound, RATE)
    assert scorer.score(torch.zeros(RATE), RATE) == scorer.score(torch.zeros(0), RATE) == {}
    assert scorer.score(sound * float("nan"), RATE) == {}
    loudest = int(sound.abs().argmax())
    assert scorer.score(sound[loudest : loudest + 200], RATE), "the shortest sound is no error"
    assert scorer.score(sound, RATE) == before


@pytest.mark.parametrize("config", CONFIGS)
def test_other_weights_are_refused(config, monkeypatch):
    monkeypatch.setattr(naturalness, "_DISTILLMOS_SHA256", "0" * 64)
    monkeypatch.setattr(naturalness, "_DNSMOS_SHA256", {"sig_bak_ovr.onnx": "0" * 64, "model_v8.onnx": "0" * 64})
    with pytest.raises(DataError, match="these are other weights"):
        open_naturalness(config)


@pytest.mark.parametrize("config", [DistillMOSConfig(), DNSMOSConfig()])
def test_without_the_extra_the_cure_is_named(config, monkeypatch):
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(MissingRequirementError, match="not installed; pip install"):
        open_naturalness(config)


def test_no_figure_is_called_mos_alone():
    titles = [metric.title for metric in METRICS.values() if "MOS" in metric.title]
    assert len(titles) == 5
    assert all(title.startswith(("DistillMOS", "DNSMOS")) for title in titles)
