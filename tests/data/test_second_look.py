"""Paths of recordings that lead nowhere as they stand, and the keys that messages advise."""

import json
import re
import unicodedata

import pytest

from retort.config import validate
from retort.data.readers import CorpusConfig, read_corpus
from retort.data.second_look import second_look
from retort.data.utterance import Reject, Utterance
from retort.errors import ConfigError, DataError
from tests.data.test_readers import _wav

CAFE = unicodedata.normalize("NFD", "caf\u00e9")


def _read(tree):
    rows = list(read_corpus(validate(tree, CorpusConfig, where="corpus")))
    return [r for r in rows if isinstance(r, Utterance)], [r for r in rows if isinstance(r, Reject)]


@pytest.mark.parametrize(
    ("name", "there", "row_id"),
    [
        ("wavs/u01.wav", "wavs/u01.wav", "u01"),
        ("u01.wav", "wavs/u01.wav", "u01"),
        ("wavs/u01", "wavs/u01.wav", "u01"),
        ("wavs\\u01.wav", "wavs/u01.wav", "u01"),
        ("u01", "wavs/u01.flac", "u01"),
        ("u01", "wavs/u01.WAV", "u01"),
        ("u01.wav", "wavs/u01.mp3", "u01"),
        ("u01", "u01.wav", "u01"),
        ("audio/u01.wav", "audio/u01.wav", "audio_u01"),
        ("speaker/u01.wav", "wavs/speaker/u01.wav", "speaker_u01"),
        (unicodedata.normalize("NFC", CAFE), f"wavs/{CAFE}.wav", unicodedata.normalize("NFC", CAFE)),
        ("./wavs/u01.wav", "wavs/u01.wav", "u01"),
    ],
)
def test_ljspeech_finds_the_recording_that_a_name_means(tmp_path, name, there, row_id):
    (tmp_path / "wavs").mkdir()
    _wav(tmp_path / there)
    (tmp_path / "metadata.csv").write_text(f"{name}|some text\n")
    good, rejects = _read({"kind": "ljspeech", "path": str(tmp_path)})
    assert not rejects
    assert [(row.id, row.audio.resolve()) for row in good] == [(row_id, (tmp_path / there).resolve())]


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("data/u01.wav", "data/u01.wav"),
        ("data/wavs/u01.wav", "wavs/u01.wav"),  # the manifest was moved into its folder
        ("data\\wavs\\u01.wav", "wavs/u01.wav"),
        ("u01.mp3", "clips/u01.mp3"),  # Common Voice
        ("u01", "clips/u01.mp3"),
        ("u01.wav", "u01.flac"),
        ("u01.wav.wav", "u01.wav"),
        (unicodedata.normalize("NFC", CAFE) + ".wav", CAFE + ".wav"),
    ],
)
def test_manifests_find_the_recording_that_a_path_means(tmp_path, name, there):
    _wav(tmp_path / there)
    (tmp_path / "m.jsonl").write_text(json.dumps({"audio": name, "text": "one"}) + "\n")
    good, rejects = _read({"kind": "manifest", "path": str(tmp_path / "m.jsonl")})
    assert not rejects
    assert good[0].audio.resolve() == (tmp_path / there).resolve()


def test_a_path_of_another_machine_is_refused_and_the_file_that_is_here_is_named(tmp_path):
    _wav(tmp_path / "wavs" / "u01.wav")
    (tmp_path / "m.jsonl").write_text(json.dumps({"audio": "/home/other/wavs/u01.wav", "text": "one"}) + "\n")
    good, (reject,) = _read({"kind": "manifest", "path": str(tmp_path / "m.jsonl")})
    assert not good
    assert reject.code == "outside_root"
    assert f"{tmp_path / 'wavs' / 'u01.wav'} is there" in reject.detail


def test_a_second_look_never_leaves_the_root_and_finds_nothing_else(tmp_path):
    root = tmp_path / "root"
    _wav(tmp_path / "u01.wav")
    _wav(root / "u02.wav")
    (root / "link.wav").symlink_to(tmp_path / "u01.wav")
    for name in ("u01.wav", "../u01.wav", "link", "u0", "u02.txt", "", "C:", "a" * 300):
        assert second_look(root / name, root) in (None, root / "u02.wav") or name == "link"
    assert second_look(root / "u01.wav", root) is None
    assert second_look(root / "link", root) is None
    assert second_look(root / "u02.flac", root) == root / "u02.wav"
    assert second_look(root / "gone" / "u02.wav", root) == root / "u02.wav"


def _layouts(folder):
    """For each kind with a root: a corpus whose one recording is a link that leads out."""
    outside = _wav(folder / "outside" / "u01.wav")
    corpus = folder / "corpus"
    (corpus / "wavs").mkdir(parents=True)
    (corpus / "wavs" / "u01.wav").symlink_to(outside)
    (corpus / "metadata.csv").write_text("u01|text of it\n")
    (corpus / "m.csv").write_text("audio,text\nwavs/u01.wav,text of it\n")
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"audio": ["wavs/u01.wav"], "text": ["text of it"]}), corpus / "p.parquet")
    return {
        "ljspeech": {"kind": "ljspeech", "path": str(corpus)},
        "manifest": {"kind": "manifest", "path": str(corpus / "m.csv")},
        "parquet": {"kind": "parquet", "path": str(corpus)},
    }


_ADVISED = re.compile(r"\b([a-z]+(?:_[a-z]+)+)\b(?:: (true|false))?|`([a-z_]+)`|\bset ([a-z]+)\b")


@pytest.mark.parametrize("kind", ["ljspeech", "manifest", "parquet"])
def test_each_key_that_is_advised_against_links_is_one_of_this_kind_and_helps(tmp_path, kind):
    tree = _layouts(tmp_path)[kind]
    good, (reject,) = _read(tree)
    assert not good
    assert reject.code == "outside_root"
    advice = reject.detail.replace(str(tmp_path), "")
    keys = {next(filter(None, (m[1], m[3], m[4]))) for m in _ADVISED.finditer(advice)}
    assert "allow_outside_root" in keys
    for key in keys:
        value = True if key == "allow_outside_root" else str(tmp_path / "outside")
        good, rejects = _read({**tree, key: value})
        assert key != "allow_outside_root" or (len(good) == 1 and not rejects)


def test_an_advised_key_of_another_kind_would_be_refused(tmp_path):
    with pytest.raises(ConfigError, match="root"):
        _read({**_layouts(tmp_path)["ljspeech"], "root": "x"})


@pytest.mark.parametrize("kind", ["manifest", "parquet"])
def test_a_missing_column_is_cured_by_the_key_that_is_advised(tmp_path, kind):
    tree = _layouts(tmp_path)[kind]
    with pytest.raises(DataError, match=r"no column for the text.*`columns`, as \{text: NAME\}"):
        list(read_corpus(validate({**tree, "columns": {"text": "words"}}, CorpusConfig, where="corpus")))
    good, _ = _read({**tree, "allow_outside_root": True, "columns": {"text": "text"}})
    assert len(good) == 1
