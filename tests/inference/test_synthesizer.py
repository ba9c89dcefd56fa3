import shutil
from pathlib import Path

import pytest
import torch

from retort.audio.mel_rvq import MelRVQConfig, fit_mel_rvq
from retort.data.tokens import TokenRow
from retort.errors import ConfigError, DataError
from retort.inference.decoding import CodecLMDecoding
from retort.inference.speaker import Request
from retort.inference.synthesizer import Synthesizer
from retort.inference.voices import pick_voices
from retort.nn.guidance import TwoTermGuidance
from tests.inference.speaking import speaking_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speaking_model(tmp_path_factory.mktemp("synthesizer"))


def speak(synthesizer: Synthesizer, *requests: Request, scale: float = 1.0) -> list[torch.Tensor]:
    said = synthesizer.speak(requests, synthesizer.decoding_at(scale), max_frames=6)
    return [s.codes for s in said if s.codes is not None]


def test_a_model_folder_speaks_by_itself(folder: Path) -> None:
    synthesizer = Synthesizer.open(folder)
    assert set(synthesizer.voices) == {"s0", "s1"}
    said = synthesizer.speak([Request("one two", "s0", 1)], None, max_frames=6)[0]
    assert said.codes is not None
    assert said.samples_N.numel() == said.codes.shape[1] * 400
    assert said.sample_rate == 16_000


def test_the_same_request_sounds_the_same_in_any_company(folder: Path) -> None:
    synthesizer = Synthesizer.open(folder)
    wanted = Request("three", "s1", 5)
    alone = speak(synthesizer, wanted)[0]
    together = speak(synthesizer, Request("a much longer text", "s0", 1), wanted)[1]
    assert torch.equal(alone, together)
    assert not torch.equal(alone, speak(synthesizer, Request("three", "s1", 6))[0])


def test_unknown_voices_texts_without_words_and_untrained_guidance_are_refused(folder: Path) -> None:
    synthesizer = Synthesizer.open(folder)
    with pytest.raises(ConfigError, match="no voice 'eve'; this model has s0, s1"):
        speak(synthesizer, Request("one", "eve", 0))
    with pytest.raises(DataError, match="nothing to speak"):
        speak(synthesizer, Request("!!!", "s0", 0))
    speak(synthesizer, Request("one", "s0", 0), scale=2.0)
    with pytest.raises(ConfigError, match="no_text"):
        synthesizer.decoding(CodecLMDecoding(guidance=TwoTermGuidance(scale=2.0, against="no_text")))
    with pytest.raises(ConfigError, match=r"takes no guidance scale as an input, 1\.5 was given"):
        synthesizer.decoding(CodecLMDecoding(scale=1.5))


def test_a_model_with_another_codec_is_refused_with_both_fingerprints(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "model"
    shutil.copytree(folder, moved)
    other = fit_mel_rvq([0.1 * torch.randn(8000)], MelRVQConfig(codebook_size=8, num_codebooks=2, kmeans_iterations=1))
    shutil.rmtree(moved / "codec")
    other.save(moved / "codec")
    with pytest.raises(DataError, match="mel_rvq") as error:
        Synthesizer.open(moved)
    assert other.fingerprint() in str(error.value)
    assert Synthesizer.open(folder).codec.fingerprint() in str(error.value)


def test_voices_are_the_first_long_row_of_each_speaker() -> None:
    def row(name: str, speaker: str, frames: int) -> TokenRow:
        return TokenRow(name, "a", (4,), speaker, "train", torch.full((2, frames), frames), frames / 40)

    voices = pick_voices([row("a", "x", 5), row("b", "x", 50), row("c", "x", 60), row("d", "y", 7), row("e", "y", 9)])
    assert {name: codes.shape[1] for name, codes in voices.items()} == {"x": 50, "y": 9}
