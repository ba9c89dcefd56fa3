"""What a run says of the rows that it left out: the first of each reason, with its place and what helps."""

import json
from pathlib import Path

import pytest

from retort.audio.files import wav_bytes
from retort.config import validate
from retort.data.utterance import Reject
from retort.errors import DataError
from retort.orchestration.prepare.job import run_prepare
from retort.orchestration.prepare.told import first_rejects, told_end
from retort.run_config import PrepareConfig
from tests.orchestration.tiny_runs import RATE, Lines, tone

REJECTS = [
    Reject("u7", "silent", "the loudest frame has -90 dBFS; record it again", "wavs/u7.wav"),
    Reject("u1", "missing_file", "wavs/u1.wav: no such file", "m.csv:3"),
    Reject("u2", "missing_file", "wavs/u2.wav: no such file", "m.csv:4"),
    Reject("", "bad_row", "x" * 5000, ""),
]


def test_of_each_reason_the_first_is_shown_and_the_most_frequent_comes_first() -> None:
    assert first_rejects(REJECTS)[:2] == [
        "missing_file (2), as u1 at m.csv:3: wavs/u1.wav: no such file",
        "silent (1), as u7 at wavs/u7.wav: the loudest frame has -90 dBFS; record it again",
    ]
    assert first_rejects(REJECTS)[2].startswith("bad_row (1), as a row at an unknown place: xxx")
    assert len(first_rejects(REJECTS)[2]) < 400, "a long text is cut"
    assert first_rejects([]) == []


def test_a_good_run_ends_with_its_splits_and_an_example_of_each_reason() -> None:
    figures = {"rows_kept": 6, "rows_read": 10, "splits": {"train": 5, "test": 1}}
    first, *rejected = told_end(figures, REJECTS)
    assert first == "kept 6 of 10 rows; splits: train 5, test 1"
    assert rejected == [f"rejected: {line}" for line in first_rejects(REJECTS)]


ROWS = {
    "a text of nothing": ({"audio": "a.wav", "text": " "}, "empty_text", "m.jsonl:3"),
    "a recording that is elsewhere": ({"audio": "../a.wav", "text": "one"}, "outside_root", "m.jsonl:3"),
    "a split that nobody knows": ({"audio": "a.wav", "text": "one", "split": "held_out"}, "unknown_split", "a.wav"),
    "a recording that is not there": ({"audio": "gone.wav", "text": "one"}, "missing_file", "m.jsonl:3"),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_failed_run_shows_an_example_with_its_place_whatever_the_reason(tmp_path: Path, name: str) -> None:
    row, code, place = ROWS[name]
    (tmp_path / "a.wav").write_bytes(wav_bytes(tone(0, 0.1), RATE))
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.wav").write_bytes(wav_bytes(tone(0, 0.1), RATE))
    good = [{"id": f"good{n}", "audio": "a.wav", "text": "one"} for n in range(2)]
    bad = [{"id": f"bad{n}", **row} for n in range(3)]
    (corpus / "m.jsonl").write_text("".join(json.dumps(each) + "\n" for each in (*good, *bad)))
    tree = {
        "job": "prepare", "output": str(tmp_path / "out"), "codec": {"kind": "mel_rvq"}, "text": {"kind": "characters"},
        "corpus": {"kind": "manifest", "path": str(corpus / "m.jsonl")},
    }  # fmt: skip
    with pytest.raises(DataError, match=rf"3 of 5 rows cannot be used \({code}: 3\)") as error:
        run_prepare(validate(tree, PrepareConfig, where="test"), Lines())
    example = str(error.value).splitlines()[1].strip()
    assert example.startswith(f"{code} (3), as bad0 at ")
    assert f"{place}: " in example
