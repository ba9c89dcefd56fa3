"""An aligner that is trained on the sound and the texts of espeak-ng alone, against espeak-ng's own times."""

from statistics import median

import pytest
import torch

from retort.audio.files import resample
from retort.audio.mel import MelConfig, log_mel
from retort.data.english import EnglishTexts, english_texts
from retort.errors import DataError
from retort.inference.aligning import Alignment, Misaligned, PhoneAligner, PlausibilityConfig, best_path, segments
from retort.methods.phone_alignment import SpokenPhones, TrainAlignerConfig, equally_long, filled, train_aligner
from retort.models.aligner import PAUSE, Aligner, AlignerConfig, open_aligner, without_stress
from retort.text.espeak import phones_of_all, speak

VOICE, MEL = "en-us", MelConfig()
SMALL = TrainAlignerConfig(dim=64, ctc_steps=200, frame_steps=50, batch_size=8)
NUM_HELD_OUT = 30


class Spoken:
    """A text, its phones, its samples, and when espeak-ng says that each phone begins."""

    def __init__(self, text, phones):
        self.text, self.phones = text, phones
        speech = speak(text, voice=VOICE, words_per_minute=170)
        self.samples_N = resample(torch.from_numpy(speech.samples_N), speech.sample_rate, MEL.sample_rate)
        self.events = [(span.label, span.start_s) for span in speech.phones if span.label]


@pytest.fixture(scope="module")
def spoken():
    config = EnglishTexts(train=150 + NUM_HELD_OUT, validation=0, test=0, random_fraction=1.0, min_words=3, max_words=5)
    texts = [text.text for text in english_texts(config)]
    return [Spoken(*pair) for pair in zip(texts, phones_of_all(texts, voice=VOICE), strict=True)]


def rows(spoken):
    return [SpokenPhones(log_mel(one.samples_N, MEL).T, one.phones) for one in spoken]


@pytest.fixture(scope="module")
def model(spoken):
    return train_aligner(rows(spoken[NUM_HELD_OUT:]), SMALL, voice=VOICE, mel=MEL)


def aligner(model, **limits):
    return PhoneAligner(model, PlausibilityConfig(**limits))


@pytest.mark.slow
def test_phones_begin_where_espeak_says_so(spoken, model):
    errors, tried = [], 0
    for one in spoken[:NUM_HELD_OUT]:
        found = aligner(model).align(one.samples_N, one.phones)
        starts = [start for label, start in zip(found.labels, found.starts_s(), strict=True) if label]
        if tuple(label for label, _ in one.events) == one.phones:  # espeak-ng cuts the names of long ones
            tried += 1
            errors += [abs(a - b) * MEL.frame_rate for a, (_, b) in zip(starts, one.events, strict=True)]
    assert tried > NUM_HELD_OUT / 2
    assert len(errors) > 200
    assert median(errors) < 1.5
    assert sum(error > 5 for error in errors) / len(errors) < 0.1


@pytest.mark.slow
def test_phones_and_pauses_fill_the_recording_in_the_texts_order(spoken, model):
    for one in spoken[:5]:
        found = aligner(model).align(one.samples_N, one.phones)
        assert tuple(label for label in found.labels if label) == one.phones
        assert sum(found.frames) == 1 + one.samples_N.numel() // MEL.hop_samples
        assert min(found.frames) >= 1
        assert found.frame_rate == 80


@pytest.mark.slow
def test_a_text_that_is_not_said_is_rejected_and_one_that_is_is_not(spoken, model):
    said, swapped = [], []
    held_out = spoken[:NUM_HELD_OUT]
    for one, other in zip(held_out, held_out[1:] + held_out[:1], strict=True):
        said.append(fault(model, one.samples_N, one.phones))
        swapped.append(fault(model, one.samples_N, other.phones))
    assert said.count(None) >= 0.95 * NUM_HELD_OUT
    assert swapped.count(None) <= 0.05 * NUM_HELD_OUT
    assert set(swapped) - {None} <= {"unlikely_alignment", "long_phone", "squeezed_phones", "too_many_phones"}


@pytest.mark.slow
def test_half_of_a_text_that_is_missing_is_noticed(spoken, model):
    cut = [fault(model, one.samples_N[: one.samples_N.numel() // 2], one.phones) for one in spoken[:NUM_HELD_OUT]]
    assert cut.count(None) <= 0.05 * NUM_HELD_OUT


def fault(model, samples_N, phones, **limits):
    try:
        aligner(model, **limits).align(samples_N, phones)
    except Misaligned as fault:
        return fault.code
    return None


@pytest.mark.slow
def test_each_reason_has_its_code(spoken, model):
    one = spoken[0]
    assert fault(model, one.samples_N, ()) == "unspeakable_text"
    assert fault(model, one.samples_N, (*one.phones, "☃")) == "unknown_phone"
    assert fault(model, one.samples_N[:3000], one.phones) == "too_many_phones"
    assert fault(model, one.samples_N, one.phones, min_log_prob=0.0) == "unlikely_alignment"
    assert fault(model, one.samples_N, one.phones, max_phone_s=0.02) == "long_phone"
    quick = one.samples_N[: len(one.phones) * MEL.hop_samples]
    assert fault(model, quick, one.phones, min_log_prob=-1e9) == "squeezed_phones"


def test_training_is_repeatable_and_leaves_torchs_random_state_alone(spoken):
    few, short = rows(spoken[:20]), SMALL.replace(flat_steps=2, ctc_steps=3, frame_steps=2, rounds=1)
    state = torch.get_rng_state()
    steps = []
    one = train_aligner(few, short, voice=VOICE, mel=MEL, on_step=lambda *told: steps.append(told[:2]))
    assert torch.equal(torch.get_rng_state(), state)
    assert steps == [(done, 7) for done in range(1, 8)]
    assert train_aligner(few, short, voice=VOICE, mel=MEL).fingerprint() == one.fingerprint()
    assert train_aligner(few, short.replace(seed=1), voice=VOICE, mel=MEL).fingerprint() != one.fingerprint()


def test_a_flat_start_shares_what_is_heard_equally_and_leaves_pauses_alone():
    quiet_T = torch.tensor([True, False, False, False, True, False, False, False, False, True])
    found = equally_long(torch.tensor([3, 1, 2]), quiet_T)
    assert found is not None
    assert found.tolist() == [PAUSE, 3, 3, 3, PAUSE, 1, 1, 2, 2, PAUSE]
    assert equally_long(torch.arange(1, 9), quiet_T) is None


def test_nothing_to_learn_from_is_told():
    silent = [SpokenPhones(torch.zeros(10, MEL.num_mels), ()), SpokenPhones(torch.zeros(3, MEL.num_mels), ("a",) * 9)]
    with pytest.raises(DataError, match="no recording has phones"):
        train_aligner(silent, SMALL, voice=VOICE, mel=MEL)


def test_a_saved_aligner_opens_as_it_was_and_a_changed_one_does_not(tmp_path):
    one = Aligner(AlignerConfig(voice=VOICE, phones=("a", "b"), dim=8)).eval()
    one.save(tmp_path)
    again = open_aligner(tmp_path)
    assert again.config == one.config
    mel = torch.randn(1, 20, MEL.num_mels)
    assert torch.equal(again(mel), one(mel))
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"en-us"', '"en-gb"'))
    with pytest.raises(DataError, match="changed or damaged"):
        open_aligner(tmp_path)
    config.write_text("{}")
    with pytest.raises(DataError, match="run `retort align`"):
        open_aligner(tmp_path)


def test_the_best_path_is_the_best_of_all_that_say_the_phones():
    torch.manual_seed(0)
    log_probs = torch.randn(6, 3).log_softmax(dim=-1)
    classes = torch.tensor([1, 2, 2])

    def says(path):
        merged = [c for place, c in enumerate(path) if c != PAUSE and (place == 0 or path[place - 1] != c)]
        return merged == classes.tolist()

    paths = [p for p in torch.cartesian_prod(*[torch.arange(3)] * 6).tolist() if says(p)]
    best = max(paths, key=lambda path: float(log_probs[range(6), path].sum()))
    found, scores = best_path(log_probs, classes)
    assert found.tolist() == best
    assert torch.allclose(scores, log_probs[range(6), best])
    assert sum(segments(found, ["a", "b", "b"])[1]) == 6
    with pytest.raises(Misaligned):
        best_path(log_probs[:3], classes)


def test_between_peaks_frames_go_to_the_nearer_phone_unless_they_are_quiet():
    path = torch.tensor([0, 0, 3, 0, 0, 0, 0, 5, 0, 0])
    quiet = torch.zeros(10, dtype=torch.bool)
    assert filled(path, quiet).tolist() == [3, 3, 3, 3, 3, 5, 5, 5, 5, 5]
    quiet[[0, 5, 9]] = True
    assert filled(path, quiet).tolist() == [0, 3, 3, 3, 3, 0, 5, 5, 5, 0]


def test_times_are_of_the_middle_between_two_frames():
    found = Alignment(("", "a", "b"), (2, 3, 1), 80.0, -0.1)
    assert found.starts_s() == [0.0, 1.5 / 80, 4.5 / 80]


def test_phones_of_a_text_are_those_that_espeak_says():
    text = "One two, three."
    said = [span.label for span in speak(text, voice=VOICE, words_per_minute=170).phones if span.label]
    (phones,) = phones_of_all([text], voice=VOICE)
    assert list(phones) == said
    assert [len(found) for found in phones_of_all(["", "one"], voice=VOICE)] == [0, 3]
    assert without_stress(("\u02c8a", "\u02ccb", "c")) == ("a", "b", "c")
