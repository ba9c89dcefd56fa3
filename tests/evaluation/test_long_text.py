"""A long text: how much of what is said, by the product's own way, and what is told of each minute."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from retort.data.tokens import TokenSet, write_shard
from retort.errors import DataError
from retort.evaluation.items import Expected, ItemResult, failed_item
from retort.evaluation.judge import Judge, System, TestStrings
from retort.evaluation.long_text import BEGAN, LOUDNESS, LongTextConfig, by_minute, judge_long, text_of
from retort.inference.opening import open_speaker
from retort.inference.speaker import NEVER_HEARD, Request, Speaker, Spoken, Wish, in_parts
from retort.nn.random import seed_of
from tests.evaluation.judging import scorers
from tests.inference.speaking import speaking_model

FRAMES = 40
ROWS = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Beside its token set, with test rows whose recordings last a second each."""
    folder = speaking_model(tmp_path_factory.mktemp("long"), mean_frames=12)
    like = next(iter(TokenSet.open(folder.parent / "data").split("train")))
    texts = ("one two", "Three!", "four", "five six.", "seven", "eight")
    rows = [
        replace(like, id=f"t{n}", text=text, split="test", codes_KT=torch.full((2, FRAMES), n))
        for n, text in enumerate(texts)
    ]
    write_shard(folder.parent / "data" / "part-1.parquet", rows)
    return folder


def judge_of(model: Path) -> Judge:
    strings = TestStrings(model.parent / "data", split="test", count=ROWS)
    return Judge(strings, scorers(), max_frames=60, seed=0)


def test_the_text_is_the_strings_as_sentences_and_again_until_the_minutes_are_full(model: Path) -> None:
    strings = judge_of(model).strings
    rate = strings.description.frame_rate
    assert text_of(strings, 4 * FRAMES / rate / 60) == "one two. Three! four. five six."
    many = text_of(strings, 13 * FRAMES / rate / 60)
    assert many.count("one two.") == 3
    assert many.count("Three!") == 2
    empty = TestStrings(model.parent / "data", split="test", count=1)
    empty.rows = {name: replace(row, codes_KT=row.codes_KT[:, :0]) for name, row in empty.rows.items()}
    with pytest.raises(DataError, match="have no frames"):
        text_of(empty, 1.0)


def test_a_model_says_it_part_by_part_as_long_texts_are_said_anywhere(model: Path) -> None:
    judge, config = judge_of(model), LongTextConfig(minutes=0.2, part_characters=20)
    items = judge_long(judge, System("m", "model", open_speaker(model)), config)
    row = judge.strings.rows["t0"]
    assert " ".join(item.text for item in items) == text_of(judge.strings, 0.2)
    assert all(len(item.text) <= 20 for item in items)
    speaker = open_speaker(model)
    voice = judge.strings.voice_for(row, speaker)
    request = Request(text_of(judge.strings, 0.2), row.speaker, seed_of(0, "a long text"), voice)
    said = [finish(speaker, part) for part in in_parts(Wish(request), 20)]
    assert [item.duration_s for item in items] == [sound.numel() / speaker.sample_rate for sound in said]
    assert sum(item.audio_sha256 is not None for item in items) == len(items) > 5
    began = [item.values[BEGAN] for item in items]
    assert began == pytest.approx([sum(s.numel() for s in said[:n]) / speaker.sample_rate for n in range(len(said))])


def finish(speaker: Speaker, part: Wish) -> Tensor:
    """All samples of a part, alone."""
    speaker.add(part, heard_until=NEVER_HEARD)
    sounds = []
    while speaker.num_active:
        sounds += speaker.step()
    return torch.cat([sound.samples_N for sound in sounds])


def test_a_service_is_asked_for_the_same_parts_and_a_part_that_it_refuses_is_a_row(model: Path) -> None:
    class Half:
        def speak(self, requests):
            sound = Spoken(0.1 * torch.randn(16_000), 16_000)
            return [DataError("no") if number % 2 else sound for number in range(len(requests))]

    judge, config = judge_of(model), LongTextConfig(minutes=0.2, part_characters=20)
    items = judge_long(judge, System("s", "endpoint", service=Half()), config)
    texts = [item.text for item in judge_long(judge, System("m", "model", open_speaker(model)), config)]
    assert [item.text for item in items] == texts
    assert [item.failure_reasons == ("error",) for item in items] == [n % 2 == 1 for n in range(len(items))]
    assert [item.values[BEGAN] for item in items][:5] == [0.0, 1.0, 1.0, 2.0, 2.0]
    assert [LOUDNESS in item.values for item in items][:4] == [True, False, True, False]


def test_figures_are_told_of_the_minute_in_which_a_part_begins() -> None:
    def part(number: int, began_s: float, wrong: int, likeness: float | None, loudness: float) -> ItemResult:
        found = failed_item("m", Expected(f"part-{number}", "one two"))
        return replace(
            found, hypothesis="x", deletions=wrong, failure=wrong > 1, duration_s=30.0, speaker_similarity=likeness,
            values={BEGAN: began_s, LOUDNESS: loudness},
        )  # fmt: skip

    parts = [part(0, 0.0, 0, 0.9, -20.0), part(1, 59.9, 5, 0.7, -22.0), part(2, 60.0, 1, None, -30.0)]
    found = by_minute(parts)
    first, second = found["minutes"]
    assert (first["minute"], first["parts"], first["failures"], first["wer_capped"]) == (1, 2, 1, 0.5)
    assert (first["speaker_similarity"], first["loudness_lufs"]) == (pytest.approx(0.8), -21.0)
    assert (second["minute"], second["wer_capped"], second["speaker_similarity"]) == (2, 0.5, None)
    assert (found["system"], found["seconds"], found["parts"], found["wer_capped"]) == ("m", 90.0, 3, 0.5)
