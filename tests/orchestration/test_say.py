"""``retort say``: a text that the model cannot read, wholly or in part."""

import logging
from pathlib import Path

import pytest

from retort.audio.files import read_audio
from retort.errors import DataError
from retort.orchestration.say import say
from tests.inference.speaking import speaking_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speaking_model(tmp_path_factory.mktemp("say"), mean_frames=20)


@pytest.mark.parametrize("text", ["\u4f60\u597d\uff0c\u4e16\u754c", "\u043f\u0440\u0438\u0432\u0435\u0442", "\u3053"])
def test_a_text_of_nothing_that_the_model_reads_is_refused(model: Path, tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match="none of the letters") as error:
        say(text, model, tmp_path / "a.wav")
    assert error.value.exit_code == 3
    assert not (tmp_path / "a.wav").exists()


def test_what_it_does_not_read_among_the_rest_is_told(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        summary = say("one \u4f60\u597d two \u4f60", model, tmp_path / "a.wav", seed=1)
    assert summary["unread"] == "\u4f60\u597d"
    assert "\u4f60 \u597d" in caplog.text
    assert read_audio(tmp_path / "a.wav").duration_s == pytest.approx(summary["seconds"], abs=0.001)
    caplog.clear()
    assert say("one two", model, tmp_path / "b.wav", seed=1)["unread"] == ""
    assert [one for one in caplog.records if one.name.startswith("retort") and one.levelno >= logging.WARNING] == []
