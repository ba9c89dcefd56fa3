"""Speakers and texts in several splits: refused where somebody said that they are apart, told elsewhere."""

import json
from pathlib import Path
from typing import Any

import pytest

from retort.audio.files import wav_bytes
from retort.config import validate
from retort.data.references import plan_references, read_references
from retort.errors import DataError
from retort.orchestration.prepare.job import run_prepare
from retort.orchestration.prepare.told import told_leaks
from retort.run_config import PrepareConfig
from tests.orchestration.tiny_runs import RATE, Lines, tone, write_ljspeech

LEAKING = [("ann", "train"), ("ann", "test"), ("bob", "train"), ("bob", "train"), ("cy", "test")]
APART = [("ann", "train"), ("bob", "train"), ("cy", "test")]
ALONE = [("ann", "train"), ("ann", "test")]
UNNAMED = [("ann", None), ("bob", None)] * 20


def manifest(folder: Path, rows: list[tuple[str, str | None]], *, text: str = "words {}") -> dict[str, Any]:
    folder.mkdir()
    (folder / "a.wav").write_bytes(wav_bytes(tone(0, 0.1), RATE))
    lines = [
        {"id": f"r{i}", "audio": "a.wav", "text": text.format(i), "speaker": speaker, "split": split}
        for i, (speaker, split) in enumerate(rows)
    ]
    (folder / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"kind": "manifest", "path": str(folder / "m.jsonl")}


def config_of(tmp_path: Path, corpus: dict[str, Any], **splits: Any) -> PrepareConfig:
    tree = {
        "job": "prepare", "output": str(tmp_path / "out"), "corpus": corpus, "codec": {"kind": "mel_rvq"},
        "text": {"kind": "characters"}, "splits": {"test_fraction": 0.3, **splits},
    }  # fmt: skip
    return validate(tree, PrepareConfig, where="test")


def leak_of(tmp_path: Path, corpus: dict[str, Any], **splits: Any) -> tuple[str | None, int]:
    config = config_of(tmp_path, corpus, **splits)
    plan = plan_references(config.corpus, config.splits, tmp_path / "plan", fit_utterances=1)
    return plan.leak, plan.num_shared_speakers


def libritts(folder: Path) -> dict[str, Any]:
    for subset, name in (("train-clean-100", "19_198_000000_000000"), ("test-clean", "19_199_000000_000000"),
                         ("train-clean-100", "26_495_000000_000000")):  # fmt: skip
        chapter = folder / subset / name.split("_")[0] / name.split("_")[1]
        chapter.mkdir(parents=True, exist_ok=True)
        (chapter / f"{name}.wav").write_bytes(wav_bytes(tone(0, 0.1), RATE))
        (chapter / f"{name}.normalized.txt").write_text("words\n")
    return {"kind": "libritts", "path": str(folder)}


def vctk(folder: Path) -> dict[str, Any]:
    for speaker in ("p225", "p226"):
        audio, text = folder / "wav48_silence_trimmed" / speaker, folder / "txt" / speaker
        audio.mkdir(parents=True)
        text.mkdir(parents=True)
        for i in range(20):
            (audio / f"{speaker}_{i:03d}_mic1.flac").write_bytes(b"never opened")
            (text / f"{speaker}_{i:03d}.txt").write_text("Please call Stella.\n")
    return {"kind": "vctk", "path": str(folder)}


def fsdd(folder: Path) -> dict[str, Any]:
    folder.mkdir()
    for speaker in ("george", "lucas"):
        for index in (0, 7):
            (folder / f"1_{speaker}_{index}.wav").write_bytes(wav_bytes(tone(index, 0.1), 8000))
    return {"kind": "fsdd", "path": str(folder)}


def parquet(folder: Path) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    rows = [
        {"id": f"r{i}", "audio": {"bytes": b"x", "path": None}, "text": "x", "speaker": speaker, "split": split}
        for i, (speaker, split) in enumerate(LEAKING)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "all.parquet")
    return {"kind": "parquet", "path": str(folder)}


@pytest.mark.parametrize("corpus", [lambda f: manifest(f, LEAKING), libritts, parquet], ids=["jsonl", "tts", "parquet"])
def test_a_speaker_that_the_corpus_puts_into_two_splits_is_refused(tmp_path: Path, corpus: Any) -> None:
    leak, shared = leak_of(tmp_path, corpus(tmp_path / "corpus"))
    assert shared == 1
    assert leak is not None
    assert leak.startswith("1 of ")
    assert "test 1, train 1" in leak
    assert "splits.allow_speaker_overlap: true" in leak


def test_it_is_let_through_where_the_run_file_allows_it(tmp_path: Path) -> None:
    assert leak_of(tmp_path, manifest(tmp_path / "c", LEAKING), allow_speaker_overlap=True) == (None, 1)


@pytest.mark.parametrize(
    ("corpus", "shared"),
    [
        (lambda f: manifest(f, APART), 0),
        (lambda f: manifest(f, ALONE), 1),  # one voice cannot be kept apart from itself
        (lambda f: manifest(f, UNNAMED), 2),  # the run file deals the rows out one by one
        (lambda f: {"kind": "ljspeech", "path": str(write_ljspeech(f, 30, seconds=0.02))}, 1),
        (vctk, 2),
        (fsdd, 2),
        (lambda _: {"kind": "digits", "num_strings": 40, "test_strings": 8}, 4),
    ],
    ids=["apart", "alone", "unnamed", "ljspeech", "vctk", "fsdd", "digits"],
)
def test_what_is_shared_by_design_is_counted_and_refused_only_on_request(
    tmp_path: Path, corpus: Any, shared: int
) -> None:
    given = corpus(tmp_path / "corpus")
    assert leak_of(tmp_path, given) == (None, shared)
    leak, _ = leak_of(tmp_path / "strict", given, allow_speaker_overlap=False)
    assert (leak is not None) == (shared > 0)


def test_by_speaker_is_a_promise_that_the_corpus_own_splits_can_break(tmp_path: Path) -> None:
    assert leak_of(tmp_path, manifest(tmp_path / "a", UNNAMED), by="speaker") == (None, 0)
    half_named = [*UNNAMED, ("ann", "test"), ("ann", "train")]
    leak, _ = leak_of(tmp_path / "two", manifest(tmp_path / "b", half_named), by="speaker")
    assert leak is not None
    assert "ann" in leak


def test_by_text_is_one_too(tmp_path: Path) -> None:
    unnamed = manifest(tmp_path / "a", [("ann", None)] * 40, text="the same words")
    assert leak_of(tmp_path, unnamed, by="text")[0] is None
    named = manifest(tmp_path / "b", ALONE, text="The same words")
    leak, _ = leak_of(tmp_path / "two", named, by="text")
    assert leak is not None
    assert "'The same words' in train and test" in leak


def test_prepare_stops_before_any_worker_with_exit_code_3_and_looks_again_at_a_mended_corpus(tmp_path: Path) -> None:
    config = config_of(tmp_path, manifest(tmp_path / "corpus", LEAKING))
    for _ in range(2):  # what it refused is not taken for a plan
        with pytest.raises(DataError, match=r"1 of 3 speakers .*ann: test 1, train 1") as error:
            run_prepare(config, Lines())
        assert error.value.exit_code == 3
    assert not (tmp_path / "out" / "result").exists()


def _told(tmp_path: Path, corpus: dict[str, Any], **splits: Any) -> list[str]:
    config = config_of(tmp_path, corpus, **splits)
    return list(told_leaks(plan_references(config.corpus, config.splits, tmp_path / "plan", fit_utterances=1)))


def test_texts_on_both_sides_are_counted_and_told_whatever_keeps_what_apart(tmp_path: Path) -> None:
    corpus = manifest(tmp_path / "corpus", [(f"s{i}", "train" if i < 5 else "test") for i in range(8)], text="Yes")
    lines = _told(tmp_path, corpus)
    assert [line for line in lines if line.startswith("texts")] == [
        "texts in more than one split: 1; tests are of known texts (splits.by: text keeps them apart)"
    ]


def segments(folder: Path, splits: list[str | None]) -> dict[str, Any]:
    """Segments of three recordings, one after the other."""
    folder.mkdir()
    lines = []
    for i, split in enumerate(splits):
        name = f"{i % 3}.wav"
        (folder / name).write_bytes(wav_bytes(tone(i % 3, 9.0), RATE))
        lines.append({"audio": name, "text": f"words {i}", "start": i / 10, "end": i / 10 + 0.1, "split": split})
    (folder / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"kind": "manifest", "path": str(folder / "m.jsonl")}


def test_segments_of_one_recording_stay_together_where_it_is_asked_for(tmp_path: Path) -> None:
    corpus = segments(tmp_path / "corpus", [None] * 60)
    assert any(line.startswith("recordings in more than one split: 3") for line in _told(tmp_path / "a", corpus))
    assert not any(line.startswith("recordings") for line in _told(tmp_path / "b", corpus, by="recording"))
    plan = tmp_path / "b" / "plan"
    rows = [row for chunk in range(2) for row in read_references(plan, chunk)]
    assert len(rows) == 60
    for audio in {row.audio for row in rows}:
        assert len({row.split for row in rows if row.audio == audio}) == 1


def test_a_recording_in_two_splits_of_the_corpus_is_refused_where_recordings_are_apart(tmp_path: Path) -> None:
    corpus = segments(tmp_path / "corpus", ["train", "train", "train", "test", "train", "train"])
    leak, _ = leak_of(tmp_path, corpus, by="recording")
    assert leak is not None
    assert "1 recordings are in more than one split by the corpus' own word" in leak
    assert "0.wav' in train and test" in leak
