"""What a corpus says of its columns and splits: it is understood, told, and may be said otherwise."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retort.config import validate
from retort.data.readers import CorpusConfig, read_corpus, understood
from retort.data.references import plan_references, read_references, reader_rejects
from retort.data.splits import SplitConfig, known_split
from retort.data.utterance import Reject, Utterance
from retort.errors import ConfigError
from tests.data.test_readers import _wav


def _corpus(**tree):
    return validate(tree, CorpusConfig, where="corpus")


def _good(config):
    rows = list(read_corpus(config))
    assert not [row for row in rows if isinstance(row, Reject)]
    return [row for row in rows if isinstance(row, Utterance)]


def _ljspeech(folder, lines, **changes):
    for line in lines:
        _wav(folder / "wavs" / f"{line.split('|')[0]}.wav")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return _corpus(kind="ljspeech", path=str(folder), **changes)


PIPER = ["u1|alice|Hello there.", "u2|bob|Good morning to you.", "u3|alice|It is nine o'clock."]


@pytest.mark.parametrize(
    ("lines", "columns", "speakers", "texts"),
    [
        (PIPER, "id|speaker|text", ["alice", "bob", "alice"], ["Hello there.", "Good morning to you."]),
        (["u1|0|Hello there.", "u2|1|Good morning."], "id|speaker|text", ["0", "1"], ["Hello there.", "Good morning."]),
        (["u1|p225|Yes.", "u2|p226|No."], "id|speaker|text", ["p225", "p226"], ["Yes.", "No."]),
        (
            ["u1|Hello there.|alice", "u2|Good morning.|bob", "u3|It is nine.|alice", "u4|It is ten.|bob"],
            "id|text|speaker", ["alice", "bob", "alice", "bob"], ["Hello there.", "Good morning."],
        ),
        # Texts with their normalised forms are no speakers, however short they are.
        (["u1|1984|nineteen eighty four", "u2|Dr.|doctor"], "id|text|normalised", ["ljspeech"] * 2,
         ["nineteen eighty four", "doctor"]),
        (["u1|Hello|hello", "u2|Yes|yes", "u3|Yes|yes"], "id|text|normalised", ["ljspeech"] * 3, ["hello", "yes"]),
        (["u1|Hello there|Hello there", "u2|Two|two"], "id|text|normalised", ["ljspeech"] * 2, ["Hello there", "two"]),
        (["u1|Hello there", "u2|Two"], "id|text|normalised", ["ljspeech"] * 2, ["Hello there", "Two"]),
        (["u1|one two|one two", "u2|one two|one two"], "id|text|normalised", ["ljspeech"] * 2, ["one two"] * 2),
    ],
)  # fmt: skip
def test_a_third_column_is_what_it_looks_like(tmp_path, lines, columns, speakers, texts):
    config = _ljspeech(tmp_path, lines)
    rows = _good(config)
    assert [row.speaker for row in rows] == speakers
    assert [row.text for row in rows][:2] == texts
    assert understood(config) == f"metadata.csv is {columns}"


def test_columns_may_be_said(tmp_path):
    lines = ["u1|x|de|Guten Tag|bert", "u2|x|de|Eins|bert"]
    rows = _good(_ljspeech(tmp_path, lines, columns=["id", "ignore", "language", "text", "speaker"]))
    assert [(row.text, row.language, row.speaker) for row in rows] == [
        ("Guten Tag", "de", "bert"),
        ("Eins", "de", "bert"),
    ]
    rows = _good(_ljspeech(tmp_path, PIPER, columns=["id", "text", "normalised"]))
    assert [row.speaker for row in rows] == ["ljspeech"] * 3
    for wrong in (["id", "speaker"], ["id", "text", "text"], ["text"]):
        with pytest.raises(ConfigError, match="columns hold id and text"):
            _ljspeech(tmp_path, PIPER, columns=wrong)


def test_a_line_with_other_columns_is_a_reject_that_says_which_were_expected(tmp_path):
    config = _ljspeech(tmp_path, [*PIPER, "u4|alice|a|b"])
    (reject,) = [row for row in read_corpus(config) if isinstance(row, Reject)]
    assert "4 columns; expected id|speaker|text; say which there are in `columns`" in reject.detail


RECORDS = [{"path": "a.wav", "prompt": "one two", "narrator": "n1", "text": "/dev/x", "age": 3}]


def _manifest(folder, records, **changes):
    for record in records:
        _wav(folder / record["path"])
    path = folder / "m.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return _corpus(kind="manifest", path=str(path), **changes)


def test_columns_of_a_manifest_go_by_other_names(tmp_path):
    config = _manifest(tmp_path, RECORDS, columns={"text": "prompt", "speaker": "narrator"})
    assert [(row.text, row.speaker) for row in _good(config)] == [("one two", "n1")]
    assert understood(config) == "audio from path, text from prompt, speaker from narrator; not used: text, age"
    plain = _manifest(tmp_path, RECORDS)
    assert understood(plain) == "audio from path, text; not used: prompt, narrator, age"


def test_a_column_that_is_not_what_it_is_called_is_ignored(tmp_path):
    records = [{"path": "a.wav", "text": "one", "speaker": "n1", "split": "fold-3", "id": "1"}]
    config = _manifest(tmp_path, records, ignore=["split", "id"])
    (row,) = _good(config)
    assert (row.split, row.speaker, row.id) == (None, "n1", "a")
    (row,) = _good(_manifest(tmp_path, records))
    assert (row.split, row.id) == ("fold-3", "1")
    every = ["id", "utt_id", "utterance_id"]
    assert _good(_manifest(tmp_path, records, ignore=every))[0].id == "a"


def _parquet(folder, names, **columns):
    sound = io.BytesIO((_wav(folder / "x.wav")).read_bytes()).getvalue()
    for name in names:
        path = folder / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        table = {"audio": [{"bytes": sound, "path": "x.wav"}] * 2, "sentence": ["one", "two"], **columns}
        pq.write_table(pa.table(table), path)
    return _corpus(kind="parquet", path=str(folder / "data"))


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train-00000-of-00001.parquet", "test-00000-of-00001.parquet"], ["test", "test", "train", "train"]),
        (["train.clean.100-0.parquet", "dev.clean-0.parquet"], ["dev", "dev", "train", "train"]),
        (["train/0000.parquet", "validation/0000.parquet"], ["train", "train", "validation", "validation"]),
        # One file, or several of one split: a person has chosen them, and what is held out of them is for `splits`.
        (["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"], [None] * 4),
        (["test.parquet"], [None] * 2),
        (["part-0.parquet", "part-1.parquet"], [None] * 4),
    ],
)
def test_files_of_a_data_set_are_of_the_splits_that_they_are_named_after(tmp_path, names, splits):
    config = _parquet(tmp_path, names)
    wanted = [known_split(split) if split else None for split in splits]
    assert [row.split for row in _good(config)] == wanted
    told = understood(config)
    assert told is not None
    assert ("splits by the names of files" in told) == (splits[0] is not None)
    assert told.startswith("audio, text from sentence")


def test_a_split_of_its_own_counts_before_the_name_of_the_file(tmp_path):
    config = _parquet(tmp_path, ["train-0.parquet", "test-0.parquet"], split=["validation", None])
    assert [row.split for row in _good(config)] == ["validation", "test", "validation", "train"]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"), ("Training", "train"), ("train-clean-100", "train"), ("train.clean.360", "train"),
        ("dev", "validation"), ("dev-other", "validation"), ("valid", "validation"), ("val", "validation"),
        ("validation", "validation"), ("test", "test"), ("TEST", "test"), ("test_other", "test"), ("testing", "test"),
        ("validated", None), ("other", None), ("fold-3", None), ("", None), ("trainee", None), ("eval", None),
    ],
)  # fmt: skip
def test_names_of_splits(name, split):
    assert known_split(name) == split
    assert known_split(name, {name: "test"}) == "test"


def _plan(folder, given, **splits):
    records = [{"path": f"{i}.wav", "text": f"text {i}", "split": name} for i, name in enumerate(given)]
    config = SplitConfig(**splits)
    plan = plan_references(_manifest(folder, records), config, folder / "plan", fit_utterances=1)
    rows = read_references(folder / "plan", 0) if plan.num_rows else []
    return plan, [row.split for row in rows], list(reader_rejects(folder / "plan"))


def test_a_plan_has_splits_that_jobs_can_name_and_rejects_of_those_that_nobody_knows(tmp_path):
    plan, splits, rejects = _plan(tmp_path, ["train", "dev", "test-clean", "held_out"])
    assert splits == ["train", "validation", "test"]
    assert plan.splits == {"test": 1, "train": 1, "validation": 1}
    (reject,) = rejects
    assert reject.code == "unknown_split"
    assert "splits.names, as {held_out: test}" in reject.detail


def test_what_a_split_is_called_may_be_said(tmp_path):
    _, splits, rejects = _plan(tmp_path, ["a", "held_out", "dev"], names={"a": "train", "held_out": "test"})
    assert splits == ["train", "test", "validation"]
    assert not rejects
