"""Timbres of recordings and of mels agree, follow the voice, pass gradients on, and leave the encoder as it is."""

import pytest
import torch
from torch import Tensor

from retort.audio.files import resample
from retort.audio.mel import MelConfig, log_mel
from retort.errors import ConfigError, DataError
from retort.evaluation.speaker import Resemblyzer
from retort.models.zero_shot.timbre import (
    TIMBRE_RATE,
    ResemblyzerTimbre,
    ResemblyzerTimbreConfig,
    open_timbre_encoder,
    timbre_encoder_name,
)
from retort.text.espeak import speak

pytest.importorskip("resemblyzer")
MEL = MelConfig()
TEXTS = ("She sells sea shells.", "The quick brown fox jumps over the lazy dog near the river bank.")


@pytest.fixture(scope="module")
def encoder() -> ResemblyzerTimbre:
    return ResemblyzerTimbre(MEL)


def recording(text: str, voice: str = "en-us") -> Tensor:
    """Samples [N] at 16 kHz."""
    speech = speak(text, voice=voice, words_per_minute=160)
    return resample(torch.from_numpy(speech.samples_N), speech.sample_rate, TIMBRE_RATE)


def mels(recordings: list[Tensor], *, extra: int = 0) -> tuple[Tensor, Tensor]:
    """Log-mels [B, T, M] and their mask, with more padding."""
    found = [log_mel(samples, MEL).T for samples in recordings]
    lengths = torch.tensor([len(mel) for mel in found])
    mel_BTM = torch.nn.utils.rnn.pad_sequence([*found, torch.zeros(int(lengths.max()) + extra, 80)], batch_first=True)
    return mel_BTM[:-1], torch.arange(mel_BTM.shape[1]) < lengths[:, None]


def test_recordings_are_heard_as_the_library_hears_them(encoder: ResemblyzerTimbre) -> None:
    reference = Resemblyzer()
    for text in TEXTS:
        samples = recording(text)
        assert float(encoder.embed(samples, TIMBRE_RATE) @ reference.embed(samples, TIMBRE_RATE)) > 0.9999


def test_mels_are_heard_nearly_as_recordings_are(encoder: ResemblyzerTimbre) -> None:
    """The stated agreement of the two front-ends; voices that differ are further apart."""
    voices = ("en-us", "en-us+f3")
    said = [recording(text, voice) for voice in voices for text in TEXTS]
    of_audio = torch.stack([encoder.embed(samples, TIMBRE_RATE) for samples in said])
    of_mels = encoder.of_mels(*mels(said))
    cosines = of_mels @ of_audio.T
    assert float(cosines.diagonal().min()) > 0.93
    for row in range(len(said)):
        assert int(cosines[row].argmax()) // 2 == row // 2, "nearest to a recording of its own voice"


def test_padding_and_loudness_change_nothing(encoder: ResemblyzerTimbre) -> None:
    said = [recording(text) for text in TEXTS]
    given, mask = mels(said)
    longer, longer_mask = mels(said, extra=300)
    noisy = longer.masked_fill(~longer_mask[..., None], 3.0)
    expected = encoder.of_mels(given, mask)
    torch.testing.assert_close(encoder.of_mels(noisy, longer_mask), expected, rtol=1e-3, atol=1e-4)
    quiet, _ = mels([0.02 * samples for samples in said])
    loud, _ = mels([0.05 * samples for samples in said])
    torch.testing.assert_close(encoder.of_mels(quiet, mask), encoder.of_mels(loud, mask), rtol=0.05, atol=0.02)


def test_gradients_reach_the_mel_and_the_encoder_is_never_updated(encoder: ResemblyzerTimbre) -> None:
    """Trap 36: frozen parameters, and no ``no_grad`` around them; a few steps bring a mel nearer to a voice."""
    samples = [recording(TEXTS[0])]
    wanted = encoder.embed(recording(TEXTS[1], "en-us+f3"), TIMBRE_RATE)
    before = {name: value.clone() for name, value in encoder._network.state_dict().items()}
    mel, mask = mels(samples)
    mel.requires_grad_()
    optimizer = torch.optim.Adam([mel], lr=0.05)
    found = []
    for _ in range(4):
        likeness = (encoder.of_mels(mel, mask)[0] * wanted).sum()
        optimizer.zero_grad()
        (-likeness).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        found.append(float(likeness.detach()))
    assert found[-1] > found[0] + 0.05
    assert all(not p.requires_grad and p.grad is None for p in encoder._network.parameters())
    assert not encoder._network.training
    assert all(torch.equal(encoder._network.state_dict()[name], value) for name, value in before.items())


def test_what_cannot_be_heard_is_refused(encoder: ResemblyzerTimbre) -> None:
    with pytest.raises(DataError, match="16000 samples at 16000 Hz hold no voice"):
        encoder.embed(torch.zeros(16000), TIMBRE_RATE)
    with pytest.raises(ConfigError, match="listen at 16000 Hz, the mels are of 22050 Hz"):
        open_timbre_encoder(ResemblyzerTimbreConfig(), MelConfig(sample_rate=22050))
    assert timbre_encoder_name(ResemblyzerTimbreConfig()) == encoder.name
