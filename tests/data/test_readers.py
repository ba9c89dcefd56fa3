import json
import os
import wave
from pathlib import Path

import pytest

from retort.config import validate
from retort.data.readers import CorpusConfig, read_corpus
from retort.data.readers_libritts import LibriTTSConfig
from retort.data.readers_ljspeech import LJSpeechConfig
from retort.data.readers_manifest import ManifestConfig
from retort.data.readers_parquet import ParquetConfig
from retort.data.readers_vctk import VCTKConfig
from retort.data.utterance import Reject, Utterance, write_utterances
from retort.errors import DataError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_recordings = pytest.mark.skipif(not SHARED.is_dir(), reason="the recordings in ../shared/data are not here")


def _wav(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(b"\1\0" * 80)
    return path


def _read(config):
    rows = list(read_corpus(config))
    return [row for row in rows if isinstance(row, Utterance)], {
        (row.id, row.code): row for row in rows if isinstance(row, Reject)
    }


# LJSpeech


def _ljspeech(folder, metadata, wavs=("a", "b", "c", "d")):
    for name in wavs:
        _wav(folder / "wavs" / f"{name}.wav")
    (folder / "metadata.csv").write_bytes(metadata)
    return _read(LJSpeechConfig(kind="ljspeech", path=folder))


def test_ljspeech_keeps_stray_quotes_and_reads_bom_and_crlf(tmp_path):
    good, rejects = _ljspeech(
        tmp_path, '\ufeffa|"Stop|"Stop\r\nb|he said "no|he said "no\r\n\r\nc|end"|end"\r\n'.encode()
    )
    assert [(row.id, row.text) for row in good] == [("a", '"Stop'), ("b", 'he said "no'), ("c", 'end"')]
    assert not rejects


def test_ljspeech_takes_the_third_column_and_falls_back_to_the_second(tmp_path):
    good, rejects = _ljspeech(tmp_path, b"a|Dr. 1|doctor one\nb|only two\nc|empty third|\nd\n")
    assert [row.text for row in good] == ["doctor one", "only two", "empty third"]
    assert rejects["", "bad_row"].where.endswith("metadata.csv:4")


def test_ljspeech_reads_latin_1_and_says_so_once(tmp_path, caplog):
    good, rejects = _ljspeech(tmp_path, "a|x|café\nb|x|naïve\n".encode("latin-1") + "c|x|déjà\n".encode())
    assert [row.text for row in good] == ["café", "naïve", "déjà"]
    assert not rejects
    assert [record.message for record in caplog.records if "not UTF-8" in record.message] == [
        f"{tmp_path / 'metadata.csv'}:1 is not UTF-8; lines like it are read as Windows-1252"
    ]


def test_ljspeech_rejects_missing_files_empty_texts_duplicates_and_control_characters(tmp_path):
    good, rejects = _ljspeech(
        tmp_path, "a|x|one\na|x|two\nmissing|x|y\nb| | \nc|x|nul\0byte\nd|x|over\u202eride\n\x1b[2J|x|y\n".encode()
    )
    assert [(row.id, row.text) for row in good] == [("a", "one")]
    assert [key for key in rejects if key[0] != "\\x1b[2J"] == [
        ("a", "duplicate_id"), ("missing", "missing_file"), ("b", "empty_text"),
        ("c", "control_characters"), ("d", "control_characters"),
    ]  # fmt: skip
    assert "U+202E" in rejects["d", "control_characters"].detail
    assert ("\\x1b[2J", "control_characters") in rejects


def test_a_duplicate_of_a_rejected_row_is_kept(tmp_path):
    good, rejects = _ljspeech(tmp_path, b"a| | \na||second\na||third\n")
    assert [row.text for row in good] == ["second"]
    assert list(rejects) == [("a", "empty_text"), ("a", "duplicate_id")]


def test_ljspeech_ids_do_not_leave_the_corpus(tmp_path):
    _wav(tmp_path / "secret.wav")
    good, rejects = _ljspeech(tmp_path / "corpus", b"../../secret|x|y\n/etc/passwd|x|y\n")
    assert not good
    assert {code for _, code in rejects} <= {"outside_root", "bad_value"}
    assert len(rejects) == 2


def test_u2028_does_not_cut_a_line(tmp_path):
    good, _ = _ljspeech(tmp_path, "a|x|one\u2028two\n".encode())
    assert good[0].text == "one\u2028two"


@needs_recordings
def test_the_five_real_ljspeech_sentences():
    good, rejects = _read(LJSpeechConfig(kind="ljspeech", path=SHARED / "ljspeech"))
    assert [row.id for row in good] == [f"LJ001-000{number}" for number in range(1, 6)]
    assert not rejects
    assert all(row.audio.is_file() and row.speaker == "ljspeech" for row in good)
    assert good[0].text.startswith("Printing, in the only sense")


# LibriTTS


def _libritts(folder, names, *, kind="normalized"):
    for name in names:
        speaker, chapter = name.split("_")[:2]
        wav = _wav(folder / "train-clean-100" / speaker / chapter / f"{name}.wav")
        wav.with_name(f"{name}.{kind}.txt").write_text(f"text of {name}\n")


def test_libritts_reads_subsets_speakers_and_skips_failed_restorations(tmp_path):
    _libritts(tmp_path, ["19_198_000000_000000", "19_198_000000_000001", "26_495_000000_000000"])
    failed = tmp_path / "failed.txt"
    failed.write_text("./train-clean-100/19/198/19_198_000000_000001.wav\n")
    good, rejects = _read(LibriTTSConfig(kind="libritts", path=tmp_path, skip_list=failed))
    assert [(row.id, row.speaker, row.split) for row in good] == [
        ("19_198_000000_000000", "19", "train"),
        ("26_495_000000_000000", "26", "train"),
    ]
    assert good[0].text == "text of 19_198_000000_000000"
    assert list(rejects) == [("19_198_000000_000001", "skip_list")]


def test_libritts_missing_halves_are_rejected(tmp_path):
    _libritts(tmp_path, ["19_198_000000_000000", "19_198_000000_000001", "19_198_000000_000002"])
    chapter = tmp_path / "train-clean-100" / "19" / "198"
    (chapter / "19_198_000000_000000.normalized.txt").unlink()
    (chapter / "19_198_000000_000001.wav").unlink()
    (chapter / "19_198_000000_000002.normalized.txt").write_text("\n")
    good, rejects = _read(LibriTTSConfig(kind="libritts", path=tmp_path, subsets=("train-clean-100",)))
    assert not good
    assert [code for _, code in rejects] == ["missing_text", "missing_file", "empty_text"]


# VCTK


def test_vctk_p315_without_text_and_missing_mic2(tmp_path):
    audio, text = tmp_path / "wav48_silence_trimmed", tmp_path / "txt"
    for name in ("p225/p225_001_mic1.flac", "p225/p225_001_mic2.flac", "p280/p280_001_mic1.flac"):
        _wav(audio / name)
    _wav(audio / "p315" / "p315_001_mic1.flac")
    for speaker in ("p225", "p280"):
        (text / speaker).mkdir(parents=True)
        (text / speaker / f"{speaker}_001.txt").write_text("Please call Stella.\n")
    good, rejects = _read(VCTKConfig(kind="vctk", path=tmp_path))
    assert [(row.id, row.speaker, row.text) for row in good] == [
        ("p225_001", "p225", "Please call Stella."),
        ("p280_001", "p280", "Please call Stella."),
    ]
    assert list(rejects) == [("p315_001", "missing_text")]
    good, rejects = _read(VCTKConfig(kind="vctk", path=tmp_path, microphone="mic2"))
    assert [row.audio.name for row in good] == ["p225_001_mic2.flac"]
    assert list(rejects) == [("p280_001", "missing_file"), ("p315_001", "missing_text")]


# Layouts that are not there


@pytest.mark.parametrize("kind", ["ljspeech", "libritts", "vctk", "fsdd", "parquet"])
def test_a_missing_or_foreign_folder_is_refused_at_the_call_with_its_path(kind, tmp_path):
    for path in (tmp_path / "nowhere", tmp_path):
        config = validate({"kind": kind, "path": str(path)}, CorpusConfig, where="run")
        with pytest.raises(DataError, match=str(path)):
            read_corpus(config)


# Parquet


def test_parquet_in_the_hugging_face_layout(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = _wav(tmp_path / "a.wav").read_bytes()
    rows = [
        {"audio": {"bytes": data, "path": "/their/machine/a.wav"}, "text": "one", "speaker_id": 7},
        {"audio": {"bytes": None, "path": "a.wav"}, "text": "two", "speaker_id": 7},
        {"audio": {"bytes": None, "path": "../b.wav"}, "text": "three", "speaker_id": 7},
        {"audio": {"bytes": data, "path": None}, "text": None, "speaker_id": 7},
        {"audio": {"bytes": b"", "path": None}, "text": "five", "speaker_id": 7},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train-0.parquet")
    good, rejects = _read(ParquetConfig(kind="parquet", path=tmp_path))
    assert [(row.id, row.text, row.speaker) for row in good] == [
        ("train-0-000001", "one", "7"),
        ("train-0-000002", "two", "7"),
    ]
    assert good[0].audio == data
    assert good[1].audio == tmp_path / "a.wav"
    assert [code for _, code in rejects] == ["outside_root", "empty_text", "missing_file"]


def test_what_we_write_can_be_read_back_as_a_corpus(tmp_path):
    audio = _wav(tmp_path / "a.wav")
    rows = [
        Utterance("a", "one", "s", "de", audio, split="test", sample_rate=8000, duration_s=0.01),
        Utterance("b", "two", "s", "de", audio.read_bytes(), start_s=0.0, end_s=0.01),
    ]
    write_utterances(tmp_path / "rows.parquet", rows)
    good, rejects = _read(ParquetConfig(kind="parquet", path=tmp_path / "rows.parquet"))
    assert good == rows
    assert not rejects


def test_parquet_that_is_damaged_or_lacks_a_column_is_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": ["a"], "video": ["b"]}), file)
    with pytest.raises(DataError, match=r"no column for the audio, only text, video"):
        read_corpus(ParquetConfig(kind="parquet", path=file))
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a parquet file"):
        read_corpus(ParquetConfig(kind="parquet", path=file))


# Manifests


def _jsonl(folder, *records):
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records))
    return ManifestConfig(kind="manifest", path=path)


def test_a_nemo_manifest_with_offsets(tmp_path):
    _wav(tmp_path / "long.wav")
    config = _jsonl(
        tmp_path,
        {"audio_filepath": "long.wav", "text": "Nr. 1", "normalized_text": "number one", "offset": 0, "duration": 1.5},
        {"audio_filepath": "long.wav", "text": "two", "offset": 1.5, "duration": 2, "speaker": 12, "lang": "de"},
    )
    good, rejects = _read(config)
    assert not rejects
    assert [(row.id, row.text, row.start_s, row.end_s, row.duration_s) for row in good] == [
        ("long@0.000", "number one", 0.0, 1.5, 1.5),
        ("long@1.500", "two", 1.5, 3.5, 2.0),
    ]
    assert [(row.speaker, row.language) for row in good] == [("unknown", "en"), ("12", "de")]


def test_bad_json_rows_are_rejected_one_by_one(tmp_path):
    _wav(tmp_path / "a.wav")
    config = _jsonl(
        tmp_path,
        "{not json",
        "[1, 2]",
        "[" * 100_000,
        '{"id": "big", "audio": "a.wav", "text": "x", "duration": ' + "9" * 5000 + "}",
        {"id": "no-audio", "text": "x"},
        {"id": "typed", "audio": "a.wav", "text": 7},
        {"id": "listed", "audio": ["a.wav"], "text": "x"},
        {"id": "nan", "audio": "a.wav", "text": "x", "duration": float("nan")},
        {"id": "negative", "audio": "a.wav", "text": "x", "duration": -1},
        {"id": "backwards", "audio": "a.wav", "text": "x", "start": 3, "end": 2},
        {"id": "rate", "audio": "a.wav", "text": "x", "sample_rate": float("inf")},
        {"id": "surrogate", "audio": "a.wav", "text": "\ud800"},
        {"id": "../up", "audio": "a.wav", "text": "x"},
        {"id": "good", "audio": "a.wav", "text": "x"},
    )
    rows = list(read_corpus(config))
    assert [row.code if isinstance(row, Reject) else row.id for row in rows] == [
        *["bad_row"] * 4, *["bad_value"] * 7, "control_characters", "bad_value", "good",
    ]  # fmt: skip
    assert [row.where for row in rows if isinstance(row, Reject)] == [f"{config.path}:{n}" for n in range(1, 14)]
    for row in rows[:-1]:
        json.dumps(vars(row)).encode("utf-8")


def test_paths_do_not_leave_the_root(tmp_path):
    _wav(tmp_path / "outside.wav")
    corpus = tmp_path / "corpus"
    inside = _wav(corpus / "in.wav")
    (corpus / "link.wav").symlink_to(tmp_path / "outside.wav")
    (corpus / "loop.wav").symlink_to(corpus / "loop.wav")
    names = {
        "relative": "in.wav", "absolute": str(inside), "climbs": "../outside.wav", "link": "link.wav",
        "theirs": "/home/other/a.wav", "loop": "loop.wav", "folder": ".", "long": "a" * 5000,
        "nul": "a\0.wav", "windows": "C:\\data\\a.wav",
    }  # fmt: skip
    config = _jsonl(corpus, *({"id": key, "audio": name, "text": "x"} for key, name in names.items()))
    good, rejects = _read(config)
    assert [row.id for row in good] == ["relative", "absolute"]
    assert dict(rejects.keys()) == {
        "climbs": "outside_root", "link": "outside_root", "theirs": "outside_root", "loop": "missing_file",
        "folder": "missing_file", "long": "missing_file", "nul": "control_characters", "windows": "missing_file",
    }  # fmt: skip
    good, rejects = _read(config.replace(allow_outside_root=True))
    assert [row.id for row in good] == ["relative", "absolute", "climbs", "link"]
    assert ("theirs", "missing_file") in rejects


def test_csv_with_aliases_quotes_and_a_stray_quote(tmp_path):
    for name in "abcd":
        _wav(tmp_path / f"{name}.wav")
    path = tmp_path / "corpus.csv"
    path.write_bytes(
        b'\xef\xbb\xbfpath,sentence,client_id\r\na.wav,"Yes, he said ""go""",s1\r\nb.wav,"never closed,s1\r\n'
        b'c.wav,a "quoted" word,s2\r\nd.wav,too,many,fields\r\n'
    )
    good, rejects = _read(ManifestConfig(kind="manifest", path=path))
    assert [(row.id, row.text, row.speaker) for row in good] == [
        ("a", 'Yes, he said "go"', "s1"),
        ("c", 'a "quoted" word', "s2"),
    ]
    assert [row.where.rsplit(":", 1)[1] for row in read_corpus(ManifestConfig(kind="manifest", path=path))
            if isinstance(row, Reject)] == ["3", "5"]  # fmt: skip
    assert set(rejects) == {("", "bad_row")}


def test_bars_and_tabs_keep_quotes(tmp_path):
    _wav(tmp_path / "a.wav")
    for suffix, bar in ((".csv", "|"), (".tsv", "\t")):
        path = tmp_path / f"m{suffix}"
        path.write_text(f'audio_file{bar}text\na.wav{bar}"stray, quote\n')
        good, _ = _read(ManifestConfig(kind="manifest", path=path))
        assert [row.text for row in good] == ['"stray, quote']


def test_a_manifest_without_a_text_column_is_refused(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("audio,words\na.wav,x\n")
    with pytest.raises(
        DataError, match=r"no column for the text, only audio, words; name one of them normalized_text or"
    ):
        read_corpus(ManifestConfig(kind="manifest", path=path))
    with pytest.raises(DataError, match="no such file"):
        read_corpus(ManifestConfig(kind="manifest", path=tmp_path / "none.csv"))


def test_files_of_one_name_in_two_folders_are_two_utterances(tmp_path):
    for speaker in ("s1", "s2"):
        _wav(tmp_path / speaker / "001.wav")
    good, rejects = _read(_jsonl(tmp_path, *({"audio": f"{s}/001.wav", "text": "x"} for s in ("s1", "s2"))))
    assert [row.id for row in good] == ["s1_001", "s2_001"]
    assert not rejects


@needs_recordings
def test_the_digit_recordings_through_a_manifest(tmp_path):
    root = SHARED / "fsdd"
    path = tmp_path / "fsdd.jsonl"
    names = sorted(name for name in os.listdir(root) if name.endswith(".wav"))  # noqa: PTH208
    path.write_text("\n".join(json.dumps({"wav": n, "text": n[0], "speaker": n.split("_")[1]}) for n in names))
    good, rejects = _read(ManifestConfig(kind="manifest", path=path, root=root))
    assert [row.id for row in good] == [name.removesuffix(".wav") for name in names]
    assert len({row.speaker for row in good}) == 5
    assert not rejects


@pytest.mark.parametrize("gap", ["\x0b", "\x0c", "\x85", "\u2066", "\u2067", "\u2068", "\u2069"])
def test_breaks_and_isolates_in_a_text_are_spaces(tmp_path, gap):
    good, rejects = _ljspeech(tmp_path, f"a|x|one{gap}two\n".encode())
    assert not rejects
    assert good[0].text == "one two"
    # An id is no text: what hides there is refused as before.
    assert "control_characters" in {code for _, code in _ljspeech(tmp_path / "b", f"a{gap}b|x|one\n".encode())[1]}
