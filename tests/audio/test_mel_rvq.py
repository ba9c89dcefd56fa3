import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retort.audio.codec import MelRVQConfig, open_codec
from retort.audio.codec_files import read_codec_weights, write_codec_folder
from retort.audio.files import read_audio, resample
from retort.audio.mel import MelConfig, log_mel
from retort.audio.mel_rvq import MelRVQ, fit_mel_rvq, nearest, soft_floored_log_mel, without_soft_floor
from retort.errors import DataError

RECORDINGS = Path(__file__).parents[2] / ".." / "shared" / "data"
CONFIG = MelRVQConfig(num_codebooks=3, codebook_size=32, griffin_lim_iterations=8)


def voice(seed: int, num_samples: int = 24000) -> torch.Tensor:
    """A buzz whose pitch and colour wander: enough structure for codebooks to have something to learn."""
    generator = torch.Generator().manual_seed(seed)
    knots = torch.rand(8, generator=generator)[None, None]
    contour_N = torch.nn.functional.interpolate(knots, num_samples, mode="linear")[0, 0]
    phase_N = torch.cumsum(2 * math.pi * (90 + 120 * contour_N) / 16000, dim=0)
    harmonics = torch.arange(1, 20)
    weights_HN = torch.exp(-((harmonics[:, None] / 20 - contour_N.flip(0)) ** 2) * 20)
    buzz_N = (weights_HN * torch.sin(harmonics[:, None] * phase_N)).sum(0)
    return 0.05 * buzz_N + 0.002 * torch.randn(num_samples, generator=generator)


@pytest.fixture(scope="module")
def codec() -> MelRVQ:
    return fit_mel_rvq([voice(seed) for seed in range(12)], CONFIG)


def distortion(codec: MelRVQ, samples_N: torch.Tensor, num_codebooks: int) -> float:
    wanted_MT = log_mel(samples_N, codec.config.mel).clamp(min=-6)
    decoded_MT = codec.decode_log_mel(codec.encode(samples_N)[:num_codebooks]).clamp(min=-6)
    length = min(wanted_MT.shape[1], decoded_MT.shape[1])
    return float((wanted_MT[:, :length] - decoded_MT[:, :length]).abs().mean())


def test_more_codebooks_lower_the_distortion_of_unheard_audio(codec: MelRVQ) -> None:
    distances = [sum(distortion(codec, voice(seed), k) for seed in range(50, 54)) for k in (1, 2, 3)]
    assert distances == sorted(distances, reverse=True)
    assert distances[2] < 0.9 * distances[0]


def test_residual_error_on_the_fitted_audio_falls_with_the_codebook_size() -> None:
    recordings = [voice(seed) for seed in range(6)]
    errors = [
        sum(
            distortion(fit_mel_rvq(recordings, CONFIG.replace(num_codebooks=1, codebook_size=size)), x, 1)
            for x in recordings
        )
        for size in (2, 8, 64)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.6 * errors[0]


@given(st.integers(0, 5000))
@settings(max_examples=25, deadline=None)
def test_length_law(codec: MelRVQ, num_samples: int) -> None:
    codes_KT = codec.encode(voice(1, 5000)[:num_samples])
    assert codes_KT.dtype == torch.int64
    assert codes_KT.shape == (3, math.ceil(num_samples / 400))
    assert 0 <= codec.decode(codes_KT).numel() - num_samples < codec.samples_per_token
    assert (codec.frame_rate, codec.sample_rate) == (40.0, 16000)


def test_silence_is_code_zero_and_stays_silent(codec: MelRVQ) -> None:
    codes_KT = codec.encode(torch.zeros(4000))
    assert torch.equal(codes_KT, torch.zeros(3, 10, dtype=torch.int64))
    assert codec.decode(codes_KT).abs().max() < 1e-6


def test_same_audio_same_codes_and_same_seed_same_codec(codec: MelRVQ) -> None:
    assert torch.equal(codec.encode(voice(3)), codec.encode(voice(3)))
    recordings = [voice(seed) for seed in range(12)]
    assert fit_mel_rvq(iter(recordings), CONFIG).fingerprint() == codec.fingerprint()
    assert fit_mel_rvq(recordings, CONFIG.replace(fit_seed=1)).fingerprint() != codec.fingerprint()


@given(st.integers(1, 5000), st.lists(st.integers(1, 5), min_size=13, max_size=13))
@settings(max_examples=25, deadline=None)
def test_a_stream_gives_the_bits_of_the_whole_however_it_is_cut(
    codec: MelRVQ, num_samples: int, widths: list[int]
) -> None:
    codes_KT = codec.encode(voice(1, num_samples))
    stream, parts, at = codec.stream(), [], 0
    for width in widths:
        parts.append(stream.push(codes_KT[:, at : at + width]))
        at += width
    assert torch.equal(torch.cat([*parts, stream.finish()]), codec.decode(codes_KT))


@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 20))
@settings(max_examples=30, deadline=None)
def test_nearest_equals_the_slow_search(seed: int, num_points: int, num_centroids: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    points_TD = torch.randn(num_points, 5, generator=generator)
    centroids_VD = torch.randn(num_centroids, 5, generator=generator)
    for point_D, index in zip(points_TD, nearest(points_TD, centroids_VD), strict=True):
        distances = [float((point_D - centroid_D).square().sum()) for centroid_D in centroids_VD]
        assert distances[index] <= min(distances) + 1e-5


def test_nearest_takes_the_first_of_equals_in_every_chunk() -> None:
    points_TD = torch.arange(10_000.0).remainder(3)[:, None]
    centroids_VD = torch.tensor([[1.0], [0.0], [2.0], [1.0]])
    assert torch.equal(nearest(points_TD, centroids_VD), torch.tensor([1, 0, 2]).repeat(3334)[:10_000])


def test_identical_frames_still_fit() -> None:
    codec = fit_mel_rvq([torch.zeros(400 * 40)], CONFIG)
    assert codec.decode(codec.encode(torch.zeros(800))).abs().max() < 1e-6


def test_too_little_audio_is_refused() -> None:
    with pytest.raises(DataError, match="3 tokens of audio cannot fill codebooks of 32"):
        fit_mel_rvq([voice(0, 1000)], CONFIG)
    with pytest.raises(DataError, match="0 tokens"):
        fit_mel_rvq([], CONFIG)


@pytest.mark.parametrize("bad", [torch.full((3, 2), 32), torch.full((3, 2), -1), torch.zeros(4, 2), torch.zeros(2)])
def test_codes_of_another_codec_are_refused(codec: MelRVQ, bad: torch.Tensor) -> None:
    with pytest.raises(DataError, match="3 codebooks of 32 entries"):
        codec.decode(bad.long())


def test_saved_codec_opens_with_the_same_fingerprint_and_codes(codec: MelRVQ, tmp_path: Path) -> None:
    codec.save(tmp_path / "codec")
    opened = open_codec(tmp_path / "codec")
    assert opened.fingerprint() == codec.fingerprint()
    assert opened.fingerprint().startswith("mel_rvq-")
    codes_KT = codec.encode(voice(20))
    assert torch.equal(opened.encode(voice(20)), codes_KT)
    assert torch.equal(opened.decode(codes_KT), codec.decode(codes_KT))


@pytest.mark.parametrize("name", ["means_D", "scales_D", "centroids_KVD"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(codec: MelRVQ, tmp_path: Path, name: str, value: float) -> None:
    codec.save(tmp_path)
    weights, fingerprint = read_codec_weights(tmp_path)
    weights[name].view(-1)[:2] = value
    write_codec_folder(tmp_path, codec.config, weights, fingerprint)
    with pytest.raises(DataError, match=rf"no numbers: {name} holds 2 (NaN|infinite) of .*; fit or import the codec"):
        open_codec(tmp_path)


def test_other_rates_and_stacks_keep_the_laws() -> None:
    mel = MelConfig(sample_rate=8000, num_mels=40, hop_samples=80, window_samples=256, fft_size=256, f_max_hz=4000.0)
    config = CONFIG.replace(mel=mel, frames_per_token=5)
    codec = fit_mel_rvq([voice(seed) for seed in range(4)], config)
    assert codec.frame_rate == 20.0
    assert codec.decode(codec.encode(voice(9, 801))).shape == (1200,)


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason="the recordings of ../shared/data are not here")
def test_real_speech_keeps_its_spectrum() -> None:
    recordings = []
    for path in sorted(RECORDINGS.glob("ljspeech/wavs/*.wav")):
        audio = read_audio(path)
        recordings.append(resample(audio.samples_N, audio.sample_rate, 16000))
    codec = fit_mel_rvq(recordings, MelRVQConfig())
    samples_N = recordings[0]
    wanted_MT = log_mel(samples_N, codec.config.mel)
    rebuilt_MT = log_mel(codec.decode(codec.encode(samples_N)), codec.config.mel)[:, : wanted_MT.shape[1]]
    assert (rebuilt_MT - wanted_MT)[wanted_MT > -6].abs().mean() < 0.35


def test_the_log_mel_that_is_quantised_gives_the_codes_and_has_a_way_back(codec: MelRVQ) -> None:
    samples_N = voice(60, 9_700)
    mel_TM = soft_floored_log_mel(samples_N, codec.config)
    codes_KT = codec.encode(samples_N)
    assert mel_TM.shape == (codes_KT.shape[1] * codec.config.frames_per_token, codec.config.mel.num_mels)
    assert torch.equal(codec.encode_log_mel(mel_TM), codes_KT)
    assert float(mel_TM.min()) >= math.log(codec.config.soft_floor)
    # The last token is padded with silence.
    plain_TM = log_mel(samples_N, codec.config.mel).T[: len(mel_TM) - 2 * codec.config.frames_per_token]
    back_TM = without_soft_floor(mel_TM, codec.config)[: len(plain_TM)]
    assert torch.allclose(back_TM.exp(), plain_TM.exp(), atol=1e-5, rtol=1e-3)
