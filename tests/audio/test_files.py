import io
import math
import pickle
from pathlib import Path

import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retort.audio.files import (
    AudioLimits,
    AudioRejected,
    normalise_loudness,
    read_audio,
    resample,
    wav_bytes,
    write_wav,
)

RATE = 16000
RECORDINGS = Path(__file__).parents[2] / ".." / "shared" / "data"


def noise(num_samples: int = RATE, *, level: float = 0.1, num_channels: int = 1) -> torch.Tensor:
    samples_NC = level * torch.randn(num_samples, num_channels, generator=torch.Generator().manual_seed(0))
    return samples_NC.clamp(-1, 1).squeeze(1)


def encoded(samples: torch.Tensor, file_format: str = "WAV", subtype: str | None = None, rate: int = RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples.numpy(), rate, format=file_format, subtype=subtype)
    return buffer.getvalue()


def code_of(source: Path | bytes, limits: AudioLimits | None = None) -> str:
    with pytest.raises(AudioRejected) as caught:
        read_audio(source, limits=limits or AudioLimits())
    assert caught.value.exit_code == 3
    assert caught.value.detail
    return caught.value.code


@given(st.lists(st.integers(-32768, 32767), max_size=20), st.sampled_from([8000, 22050, 44100]))
@settings(max_examples=50, deadline=None)
def test_pcm16_comes_back_bit_for_bit(integers: list[int], rate: int) -> None:
    samples_N = torch.tensor([*integers, 1]).float() / 32768
    anything = AudioLimits(min_duration_s=0.0, silence_dbfs=-200.0, max_clipped_fraction=1.0)
    audio = read_audio(wav_bytes(samples_N, rate), limits=anything)
    assert torch.equal(audio.samples_N, samples_N)
    assert (audio.sample_rate, audio.duration_s) == (rate, len(samples_N) / rate)


def test_wav_header_sizes_are_right() -> None:
    content = wav_bytes(noise(1001), RATE)
    assert len(content) == 44 + 2002
    assert int.from_bytes(content[4:8], "little") == len(content) - 8
    assert int.from_bytes(content[40:44], "little") == 2002


def test_written_file_reads_back_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", noise(), RATE)
    assert torch.allclose(read_audio(tmp_path / "a.wav").samples_N, noise(), atol=1 / 32768)
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_samples_are_not_written(tmp_path: Path, value: float) -> None:
    samples_N = noise(100)
    samples_N[50] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        write_wav(tmp_path / "a.wav", samples_N, RATE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("file_format", "subtype"),
    [("WAV", "PCM_24"), ("WAV", "FLOAT"), ("FLAC", None), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)],
)
def test_whole_files_are_read_and_cut_files_are_refused(file_format: str, subtype: str | None) -> None:
    content = encoded(noise(), file_format, subtype)
    audio = read_audio(content)
    assert audio.samples_N.shape == (RATE,)
    # Lossy formats may shift and smear noise, so their loudness is what is compared.
    assert math.isclose(audio.samples_N.std(), noise().std(), rel_tol=0.3)
    assert code_of(content[: len(content) * 2 // 3]) == "truncated"


def test_the_highest_rate_is_read_and_resampled() -> None:
    audio = read_audio(encoded(noise(19_200), rate=192_000))
    assert (audio.sample_rate, audio.duration_s) == (192_000, 0.1)
    assert abs(resample(audio.samples_N, 192_000, 16_000).numel() - 1600) <= 1


def test_stereo_is_averaged() -> None:
    stereo_NC = noise(num_channels=2)
    assert torch.allclose(read_audio(encoded(stereo_NC)).samples_N, stereo_NC.mean(dim=1), atol=1e-4)


def test_float_files_beyond_full_scale_are_scaled() -> None:
    loud_N = noise(level=0.3) * 10
    samples_N = read_audio(encoded(loud_N, subtype="FLOAT")).samples_N
    assert torch.allclose(samples_N, loud_N / loud_N.abs().max(), atol=1e-6)


def test_every_block_of_a_long_file_arrives() -> None:
    samples_N = noise(600_000)
    assert torch.allclose(read_audio(encoded(samples_N, "FLAC")).samples_N, samples_N, atol=1e-4)


def bad_audio() -> dict[str, tuple[bytes, str]]:
    huge_wav = bytearray(encoded(noise()))
    huge_wav[40:44] = b"\xff" * 4
    forged_flac = bytearray(encoded(noise(), "FLAC"))
    forged_flac[18:21] = bytes([0x9F, 0xFF, 0xF0 | forged_flac[20] & 15])
    huge_flac = bytearray(encoded(noise(), "FLAC"))
    huge_flac[22:26] = b"\xff" * 4
    spoiled_N = noise()
    spoiled_N[7] = math.nan
    return {
        "no bytes": (b"", "empty"),
        "zero samples": (encoded(noise(0)), "empty"),
        "NaN": (encoded(spoiled_N, subtype="FLOAT"), "non_finite"),
        "infinity": (encoded(noise() / 0.0, subtype="FLOAT"), "non_finite"),
        "8 channels": (encoded(noise(num_channels=8)), "too_many_channels"),
        "8 channels at 192 kHz": (encoded(noise(num_channels=8), rate=192_000), "too_many_channels"),
        "192.001 kHz": (encoded(noise(), rate=192_001), "bad_sample_rate"),
        "text": (b"This is a text file, whatever its name is.\n" * 50, "unreadable"),
        "HTML": (b"<!doctype html><html><body>not found</body></html>", "unreadable"),
        "only a RIFF header": (encoded(noise())[:12], "unreadable"),
        "header claims 4 GB": (bytes(huge_wav), "truncated"),
        "FLAC claims 2**32 samples": (bytes(huge_flac), "truncated"),
        "FLAC with a forged rate": (bytes(forged_flac), "bad_sample_rate"),
        "2 kHz": (encoded(noise(), rate=2000), "bad_sample_rate"),
        "too short": (encoded(noise(100)), "too_short"),
        "121 s in a small file": (encoded(torch.zeros(121 * RATE), "FLAC"), "too_long"),
        "silence": (encoded(torch.zeros(RATE)), "silent"),
        "faint hiss": (encoded(noise(level=1e-4), subtype="FLOAT"), "silent"),
        "clipped": (encoded(noise(level=5.0)), "clipped"),
    }


@pytest.mark.parametrize("name", bad_audio())
def test_bad_audio_is_rejected_with_its_code(tmp_path: Path, name: str) -> None:
    content, code = bad_audio()[name]
    (tmp_path / "a.wav").write_bytes(content)
    assert code_of(content) == code
    assert code_of(tmp_path / "a.wav") == code


def test_paths_that_hold_no_file_are_rejected(tmp_path: Path) -> None:
    assert code_of(tmp_path / "none.wav") == "missing_file"
    assert code_of(tmp_path) == "unreadable"


def test_limits_on_bytes_seconds_and_samples_act_alone() -> None:
    content = encoded(noise(), "FLAC")
    assert code_of(content, AudioLimits(max_bytes=1000)) == "too_large"
    assert code_of(content, AudioLimits(max_duration_s=0.99)) == "too_long"
    assert code_of(content, AudioLimits(max_samples=RATE - 1)) == "too_long"
    # A forged rate makes a second hold more samples; their number is limited all the same.
    assert code_of(encoded(noise(), "FLAC", rate=192000), AudioLimits(max_samples=RATE - 1)) == "too_long"
    exact = AudioLimits(max_bytes=len(content), max_duration_s=1.0, min_duration_s=1.0, max_samples=RATE)
    assert read_audio(content, limits=exact).duration_s == 1.0


def test_rejection_survives_a_trip_between_processes() -> None:
    rejection = pickle.loads(pickle.dumps(AudioRejected("silent", "nothing to hear")))
    assert (rejection.code, rejection.detail) == ("silent", "nothing to hear")
    assert str(rejection) == "silent: nothing to hear"


@pytest.mark.parametrize(("source", "target"), [(8000, 16000), (22050, 16000), (44100, 16000), (16000, 24000)])
@pytest.mark.parametrize("num_samples", [1, 799, 16000])
def test_resampled_length_follows_the_rates(source: int, target: int, num_samples: int) -> None:
    assert abs(len(resample(noise(num_samples), source, target)) - num_samples * target / source) <= 1


def test_resampling_keeps_a_tone_and_the_same_rate_is_a_copy() -> None:
    tone_N = 0.5 * torch.sin(2 * math.pi * 440 * torch.arange(22050) / 22050)
    resampled_N = resample(tone_N, 22050, RATE)
    expected_N = 0.5 * torch.sin(2 * math.pi * 440 * torch.arange(len(resampled_N)) / RATE)
    assert torch.allclose(resampled_N[500:-500], expected_N[500:-500], atol=1e-3)
    assert torch.equal(resample(tone_N, RATE, RATE), tone_N)


@pytest.mark.parametrize("level", [0.0008, 0.1, 0.5])
@pytest.mark.parametrize("target_lufs", [-16.0, -23.0])
def test_loudness_hits_the_target(level: float, target_lufs: float) -> None:
    import torchaudio

    loud_N = normalise_loudness(noise(3 * RATE, level=level), RATE, target_lufs)
    assert abs(float(torchaudio.functional.loudness(loud_N[None], RATE)) - target_lufs) < 0.5


def test_short_sounds_are_scaled_by_their_power() -> None:
    loud_N = normalise_loudness(noise(RATE // 4), RATE, -20.0)
    assert math.isclose(10 * math.log10(loud_N.square().mean()) - 0.691, -20.0, abs_tol=0.01)


def test_the_peak_limit_wins_over_the_target_and_silence_stays() -> None:
    click_N = noise(RATE, level=0.001)
    click_N[5000] = 0.9
    assert math.isclose(normalise_loudness(click_N, RATE, -6.0).abs().max(), 0.99, rel_tol=1e-5)
    for num_samples in (0, 100, RATE):
        assert torch.equal(normalise_loudness(torch.zeros(num_samples), RATE, -20.0), torch.zeros(num_samples))


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason="the recordings of ../shared/data are not here")
def test_real_recordings_are_read_and_written_back_bit_for_bit() -> None:
    paths = [*sorted(RECORDINGS.glob("ljspeech/wavs/*.wav")), *sorted(RECORDINGS.glob("fsdd/*.wav"))[:20]]
    assert len(paths) == 25
    for path in paths:
        audio = read_audio(path)
        again = read_audio(wav_bytes(audio.samples_N, audio.sample_rate))
        assert torch.equal(again.samples_N, audio.samples_N)
        assert 0.1 < audio.duration_s < 12
