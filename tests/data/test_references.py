from pathlib import Path

import pytest

from retort.config import validate
from retort.data.digits import DigitsConfig, digit_strings
from retort.data.references import (
    ROWS_PER_CHUNK,
    forget_plan,
    plan_references,
    read_references,
    reader_rejects,
)
from retort.errors import DataError
from retort.run_config import PrepareConfig
from tests.orchestration.tiny_runs import add_bad_rows, write_ljspeech


def _config(tmp_path, corpus, **changes):
    tree = {
        "job": "prepare", "output": str(tmp_path / "out"), "corpus": corpus, "codec": {"kind": "mel_rvq"},
        "text": {"kind": "characters"}, "splits": {"test_fraction": 0.1, "validation_fraction": 0.1}, **changes,
    }  # fmt: skip
    return validate(tree, PrepareConfig, where="test")


def _plan(config, folder):
    fit = config.codec_fit_utterances
    return plan_references(config.corpus, config.splits, folder, fit_utterances=fit)


def _ljspeech(tmp_path, count, name="corpus"):
    return {"kind": "ljspeech", "path": str(write_ljspeech(tmp_path / name, count, seconds=0.02))}


def test_every_row_is_in_one_chunk_with_a_split_and_an_absolute_path(tmp_path, monkeypatch):
    write_ljspeech(tmp_path / "corpus", 70, seconds=0.02)
    monkeypatch.chdir(tmp_path)
    plan = _plan(_config(tmp_path, {"kind": "ljspeech", "path": "corpus"}), tmp_path / "plan")
    chunks = [read_references(tmp_path / "plan", number) for number in range(plan.num_chunks)]
    assert [len(chunk) for chunk in chunks] == [ROWS_PER_CHUNK, ROWS_PER_CHUNK, 70 - 2 * ROWS_PER_CHUNK]
    rows = [row for chunk in chunks for row in chunk]
    assert sorted(row.id for row in rows) == [f"T{i:03d}" for i in range(70)]
    assert {row.split for row in rows} == {"train", "validation", "test"}
    assert all(isinstance(row.audio, Path) and row.audio.is_absolute() and row.audio.is_file() for row in rows)


def test_what_the_reader_refuses_is_counted_and_kept(tmp_path):
    corpus = _ljspeech(tmp_path, 5)
    add_bad_rows(tmp_path / "corpus")
    plan = _plan(_config(tmp_path, corpus), tmp_path / "plan")
    assert plan.rejects == {"missing_file": 1}
    assert [reject.id for reject in reader_rejects(tmp_path / "plan")] == ["B_gone"]
    assert plan.num_rows == 10


def test_the_codec_is_fitted_on_the_same_training_rows_whatever_their_order(tmp_path):
    corpus = _ljspeech(tmp_path, 50)
    lines = (tmp_path / "corpus" / "metadata.csv").read_text().splitlines()
    chosen = []
    for number, order in enumerate((lines, lines[::-1])):
        (tmp_path / "corpus" / "metadata.csv").write_text("\n".join(order) + "\n")
        folder = tmp_path / f"plan{number}"
        plan = _plan(_config(tmp_path, corpus, codec_fit_utterances=12), folder)
        rows = [read_references(folder, chunk)[place] for chunk, places in plan.fit.items() for place in places]
        assert {row.split for row in rows} == {"train"}
        chosen.append({row.id for row in rows})
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 12


def test_a_plan_that_is_there_is_opened_not_made_again(tmp_path):
    config = _config(tmp_path, _ljspeech(tmp_path, 5))
    first = _plan(config, tmp_path / "plan")
    (tmp_path / "corpus" / "metadata.csv").write_text("")
    assert _plan(config, tmp_path / "plan") == first
    forget_plan(tmp_path / "plan")
    again = _plan(config, tmp_path / "plan")
    assert again.num_rows == 0
    assert again.digest != first.digest


def test_digits_are_planned_without_being_spoken(tmp_path):
    corpus = {"kind": "digits", "num_strings": 40, "test_strings": 5}
    plan = _plan(_config(tmp_path, corpus), tmp_path / "plan")
    rows = [row for number in range(plan.num_chunks) for row in read_references(tmp_path / "plan", number)]
    strings = digit_strings(DigitsConfig(**corpus))
    assert [(r.id, r.text, r.speaker, r.split) for r in rows] == [(s.id, s.text, s.voice, s.split) for s in strings]
    assert {row.audio for row in rows} == {b""}


def test_a_missing_corpus_is_refused_at_once(tmp_path):
    corpus = {"kind": "ljspeech", "path": str(tmp_path / "nowhere")}
    with pytest.raises(DataError, match="nowhere"):
        _plan(_config(tmp_path, corpus), tmp_path / "plan")
