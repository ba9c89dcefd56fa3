from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from retort.audio.mel import MelConfig
from retort.data.phone_features import phone_energy, phone_melody
from retort.data.phone_mels import (
    PHONE_MELS_FILE,
    ROWS,
    FromRecordings,
    FromSwaps,
    PhoneMelRow,
    PhoneMelSet,
    PhoneMelSetDescription,
    phone_mel_record,
    phone_mel_schema,
)
from retort.errors import DataError

M, E = 5, 8
DESCRIPTION = PhoneMelSetDescription(
    source=FromRecordings(), mel=MelConfig(num_mels=M), phones=("a", "\u02c8a", "n"), voice="en-us", language="en",
    phonemizer="espeak-ng 1.52", timbre_encoder="resemblyzer-0.1", timbre_dim=E, durations_fingerprint="d", seed=3,
    code_version="x",
)  # fmt: skip


def made(count=23, speakers=3):
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i in range(count):
        frames_P = torch.randint(1, 6, (3 + i % 4,), generator=generator)
        P, T = len(frames_P), int(frames_P.sum())
        phones = tuple(("", "a", "\u02c8a", "n")[int(n)] for n in torch.randint(4, (P,), generator=generator))
        rows.append(
            PhoneMelRow(
                id=f"u{i:03d}", text="a n", speaker=f"s{i % speakers}",
                split=("train", "train", "validation", "test")[i % 4], phones=phones, frames_P=frames_P,
                mel_TM=torch.randn(T, M, generator=generator), log_f0_P=torch.randn(P, generator=generator),
                voiced_P=torch.rand(P, generator=generator) > 0.5, energy_P=torch.randn(P, generator=generator),
                timbre_E=torch.nn.functional.normalize(torch.randn(E, generator=generator), dim=0),
            )
        )  # fmt: skip
    return rows


def write(folder, rows, description=DESCRIPTION):
    (folder / ROWS).mkdir(parents=True)
    records = [phone_mel_record(row, i, description) for i, row in enumerate(rows)]
    for number in range(3):  # shards in no order of the ids, and with several groups
        table = pa.Table.from_pylist(records[number::3][::-1], schema=phone_mel_schema())
        pq.write_table(table, folder / ROWS / f"part-{number:05d}.parquet", row_group_size=4)
    (folder / PHONE_MELS_FILE).write_text(description.model_dump_json())
    return folder


def test_rows_come_back_in_order_of_their_ids_with_their_mels_in_fp16_and_the_rest_exact(tmp_path):
    mels = PhoneMelSet.open(write(tmp_path / "set", made()))
    assert mels.description == DESCRIPTION
    assert mels.column("id") == [row.id for row in mels] == [row.id for row in made()]
    for row, original in zip(mels, made(), strict=True):
        plain = ("id", "text", "speaker", "split", "phones", "source_id", "prompt_speaker")
        assert all(getattr(row, name) == getattr(original, name) for name in plain)
        for name in ("frames_P", "log_f0_P", "voiced_P", "energy_P", "timbre_E"):
            value = getattr(row, name)
            assert value.dtype == getattr(original, name).dtype
            assert torch.equal(value, getattr(original, name))
        assert torch.equal(row.mel_TM, original.mel_TM.half().float())
        assert int(row.frames_P.sum()) == len(row.mel_TM)
    assert mels.column("num_frames") == [len(row.mel_TM) for row in mels]
    assert mels.column("num_phones") == [len(row.phones) for row in mels]


def test_splits_part_the_rows(tmp_path):
    mels = PhoneMelSet.open(write(tmp_path / "set", made()))
    parts = [mels.split(name) for name in ("train", "validation", "test")]
    assert sorted(row.id for part in parts for row in part) == mels.column("id")
    assert {row.split for row in parts[1]} == {"validation"}
    assert [row.id for row in parts[0][2:5]] == parts[0].column("id")[2:5]


def test_a_swapped_row_names_its_source_and_whose_voice_was_asked_for(tmp_path):
    source = FromSwaps(
        teacher_fingerprint="t", mels_fingerprint="m", pairs_per_row=1, noise_scale=0.7, filters={"max_cer": None}
    )
    rows = [replace(row, id=f"{row.id}~0", source_id=row.id, prompt_speaker=row.speaker) for row in made(4)]
    mels = PhoneMelSet.open(write(tmp_path / "set", rows, DESCRIPTION.replace(source=source)))
    assert mels.description.source == source
    assert [row.source_id for row in mels] == mels.column("source_id") == [row.id for row in made(4)]
    assert [row.prompt_speaker for row in mels] == [row.speaker for row in mels]


def test_a_folder_without_a_set_or_with_an_id_twice_is_refused(tmp_path):
    with pytest.raises(DataError, match="not a phone mel set"):
        PhoneMelSet.open(tmp_path)
    twice = [*made(4), made(4)[2]]
    with pytest.raises(DataError, match="1 ids appear twice"):
        PhoneMelSet.open(write(tmp_path / "twice", twice))


def test_melody_and_energy_are_means_over_a_phones_own_frames():
    frames_P, f0_T = torch.tensor([2, 3, 1]), torch.tensor([0.0, 100.0, 0.0, 0.0, 0.0, 200.0])
    log_f0_P, voiced_P = phone_melody(f0_T, frames_P)
    assert voiced_P.tolist() == [True, False, True]
    assert torch.allclose(log_f0_P, torch.tensor([100.0, 1.0, 200.0]).log())
    mel_TM = torch.randn(6, M, generator=torch.Generator().manual_seed(1))
    slow_P = [
        float(sum(mel_TM[t].exp().norm().log() for t in range(a, b)) / (b - a)) for a, b in ((0, 2), (2, 5), (5, 6))
    ]
    assert phone_energy(mel_TM, frames_P).tolist() == pytest.approx(slow_P, abs=1e-5)
