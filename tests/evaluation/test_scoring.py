import pytest
import torch

from retort.evaluation.asr import PocketSphinxConfig, open_recogniser
from retort.evaluation.items import Expected
from retort.evaluation.scoring import Scorers, score_item
from retort.evaluation.speaker import ResemblyzerConfig, open_speaker_encoder
from retort.inference.speaker import Spoken

RATE = 16_000
EXPECTED = Expected("u1", "one two", "ann")


@pytest.fixture(scope="module")
def scorers():
    recogniser = open_recogniser(PocketSphinxConfig(words=("one", "two")))
    return Scorers(recogniser, open_speaker_encoder(ResemblyzerConfig()))


def noise():
    return 0.1 * torch.randn(RATE, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)


def test_a_row_holds_every_score(scorers):
    voice = scorers.encoder.embed(noise(), RATE)
    spoken = Spoken(noise(), RATE, has_eos=False, codes=torch.arange(40))
    row = score_item("student", EXPECTED, spoken, scorers, voice_E=voice)
    assert (row.system, row.id, row.speaker, row.text) == ("student", "u1", "ann", "one two")
    assert row.words == 2
    assert row.wer == (row.substitutions + row.deletions + row.insertions) / 2
    assert row.failure
    assert "no_eos" in row.failure_reasons
    assert row.speaker_similarity == pytest.approx(1.0, abs=1e-5)
    assert (row.duration_s, row.tokens) == (1.0, 40)
    assert (row.recogniser, row.speaker_encoder) == (scorers.recogniser.name, scorers.encoder.name)
    assert len(row.audio_sha256) == len(row.text_sha256) == 64


def test_silence_is_a_failure_without_words_or_voice(scorers):
    row = score_item("student", EXPECTED, Spoken(torch.zeros(RATE), RATE), scorers, voice_E=torch.ones(256))
    assert (row.hypothesis, row.wer, row.speaker_similarity) == ("", 1.0, None)
    assert row.failure_reasons == ("wer", "silence")


def test_nothing_delivered_is_a_row(scorers):
    row = score_item("student", EXPECTED, None, scorers)
    assert row.failure_reasons == ("missing",)
    assert row.audio_sha256 is None


def test_samples_that_are_not_numbers_are_a_row(scorers):
    row = score_item("student", EXPECTED, Spoken(noise() * float("nan"), RATE), scorers, voice_E=torch.ones(256))
    assert "not_finite" in row.failure_reasons
    assert row.hypothesis == ""


def test_the_audio_hash_follows_the_samples(scorers):
    def digest(samples):
        return score_item("student", EXPECTED, Spoken(samples, RATE), scorers).audio_sha256

    assert digest(noise()) == digest(noise())
    assert digest(noise()) != digest(-noise())


def test_smoke_scorers_say_so(scorers):
    assert "not comparable with published numbers" in scorers.note
    assert "resemblyzer" in scorers.note
    assert "resemblyzer" not in Scorers(scorers.recogniser).note
