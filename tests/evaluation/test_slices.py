"""Strings asked for in a harder way: what is asked, of whom, and that plain and hard are the same strings in pairs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from retort.data.tokens import TokenSet, write_shard
from retort.errors import DataError, RetortError
from retort.evaluation.items import Expected, ItemResult, failed_item
from retort.evaluation.judge import Judge, System, TestStrings
from retort.evaluation.results import BootstrapConfig
from retort.evaluation.slices import cut_in_a_word, is_in, sum_up, without_end
from retort.inference.opening import open_speaker
from retort.inference.speaker import Request, Spoken
from retort.inference.voices import CODES
from tests.evaluation.judging import row, scorers
from tests.inference.speaking import speaking_model

TEXTS = {"p0": "one two.", "p1": "Three!? ", "p2": "four five", "p3": "six (seven)"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Beside its token set, with test rows of which three end in punctuation."""
    folder = speaking_model(tmp_path_factory.mktemp("slices"), gain=30.0)
    like = next(iter(TokenSet.open(folder.parent / "data").split("train")))
    rows = [
        replace(like, id=name, text=text, split="test", codes_KT=torch.full((2, 9), number))
        for number, (name, text) in enumerate(TEXTS.items())
    ]
    write_shard(folder.parent / "data" / "part-1.parquet", rows)
    return folder


def judge_of(model: Path) -> Judge:
    strings = TestStrings(model.parent / "data", split="test", count=len(TEXTS))
    return Judge(strings, scorers(), max_frames=60, seed=0)


class Listening:
    """A service that notes what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[Request] = []

    def speak(self, requests: Sequence[Request]) -> list[Spoken | RetortError]:
        """Half a second of noise for each."""
        self.asked += requests
        return [Spoken(0.1 * torch.randn(8000), 16_000) for _ in requests]


@given(st.text())
def test_without_its_end_a_text_is_its_beginning_and_ends_in_no_punctuation(text: str) -> None:
    plain = without_end(text)
    assert text.startswith(plain)
    assert without_end(plain) == plain
    assert not any(map(str.isalnum, text[len(plain) :]))


def test_only_strings_that_end_in_punctuation_are_asked_for_without_it(model: Path) -> None:
    judge, service = judge_of(model), Listening()
    ids = judge.strings.ids_in("no_final_punctuation")
    assert ids == ["p0", "p1", "p3"]
    hard = judge.judge(System("s", "endpoint", service=service), ids, slice_name="no_final_punctuation")
    assert [request.text for request in service.asked] == ["one two", "Three", "six (seven"]
    judge.judge(System("s", "endpoint", service=service), ids)
    assert [request.seed for request in service.asked[3:]] == [request.seed for request in service.asked[:3]]
    assert [verdict.item.text for verdict in hard] == [TEXTS[name] for name in ids], "scored against the same text"


def test_a_slice_without_strings_is_refused(tmp_path: Path) -> None:
    from tests.evaluation.judging import token_set

    data = token_set(tmp_path, [row("u0", "a", "test", torch.ones(2, 4).long())])
    strings = TestStrings(data, split="test", count=1)
    with pytest.raises(DataError, match="no_final_punctuation has nothing of the 1 strings: none of them ends in"):
        strings.ids_in("no_final_punctuation")
    with pytest.raises(DataError, match="cut_prompt has nothing of the 1 strings: none of them has a prompt"):
        strings.ids_in("cut_prompt")


class Bursts:
    """A codec whose frames are as loud as their first code says."""

    def decode(self, codes_KT: Tensor) -> Tensor:
        """Ten samples a frame."""
        return codes_KT[0].float().repeat_interleave(10) / 100


def test_a_prompt_is_cut_at_the_loudest_moment_of_its_middle() -> None:
    loudness = torch.tensor([90, 0, 0, 5, 50, 7, 0, 0, 99, 99])
    codes_KP = torch.stack([loudness, torch.arange(10)])
    assert torch.equal(cut_in_a_word(Bursts(), codes_KP), codes_KP[:, :5])  # type: ignore[arg-type]
    for frames in range(2, 12):
        cut = cut_in_a_word(Bursts(), codes_KP[:, :frames])  # type: ignore[arg-type]
        assert 1 <= cut.shape[1] <= frames
        assert torch.equal(cut, codes_KP[:, : cut.shape[1]]), "a beginning"
    assert not is_in("cut_prompt", row("u", "a", "test", codes_KP), codes_KP[:, :1])


def test_a_model_gets_the_cut_recording_as_its_voice(model: Path) -> None:
    judge, speaker = judge_of(model), open_speaker(model)
    one = judge.strings.rows["p0"]
    prompt_KP, voice = judge.strings.prompt_for(one), judge.strings.voice_for(one, speaker, is_cut=True)
    assert prompt_KP is not None
    assert voice is not None
    cut_KQ = voice.tensors[CODES]
    assert 1 <= cut_KQ.shape[1] < prompt_KP.shape[1]
    system, ids = System("m", "model", speaker), judge.strings.ids_in("cut_prompt")
    assert ids == list(TEXTS)
    plain = [verdict.item.audio_sha256 for verdict in judge.judge(system, ids)]
    hard = [verdict.item.audio_sha256 for verdict in judge.judge(system, ids, slice_name="cut_prompt")]
    assert plain != hard
    assert [verdict.item.audio_sha256 for verdict in judge.judge(system, ids)] == plain


def test_a_slice_is_told_beside_the_same_strings_asked_for_plainly() -> None:
    def item(system: str, number: int, wrong: int) -> ItemResult:
        found = failed_item(system, Expected(f"u{number:02d}", "one two"))
        return replace(
            found, hypothesis="one", deletions=wrong, wer=wrong / 2, failure=False, failure_reasons=(), error=None
        )

    plain = [item(system, n, 0) for system in ("a", "b") for n in range(20)]
    hard = [item("a", n, 1) for n in range(10)] + [item("b", n, n % 2) for n in range(10)]
    a, b = sum_up("cut_prompt", plain, hard, BootstrapConfig(num_resamples=200))
    assert (a["slice"], a["system"], a["utterances"], a["wer_corpus"]) == ("cut_prompt", "a", 10, 0.5)
    assert b["wer_corpus"] == 0.25
    difference = next(row for row in b["differences"] if row["metric"] == "wer_capped")
    assert (difference["a"], difference["b"], difference["difference"]) == ("plain", "cut_prompt", 0.25)
    assert difference["ci95"][0] < 0.25 < difference["ci95"][1]
