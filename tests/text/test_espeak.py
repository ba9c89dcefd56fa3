# ruff: noqa: RUF001  (IPA)
import numpy as np
import pytest

from retort.errors import ConfigError, DataError
from retort.text.espeak import phonemes, speak


def _say(text, voice):
    return speak(text, voice=voice, words_per_minute=185).samples_N


@pytest.mark.parametrize("voice", ["en-us+robosoft", "en-us+f5", "en-us+klatt4", "en-us"])
def test_the_same_string_sounds_the_same_whatever_was_spoken_before(voice):
    first = _say("three five two", voice)
    _say("nine nine one six", "en-us+whisper")
    phonemes("some other words", voice="en-us")
    _say("eight", voice)
    assert np.array_equal(first, _say("three five two", voice))


def test_the_seed_changes_a_noisy_voice():
    one, two = (speak("six", voice="en-us+f5", words_per_minute=185, seed=seed).samples_N for seed in (1, 2))
    assert one.shape != two.shape or not np.array_equal(one, two)


def test_phones_and_words_fill_the_audio_without_gaps():
    speech = speak("three five two", voice="en-us+robosoft", words_per_minute=150)
    end_s = len(speech.samples_N) / speech.sample_rate
    for spans in (speech.phones, speech.words):
        assert all(span.end_s > span.start_s for span in spans)
        assert [span.end_s for span in spans[:-1]] == [span.start_s for span in spans[1:]]
        assert spans[-1].end_s == pytest.approx(end_s)
    assert [word.label for word in speech.words] == ["three", "five", "two"]
    assert "".join(phone.label for phone in speech.phones).replace("ˈ", "") == "θɹiːfaɪvtuː"


def test_faster_is_shorter_and_samples_are_in_range():
    slow, fast = (speak("seven", voice="en-us", words_per_minute=wpm).samples_N for wpm in (100, 200))
    assert len(fast) < len(slow)
    assert slow.dtype == np.float32
    assert 0.05 < np.abs(slow).max() <= 1.0


def test_phonemes_are_ipa_and_join_clauses():
    assert phonemes("Hello, world.", voice="en-us") == "həlˈoʊ wˈɜːld"
    assert phonemes("", voice="en-us") == ""


def test_wrong_voice_speed_and_text_are_named():
    with pytest.raises(ConfigError, match="no voice 'en-us-nowhere'"):
        _say("one", "en-us-nowhere")
    with pytest.raises(ConfigError, match="words_per_minute is 10"):
        speak("one", voice="en-us", words_per_minute=10)
    with pytest.raises(DataError, match="no sound"):
        _say("", "en-us")
