from pathlib import Path

import pytest
import torch

from retort.audio.files import AudioRejected, read_audio, wav_bytes
from retort.data.digits import DigitsConfig, read_digits
from retort.data.readers_ljspeech import LJSpeechConfig
from retort.data.recordings import AudioConfig, RecordingLoader, trim_silence, without_offset
from retort.data.utterance import Utterance
from tests.orchestration.tiny_runs import tone


def _loader(rate=16000, **changes):
    config = AudioConfig(**{"target_lufs": None, **changes})
    return RecordingLoader(config, rate, LJSpeechConfig(kind="ljspeech", path=Path("unused")))


def _utterance(audio, **changes):
    return Utterance(**{"id": "a", "text": "one", "speaker": "s", "language": "en", "audio": audio, **changes})


def test_a_recording_comes_out_as_it_is_where_nothing_is_asked_for():
    encoded = wav_bytes(tone(0), 16000)
    assert torch.equal(_loader().load(_utterance(encoded)), read_audio(encoded).samples_N)


def test_resampling_and_loudness():
    samples_N = _loader(8000, target_lufs=-30.0).load(_utterance(wav_bytes(tone(0, 1.0), 16000)))
    assert abs(samples_N.numel() - 8000) <= 1
    louder_N = _loader(8000, target_lufs=-24.0).load(_utterance(wav_bytes(tone(0, 1.0), 16000)))
    assert float(louder_N.abs().max() / samples_N.abs().max()) == pytest.approx(10 ** (6 / 20), rel=0.02)


def test_silence_at_the_ends_is_cut_but_for_a_margin():
    padded = torch.cat([torch.zeros(8000), tone(0, 0.5), torch.zeros(16000)])
    samples_N = _loader(trim_silence_dbfs=-50.0).load(_utterance(wav_bytes(padded, 16000)))
    assert abs(samples_N.numel() - (8000 + 2 * 800)) <= 320
    assert torch.equal(trim_silence(torch.zeros(4000), 16000, -50.0), torch.zeros(0))
    middle = torch.cat([tone(0, 0.3), torch.zeros(8000), tone(1, 0.3)])
    assert trim_silence(middle, 16000, -50.0).numel() >= middle.numel() - 320


def test_what_is_left_after_trimming_must_be_long_enough():
    click = torch.zeros(16000)
    click[8000:8400] = 0.3 * torch.sin(torch.arange(400) / 3)
    with pytest.raises(AudioRejected) as error:
        _loader(trim_silence_dbfs=-30.0, min_duration_s=0.5).load(_utterance(wav_bytes(click, 16000)))
    assert error.value.code == "too_short"


@pytest.mark.parametrize(
    ("stated", "code"), [(1.0, None), (1.2, None), (3.0, "wrong_duration"), (0.2, "wrong_duration")]
)
def test_a_stated_duration_that_is_far_off_is_refused(stated, code):
    row = _utterance(wav_bytes(tone(0, 1.0), 16000), duration_s=stated)
    if code is None:
        assert _loader().load(row).numel() == 16000
        return
    with pytest.raises(AudioRejected) as error:
        _loader().load(row)
    assert error.value.code == code
    assert "1.00 s" in error.value.detail


def test_segments_of_one_recording_join_to_it_again(tmp_path):
    path = tmp_path / "long.wav"
    path.write_bytes(wav_bytes(tone(0, 2.0), 16000))
    loader = _loader(max_duration_s=1.5)  # the file is longer than an utterance may be
    first = loader.load(_utterance(path, end_s=0.75))
    second = loader.load(_utterance(path, start_s=0.75))
    assert torch.equal(torch.cat([first, second]), read_audio(path).samples_N)


@pytest.mark.parametrize(
    ("start_s", "end_s", "code"),
    [(5.0, 6.0, "bad_segment"), (0.0, 9.0, "bad_segment"), (0.5, 0.52, "too_short"), (0.0, 1.9, "too_long")],
)
def test_segments_are_held_to_the_limits_of_files(tmp_path, start_s, end_s, code):
    path = tmp_path / "long.wav"
    path.write_bytes(wav_bytes(tone(0, 2.0), 16000))
    with pytest.raises(AudioRejected) as error:
        _loader(max_duration_s=1.5).load(_utterance(path, start_s=start_s, end_s=end_s))
    assert error.value.code == code


def test_digits_sound_as_the_corpus_reader_speaks_them():
    corpus = DigitsConfig(kind="digits", num_strings=2, test_strings=1)
    loader = RecordingLoader(AudioConfig(target_lufs=None), 22050, corpus)
    for row in read_digits(corpus):
        reference = _utterance(b"", id=row.id, text=row.text, speaker=row.speaker)
        heard, spoken = loader.load(reference), read_audio(row.audio).samples_N
        assert heard.shape == spoken.shape
        assert (heard - spoken).abs().max() <= 1 / 32768 + 1e-6


def test_recordings_of_phones_and_what_the_service_streams_are_loaded(tmp_path):
    from retort.serving.formats import SpeechEncoder

    for name in ("mp3", "aac", "opus", "flac", "wav"):
        encoder = SpeechEncoder(name, 24000)
        content = encoder.push(tone(0, 1.0)) + encoder.finish()
        (tmp_path / f"a.{name}").write_bytes(content)
        samples_N = _loader(24000).load(_utterance(tmp_path / f"a.{name}"))
        assert 16000 <= samples_N.numel() < 16000 + 2400


@pytest.mark.parametrize("offset", [0.05, -0.05, 0.3, 0.01])
def test_a_constant_in_a_recording_turns_no_trimming_off(offset):
    padded = torch.cat([torch.zeros(8000), tone(0, 0.5), torch.zeros(16000)])
    loader = _loader(trim_silence_dbfs=-50.0)
    plain_N = loader.load(_utterance(wav_bytes(padded, 16000)))
    shifted_N = loader.load(_utterance(wav_bytes(padded + offset, 16000)))
    assert shifted_N.numel() == plain_N.numel()
    assert torch.allclose(shifted_N, plain_N, atol=1e-4)


def test_a_constant_of_little_counts_where_silence_is_deeper():
    padded = torch.cat([torch.zeros(8000), tone(0, 0.5), torch.zeros(16000)]) + 0.002
    assert _loader(trim_silence_dbfs=-60.0).load(_utterance(wav_bytes(padded, 16000))).numel() < 12000


@pytest.mark.parametrize("seconds", [0.3, 1.0])
def test_a_constant_takes_no_part_in_loudness(seconds):
    loader = _loader(target_lufs=-23.0)
    plain_N, shifted_N = (loader.load(_utterance(wav_bytes(tone(0, seconds) + dc, 16000))) for dc in (0.0, 0.1))
    assert float(shifted_N.std() / plain_N.std()) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("level", [0.5, 0.02, -0.9])
@pytest.mark.parametrize("channels", [1, 2])
def test_nothing_but_a_constant_is_silence(level, channels):
    import io

    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, torch.full((16000, channels), level).numpy(), 16000, format="WAV", subtype="FLOAT")
    with pytest.raises(AudioRejected) as error:
        _loader().load(_utterance(buffer.getvalue()))
    assert error.value.code == "silent"
    # A constant that begins or ends in the recording is a step, and a click at most.
    assert read_audio(wav_bytes(tone(0, 1.0), 16000)).duration_s == 1.0


@pytest.mark.parametrize("level", [0.3, -0.05])
def test_one_channel_of_nothing_but_a_constant_adds_nothing(level):
    import io

    import soundfile

    def stereo(left_N):
        buffer = io.BytesIO()
        soundfile.write(buffer, torch.stack([left_N, torch.full_like(left_N, level)], 1).numpy(), 16000, format="WAV")
        return buffer.getvalue()

    padded = torch.cat([torch.zeros(8000), tone(0, 0.5), torch.zeros(16000)])
    samples_N = _loader(trim_silence_dbfs=-50.0).load(_utterance(stereo(padded)))
    alone_N = _loader(trim_silence_dbfs=-50.0).load(_utterance(wav_bytes(padded / 2, 16000)))
    assert samples_N.numel() == alone_N.numel()
    assert torch.allclose(samples_N, alone_N, atol=1e-4)
    with pytest.raises(AudioRejected) as error:
        _loader().load(_utterance(stereo(torch.zeros(16000))))
    assert error.value.code == "silent"


def test_the_mean_of_a_voice_is_no_constant():
    corpus = DigitsConfig(kind="digits", num_strings=24, test_strings=0)
    for row in read_digits(corpus):
        samples_N = read_audio(row.audio).samples_N
        assert without_offset(samples_N, 22050, 10 ** (-50 / 20)) is samples_N
