from collections import Counter
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from retort.audio.mel import MelConfig
from retort.data.mel_stream import MelBatchConfig, MelStream, mel_batch
from retort.data.mels import MELS_FILE, ROWS, FromRecordings, MelRow, MelSet, MelSetDescription, mel_record, mel_schema
from retort.errors import DataError

M, D, FRAMES = 5, 6, 2
DESCRIPTION = MelSetDescription(
    source=FromRecordings(), lm_fingerprint="l", data_fingerprint="d", codec_fingerprint="c", text_fingerprint="t",
    latent_dim=D, frames_per_latent=FRAMES, mel=MelConfig(num_mels=M), soft_floor=1e-3, voice_max_frames=4,
    precision="float32", seed=3, code_version="x",
)  # fmt: skip


def made(count=37, speakers=3):
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i in range(count):
        L = int(torch.randint(3, 12, (1,), generator=generator))
        split = "validation" if i % 9 == 8 else "train"
        latents, mel = torch.randn(L, D, generator=generator), torch.randn(FRAMES * L, M, generator=generator)
        rows.append(MelRow(f"u{i:03d}", "a", f"s{i % speakers}", split, latents, mel, None))
    return rows


def write(folder, rows, description=DESCRIPTION):
    (folder / ROWS).mkdir(parents=True)
    for number in range(3):  # shards in no order of the ids, and with several groups
        records = [mel_record(row, i, description) for i, row in enumerate(rows)][number::3][::-1]
        table = pa.Table.from_pylist(records, schema=mel_schema())
        pq.write_table(table, folder / ROWS / f"part-{number:05d}.parquet", row_group_size=4)
    (folder / MELS_FILE).write_text(description.model_dump_json())
    return folder


@pytest.fixture(scope="module")
def mels(tmp_path_factory):
    return MelSet.open(write(tmp_path_factory.mktemp("mels") / "set", made()))


def stream(mels, *, seed=1, **ranks):
    return MelStream(mels, MelBatchConfig(max_utterances=8, max_frames=100), seed=seed, **ranks)


def test_rows_come_back_in_order_of_their_ids_rounded_to_fp16(mels):
    assert [row.id for row in mels] == [row.id for row in made()] == mels.column("id")
    for row, original in zip(mels, made(), strict=True):
        assert (row.text, row.speaker, row.split) == (original.text, original.speaker, original.split)
        assert torch.equal(row.mel_TM, original.mel_TM.half().float())
        assert torch.equal(row.latents_LD, original.latents_LD.half().float())
    assert {row.split for row in mels.split("validation")} == {"validation"}
    assert len(mels.split("validation")) + len(mels.split("train")) == len(mels)


def test_rows_are_the_same_whether_or_not_they_are_kept_in_memory(mels, tmp_path, monkeypatch):
    monkeypatch.setattr("retort.data.shards._KEPT_BYTES", 500)
    small = MelSet.open(write(tmp_path / "set", made()))
    for i in (36, 0, 17, 36, 5, 0):
        assert torch.equal(small[i].mel_TM, mels[i].mel_TM)
        assert torch.equal(small[i].voice_PM, mels[i].voice_PM)


def test_the_voice_is_a_crop_of_another_training_row_of_the_speaker(mels):
    by_id = {row.id: row for row in mels}
    for row in mels:
        P = len(row.voice_PM)
        sources = {
            name
            for name, other in by_id.items()
            for t in range(len(other.mel_TM) - P + 1)
            if torch.equal(other.mel_TM[t : t + P], row.voice_PM)
        }
        assert len(sources) == 1
        source = by_id[sources.pop()]
        assert source.id != row.id
        assert (source.speaker, source.split) == (row.speaker, "train")
        assert min(len(source.mel_TM), DESCRIPTION.voice_max_frames * FRAMES) == P


def test_the_voice_stays_when_other_speakers_come_and_the_order_changes(mels, tmp_path):
    more = [*made(), *(replace(row, id=f"x{row.id}", speaker="new") for row in made(7))]
    larger = {row.id: row for row in MelSet.open(write(tmp_path / "set", more[::-1]))}
    assert all(torch.equal(row.voice_PM, larger[row.id].voice_PM) for row in mels)


def test_a_speaker_without_training_rows_has_voices_and_a_lonely_row_has_none(tmp_path):
    held_out = [replace(row, id=f"v{row.id}", speaker="held", split="validation") for row in made(3)]
    lonely = replace(made(1)[0], id="lonely", speaker="alone")
    rows = {row.id: row for row in MelSet.open(write(tmp_path / "set", [*made(), *held_out, lonely]))}
    assert rows["lonely"].voice_PM is None
    assert all(rows[row.id].voice_PM is not None for row in held_out)


def test_a_batch_is_a_function_of_its_number(mels):
    fresh, used = stream(mels), stream(mels)
    for n in range(20):
        used.batch(n)
    for n in (13, 2, 30):
        a, b = fresh.batch(n), used.batch(n)
        assert torch.equal(a.mel_BTM, b.mel_BTM)
        assert torch.equal(a.row_B, b.row_B)
        assert torch.equal(a.conditions.voice_BPM, b.conditions.voice_BPM)
        assert torch.equal(a.conditions.latents_BLD, b.conditions.latents_BLD)
    assert not torch.equal(stream(mels, seed=2).batch(0).row_B, fresh.batch(0).row_B)


def test_an_epoch_has_every_row_once_and_ranks_share_it(mels):
    alone = stream(mels)
    seen, n = Counter(), 0
    while sum(seen.values()) < len(mels):
        seen.update(alone.batch(n).row_B.tolist())
        n += 1
    assert seen == Counter(range(len(mels)))
    for rank in (0, 1):
        one = stream(mels, rank=rank, world_size=2)
        assert all(torch.equal(one.batch(n).row_B, alone.batch(2 * n + rank).row_B) for n in range(4))


def test_batches_keep_to_their_limits_and_valid_frames_are_counted_as_they_hold_them(mels):
    ranks = [
        MelStream(mels, MelBatchConfig(max_utterances=6, max_frames=60), seed=0, rank=r, world_size=2) for r in (0, 1)
    ]
    seen = 0
    for one in ranks:
        for batch in one.iterate(0, 9):
            assert len(batch.mel_BTM) <= 6
            assert len(batch.mel_BTM) == 1 or batch.mel_BTM[..., 0].numel() <= 60
            seen += int(batch.num_valid)
    assert ranks[0].num_valid(9) == ranks[1].num_valid(9) == seen


def test_a_batch_holds_its_rows_and_padding_that_the_masks_leave_out(mels):
    batch = stream(mels).batch(0)
    assert len(set(batch.conditions.latent_lengths_B.tolist())) > 1
    for b, index in enumerate(batch.row_B.tolist()):
        row, given = mels[index], batch.conditions
        T, L, P = len(row.mel_TM), len(row.latents_LD), len(row.voice_PM)
        assert torch.equal(batch.mel_BTM[b, :T], row.mel_TM)
        assert not batch.mel_BTM[b, T:].any()
        assert torch.equal(given.latents_BLD[b, :L], row.latents_LD)
        assert torch.equal(given.voice_BPM[b, :P], row.voice_PM)
        assert (int(given.mask_BT[b].sum()), int(given.latent_lengths_B[b])) == (T, L)
        assert given.voice_mask_BP[b].tolist() == [p < P for p in range(given.voice_mask_BP.shape[1])]
    assert torch.equal(mel_batch([mels[3]]).mel_BTM[0], mels[3].mel_TM)


def test_what_is_not_a_mel_set_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no mels\.json"):
        MelSet.open(tmp_path)
    with pytest.raises(DataError, match="1 ids appear twice"):
        MelSet.open(write(tmp_path / "twice", [*made(5), made(1)[0]]))
    folder = write(tmp_path / "old", made(5))
    (folder / MELS_FILE).write_text('{"source": {"kind": "recordings"}}')
    with pytest.raises(DataError, match="not of this version"):
        MelSet.open(folder)
    with pytest.raises(DataError, match="no mels to train on"):
        stream(MelSet.open(write(tmp_path / "set", made(5))).split("test"))
