import io
import wave
from collections import Counter
from pathlib import Path

import pytest

from retort.data.digits import DIGIT_WORDS
from retort.data.fsdd import FSDDConfig
from retort.data.readers import read_corpus
from retort.data.utterance import Reject, Utterance

RECORDINGS = Path(__file__).parents[2].parent / "shared" / "data" / "fsdd"


def _folder(folder):
    """Write ten digits, two speakers, eight recordings each, of which every sample is the recording's number."""
    number = 0
    for digit in range(10):
        for speaker in ("ann", "bob"):
            for index in range(8):
                number += 1
                with wave.open(str(folder / f"{digit}_{speaker}_{index}.wav"), "wb") as file:
                    file.setparams((1, 2, 8000, 0, "NONE", ""))
                    file.writeframes(number.to_bytes(2, "little") * 100)
    return folder


def _numbers(row):
    """Return the recordings inside a joined string, in order."""
    with wave.open(io.BytesIO(row.audio)) as file:
        data = file.readframes(file.getnframes())
    samples = [int.from_bytes(data[i : i + 2], "little") for i in range(0, len(data), 2)]
    return [value for i, value in enumerate(samples) if value and (i == 0 or samples[i - 1] == 0)]


def test_single_digits_are_references_and_the_index_gives_the_split(tmp_path):
    rows = list(read_corpus(FSDDConfig(kind="fsdd", path=_folder(tmp_path))))
    assert len(rows) == 160
    assert all(row.audio == tmp_path / f"{row.id}.wav" for row in rows)
    assert Counter(row.split for row in rows) == {"test": 100, "train": 60}
    assert {(row.id, row.text, row.speaker) for row in rows} >= {
        ("3_ann_0", "three", "ann"),
        ("9_bob_7", "nine", "bob"),
    }


def test_joined_strings_share_no_recording_between_splits_and_have_one_speaker(tmp_path):
    config = FSDDConfig(kind="fsdd", path=_folder(tmp_path), joined=(2, 4), strings_per_speaker=50)
    rows = list(read_corpus(config))
    assert Counter((row.speaker, row.split) for row in rows) == {
        ("ann", "train"): 50, ("ann", "test"): 5, ("bob", "train"): 50, ("bob", "test"): 5,
    }  # fmt: skip
    used = {"train": set(), "test": set()}
    for row in rows:
        numbers = _numbers(row)
        used[row.split].update(numbers)
        assert [DIGIT_WORDS[(n - 1) // 16] for n in numbers] == row.text.split()
        assert {(n - 1) % 16 // 8 for n in numbers} == {0 if row.speaker == "ann" else 1}
        assert row.duration_s == pytest.approx(len(numbers) * 0.0125 + (len(numbers) - 1) * 0.05)
    assert not used["train"] & used["test"]
    assert {len(row.text.split()) for row in rows} == {2, 3, 4}


def test_the_strings_are_deterministic_and_the_seed_changes_them(tmp_path):
    config = FSDDConfig(kind="fsdd", path=_folder(tmp_path), joined=3, strings_per_speaker=5)
    assert list(read_corpus(config)) == list(read_corpus(config))
    assert list(read_corpus(config)) != list(read_corpus(config.replace(seed=1)))


def test_foreign_names_and_broken_files_are_rejected(tmp_path):
    _folder(tmp_path)
    (tmp_path / "readme_x.wav").write_bytes(b"")
    for path in tmp_path.glob("*_bob_*.wav"):
        path.write_bytes(b"RIFF")
    rows = list(read_corpus(FSDDConfig(kind="fsdd", path=tmp_path, joined=2, strings_per_speaker=10)))
    assert Counter(row.code for row in rows if isinstance(row, Reject)) == {"bad_row": 1, "unreadable": 11}
    assert {row.speaker for row in rows if isinstance(row, Utterance)} == {"ann"}


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason="the recordings in ../shared/data are not here")
def test_the_real_recordings_join():
    rows = list(read_corpus(FSDDConfig(kind="fsdd", path=RECORDINGS, joined=(2, 3), strings_per_speaker=3)))
    assert {row.sample_rate for row in rows} == {8000}
    assert Counter(row.split for row in rows) == {"train": 15, "test": 5}
