"""A vocoder's laws: what it sees, how it streams, that it says the mels it is given before it has learned anything."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from retort.audio.mel import MEL_FLOOR, MelConfig, log_mel
from retort.audio.pitch import measured_pitch
from retort.config import validate
from retort.errors import ConfigError, DataError
from retort.inference.inversion import GriffinLimInversion, VocoderInversion, open_inversion
from retort.inference.opening import open_speaker
from retort.models.codec_lm import count_parameters
from retort.models.presets import vocoder_base, vocoder_tiny
from retort.models.vocoder import Vocoder, VocoderConfig, bin_of, minimum_phase, with_silence
from retort.models.vocoder_lineage import VocoderLineage
from retort.models.vocoder_stream import VocoderStream, noise_of, vocoded
from retort.models.weights import fingerprint_of, load_codec_lm, load_vocoder, save_model
from retort.nn.excitation import pulse_train
from tests.methods.vocoder_toys import MEL, TOY, toy_vocoder, voice

PLAIN = TOY.replace(source="none")
LINEAGE = VocoderLineage(method="vocoder_pretrain", corpus_digest="c")


def mel_of(seconds: float = 1.0) -> Tensor:
    return log_mel(voice(seconds), MEL)


def test_presets_have_their_sizes() -> None:
    assert count_parameters(Vocoder(vocoder_tiny(MelConfig()))) == 748_772
    assert count_parameters(Vocoder(vocoder_base(MelConfig()))) == 3_448_420


@pytest.mark.parametrize("config", [TOY, PLAIN], ids=["harmonic", "none"])
def test_a_hop_of_samples_for_each_frame_and_the_same_seed_the_same_bits(config: VocoderConfig) -> None:
    model, mel_MT = toy_vocoder(config).eval(), mel_of()
    sound_N = vocoded(model, mel_MT, seed=1)
    assert sound_N.shape == (mel_MT.shape[1] * MEL.hop_samples,)
    assert torch.equal(sound_N, vocoded(model, mel_MT, seed=1))
    assert torch.equal(sound_N, vocoded(model, mel_MT, seed=2)) == (config is PLAIN)
    assert vocoded(model, mel_MT[:, :0]).shape == (0,)


@pytest.mark.parametrize("config", [TOY, PLAIN], ids=["harmonic", "none"])
@pytest.mark.parametrize("block", [1, 4, 20])
def test_a_stream_gives_the_same_sound_but_for_the_last_bits(config: VocoderConfig, block: int) -> None:
    model, mel_MT = toy_vocoder(config).eval(), mel_of()[:, :80]
    whole_N = vocoded(model, mel_MT, seed=1)

    def streamed() -> list[Tensor]:
        stream = VocoderStream(model, block_frames=block, seed=1)
        return [*(stream.push(mel_MT[:, t : t + block]) for t in range(0, 80, block)), stream.finish()]

    pieces = streamed()
    assert torch.cat(pieces).shape == whole_N.shape
    assert float((torch.cat(pieces) - whole_N).abs().max()) < 1e-3 * float(whole_N.abs().max())
    assert torch.equal(torch.cat(pieces), torch.cat(streamed()))
    # What a frame needs ahead is all that a stream waits for.
    waits = model.reach + MEL.window_samples // 2 // MEL.hop_samples
    assert sum(piece.numel() for piece in pieces[:-1]) == (80 - waits) * MEL.hop_samples


def test_a_stream_refuses_a_block_of_another_size_and_ends_without_any() -> None:
    stream = VocoderStream(toy_vocoder().eval(), block_frames=4)
    with pytest.raises(ValueError, match="a block has 4 frames, got 3"):
        stream.push(torch.zeros(MEL.num_mels, 3))
    assert stream.finish().shape == (0,)


@pytest.mark.parametrize("config", [TOY, PLAIN], ids=["harmonic", "none"])
def test_nothing_beyond_the_reach_counts_and_padding_is_silence(config: VocoderConfig) -> None:
    model, mel_MT = toy_vocoder(config).eval(), mel_of()
    frames, hop = mel_MT.shape[1], MEL.hop_samples
    padded_MT = with_silence(mel_MT, 0, 9)
    # A row among longer ones, as batches pad it.
    batch_BMT = with_silence(torch.stack([padded_MT, torch.randn_like(padded_MT)]), model.reach, model.reach)
    noise_BN = noise_of(torch.Generator().manual_seed(0), model.num_noise(frames + 9) // hop, hop).expand(2, -1)
    with torch.no_grad():
        in_batch_N = model(batch_BMT, noise_BN)[0]
    alone_N, sure = vocoded(model, mel_MT), (frames - 2) * hop
    torch.testing.assert_close(in_batch_N[:sure], alone_N[:sure], rtol=0, atol=1e-3 * float(alone_N.abs().max()))
    changed_MT = mel_MT.clone()
    changed_MT[:, 60:] = math.log(MEL_FLOOR)
    sure = (60 - model.reach - 2) * hop
    torch.testing.assert_close(
        vocoded(model, changed_MT)[:sure], alone_N[:sure], rtol=0, atol=1e-3 * float(alone_N.abs().max())
    )


def test_before_it_has_learned_anything_its_mels_are_near_those_asked_for() -> None:
    torch.manual_seed(0)
    model, samples_N = Vocoder(TOY).eval(), voice(1.0)
    mel_MT, true_T = log_mel(samples_N, MEL), measured_pitch(samples_N[None], MEL)
    pitch_BT = torch.nn.functional.pad(true_T.clamp(min=100.0), (model.overhang, model.overhang), value=100.0)
    voiced_BT = torch.nn.functional.pad((true_T > 0).float(), (model.overhang, model.overhang))
    noise_BN = torch.randn(1, model.num_noise(mel_MT.shape[1]), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        made_N = model(with_silence(mel_MT, model.reach, model.reach)[None], noise_BN, pitch_BT, voiced_BT)[0]
    off_MT = (log_mel(made_N, MEL)[:, : mel_MT.shape[1]] - mel_MT).abs()
    assert float(off_MT.mean()) < 1.0
    assert float(off_MT[:, true_T[0] > 0].mean()) < 0.6


def test_pulses_are_harmonics_of_the_pitch_with_mean_power_1_and_go_on_from_piece_to_piece() -> None:
    pitch_BT = torch.full((1, 81), 125.0)
    whole_BN, end_B = pulse_train(pitch_BT, torch.zeros(1), hop=50, sample_rate=4000)
    assert float(whole_BN.square().mean()) == pytest.approx(1.0, rel=0.02)
    spectrum_F = torch.fft.rfft(whole_BN[0]).abs()
    harmonics = spectrum_F[125::125][:15]  # a bin is 1 Hz
    assert float(harmonics.std() / harmonics.mean()) < 0.05
    assert float(spectrum_F.sum() / harmonics.sum()) < 1.2
    pitch_BT = 100.0 + 50.0 * torch.rand(1, 81, generator=torch.Generator().manual_seed(0))
    whole_BN, end_B = pulse_train(pitch_BT, torch.zeros(1), hop=50, sample_rate=4000)
    first_BN, middle_B = pulse_train(pitch_BT[:, :41], torch.zeros(1), hop=50, sample_rate=4000)
    second_BN, last_B = pulse_train(pitch_BT[:, 40:], middle_B, hop=50, sample_rate=4000)
    torch.testing.assert_close(torch.cat([first_BN, second_BN], dim=1), whole_BN, rtol=0, atol=1e-3)
    torch.testing.assert_close(last_B, end_B)


def test_a_minimum_phase_filter_is_over_soonest() -> None:
    """Of all causal filters of its gains, such as the symmetric one that is delayed by half the transform."""
    log_F = torch.sin(torch.linspace(0, 9, 129))[None, None]
    phase = minimum_phase(log_F, 256)
    soonest, symmetric = (
        torch.fft.irfft(torch.polar(log_F.exp(), p), n=256)[0, 0] for p in (phase, torch.zeros_like(phase))
    )
    assert float(soonest[128:].square().sum() / soonest.square().sum()) < 1e-3
    delayed = symmetric.roll(128)
    assert all(a >= b - 1e-4 for a, b in zip(*(f.square().cumsum(0).tolist() for f in (soonest, delayed)), strict=True))


def test_pitch_is_measured_within_a_fiftieth_and_bins_invert() -> None:
    times_N = torch.arange(16000) / 16000
    for hz in (80.0, 143.0, 310.0):
        sound_N = sum((torch.sin(2 * math.pi * hz * k * times_N) / k for k in range(1, 8)), torch.zeros(16000))
        found_T = measured_pitch(0.1 * sound_N[None], MelConfig())[0, 5:-5]
        assert float((found_T / hz - 1.0).abs().max()) < 0.02
    generator = torch.Generator().manual_seed(0)
    hiss_T = measured_pitch(0.1 * torch.randn(1, 16000, generator=generator), MelConfig())[0]
    assert float((hiss_T > 0).float().mean()) < 0.1
    assert not bool(measured_pitch(torch.zeros(1, 4000), MelConfig()).any())
    assert bin_of(torch.tensor([0.0, 60.0, 500.0, 4000.0])).tolist() == [0, 0, 95, 95]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_blocks": 2}, "num_blocks is at least 3 with a harmonic source"),
        ({"mel": {**MEL.model_dump(), "hop_samples": 16}}, "a window of 200 samples is over 12 hops long"),
    ],
)
def test_a_source_whose_pitch_is_not_known_in_time_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        validate({**TOY.model_dump(mode="json"), **changes}, VocoderConfig, where="x")


@pytest.mark.parametrize(("window", "hop"), [(201, 50), (200, 61), (256, 50)])
def test_windows_of_any_length_give_the_same_in_a_stream(window: int, hop: int) -> None:
    mel = MEL.replace(window_samples=window, hop_samples=hop)
    model = toy_vocoder(TOY.replace(mel=mel)).eval()
    mel_MT = log_mel(voice(0.6), mel)
    whole_N, stream = vocoded(model, mel_MT), VocoderStream(model, block_frames=1)
    streamed_N = torch.cat([*(stream.push(mel_MT[:, t : t + 1]) for t in range(mel_MT.shape[1])), stream.finish()])
    assert whole_N.shape == (mel_MT.shape[1] * hop,)
    torch.testing.assert_close(streamed_N, whole_N, rtol=0, atol=1e-3 * float(whole_N.abs().max()))


def test_a_saved_vocoder_is_loaded_and_is_no_speaker(tmp_path: Path) -> None:
    model = toy_vocoder().eval()
    save_model(tmp_path, model, LINEAGE)
    loaded = load_vocoder(tmp_path)
    assert loaded.fingerprint == fingerprint_of(model)
    assert loaded.fingerprint.startswith("vocoder-")
    assert loaded.lineage == LINEAGE
    assert torch.equal(vocoded(loaded.model, mel_of()), vocoded(model, mel_of()))
    with pytest.raises(ConfigError, match="of the family vocoder, and a codec_lm is needed here"):
        load_codec_lm(tmp_path)
    with pytest.raises(ConfigError, match="is a vocoder, which does not speak by itself"):
        open_speaker(tmp_path)


def test_an_inversion_says_its_name_and_refuses_other_mels(tmp_path: Path) -> None:
    model, mel_MT = toy_vocoder().eval(), mel_of()[:, :40]
    save_model(tmp_path, model, LINEAGE)
    named = VocoderInversion(path=tmp_path)
    found = {one.name: one for one in (open_inversion(config, MEL) for config in (GriffinLimInversion(), named))}
    assert list(found) == ["griffin_lim", fingerprint_of(model)]
    for inverter in found.values():
        assert inverter.sound(mel_MT).shape == (40 * MEL.hop_samples,)
        stream = inverter.stream(block_frames=8, seed=1)
        pieces = [stream.push(mel_MT[:, t : t + 8]) for t in range(0, 40, 8)]
        assert torch.cat([*pieces, stream.finish()]).shape == (40 * MEL.hop_samples,)
    with pytest.raises(DataError, match=r"reads mels of num_mels 24.*here they have num_mels 20.*griffin_lim"):
        open_inversion(named, MEL.replace(num_mels=20))
