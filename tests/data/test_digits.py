import io
import wave

import numpy as np
import pytest

from retort.config import validate
from retort.data.digits import (
    DEFAULT_VOICES,
    DIGIT_WORDS,
    DigitsConfig,
    DigitString,
    digit_strings,
    read_digits,
    speak_string,
)
from retort.errors import ConfigError


def _config(**changes):
    return DigitsConfig(
        **{"kind": "digits", "num_strings": 200, "test_strings": 50, "validation_strings": 20, **changes}
    )


def spoken(text, voice, *, seed=0):
    speech = speak_string(DigitString("", text, voice, "", seed))
    return speech.samples_N, speech.sample_rate


def test_the_list_is_deterministic_and_the_seed_changes_it():
    assert digit_strings(_config()) == digit_strings(_config())
    assert [s.text for s in digit_strings(_config())] != [s.text for s in digit_strings(_config(seed=1))]


def test_counts_ids_lengths_and_voices():
    strings = digit_strings(_config(min_digits=2, max_digits=4))
    assert [sum(s.split == split for s in strings) for split in ("train", "validation", "test")] == [200, 20, 50]
    assert len({s.id for s in strings}) == 270
    assert {len(s.text.split()) for s in strings} == {2, 3, 4}
    assert {word for s in strings for word in s.text.split()} == set(DIGIT_WORDS)
    assert {s.voice for s in strings} == set(DEFAULT_VOICES)


@pytest.mark.parametrize("seed", range(5))
def test_held_out_texts_are_distinct_and_never_trained_on(seed):
    texts = {"train": [], "validation": [], "test": []}
    for string in digit_strings(_config(seed=seed, num_strings=2000, test_strings=100, validation_strings=100)):
        texts[string.split].append(string.text)
    assert len(set(texts["test"])) == 100
    assert not set(texts["test"]) & (set(texts["train"]) | set(texts["validation"]))
    assert not set(texts["validation"]) & set(texts["train"])
    assert {len(text.split()) for text in texts["train"]} == {1, 2, 3, 4, 5}


def test_too_many_test_strings_are_refused_with_the_number_that_fits():
    with pytest.raises(ConfigError, match="only 11 are set aside"):
        validate({"kind": "digits", "num_strings": 1, "test_strings": 12, "max_digits": 2}, DigitsConfig, where="run")


def test_speech_does_not_depend_on_the_order():
    texts = ["three five two", "nine", "zero zero"]
    forward = {text: spoken(text, DEFAULT_VOICES[2]) for text in texts}
    for text in reversed(texts):
        samples_N, sample_rate = spoken(text, DEFAULT_VOICES[2])
        assert sample_rate == 22050
        assert np.array_equal(samples_N, forward[text][0])


def test_the_pitch_after_the_voice_changes_it_and_nonsense_is_refused():
    low, high = (spoken("one", f"en-us+robosoft@{pitch}")[0] for pitch in (20, 90))
    assert not np.array_equal(low[:2000], high[:2000])
    with pytest.raises(ConfigError, match="pitch after @"):
        spoken("one", "en-us@high")


def test_no_default_voice_clips():
    text = " ".join(DIGIT_WORDS)
    assert all(0.2 < np.abs(spoken(text, voice)[0]).max() < 0.99 for voice in DEFAULT_VOICES)


def test_the_corpus_holds_what_is_spoken():
    utterance = next(iter(read_digits(_config())))
    with wave.open(io.BytesIO(utterance.audio)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
        assert file.getframerate() == utterance.sample_rate == 22050
    assert utterance.duration_s == pytest.approx(len(samples) / 22050)
    assert np.array_equal(samples.astype(np.float32), spoken(utterance.text, utterance.speaker, seed=0)[0])


def test_the_embedded_recogniser_hears_the_default_voices(tmp_path):
    import soxr
    from pocketsphinx import Decoder

    grammar = tmp_path / "digits.gram"
    grammar.write_text(f"#JSGF V1.0;\ngrammar d;\npublic <s> = ( {' | '.join(DIGIT_WORDS)} )+;\n")
    decoder = Decoder(jsgf=str(grammar), lm=None, samprate=16000, loglevel="FATAL")
    wrong = 0
    strings = digit_strings(_config(num_strings=40, test_strings=0, validation_strings=0, min_digits=3, max_digits=3))
    for string in strings:
        samples_N, sample_rate = spoken(string.text, string.voice, seed=string.seed)
        at_16k = soxr.resample(np.pad(samples_N, 2205), sample_rate, 16000)
        decoder.start_utt()
        decoder.process_raw((at_16k * 32767).astype("<i2").tobytes(), False, True)
        decoder.end_utt()
        hypothesis = decoder.hyp()
        wrong += hypothesis is None or hypothesis.hypstr != string.text
    # At 1.5 % of the words about two of forty strings go wrong; plain en-us loses three of four.
    assert wrong <= 6
