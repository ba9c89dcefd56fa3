"""Batches of phone mels: prompts, shares of swapped rows, directions, padding, and what is refused."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from retort.data.phone_mel_stream import PhoneMelBatch, PhoneMelStream
from retort.data.phone_mels import FromRecordings, PhoneMelRow
from retort.errors import DataError
from retort.nn.phone_conditions import phones_at_frames
from tests.methods.zero_shot_toys import (
    BATCHES,
    INVENTORY,
    SPEAKERS,
    describe,
    swapped_rows,
    swaps_of,
    toy_rows,
    toy_stream,
    write_set,
)


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for field in fields(value) for tensor in tensors(getattr(value, field.name))]


def mels_of(batch: PhoneMelBatch, row: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Source, target and prompt without their padding."""
    frames, prompt = int(batch.mask_BT[row].sum()), int(batch.voice.mask_BS[row].sum())
    return batch.source_BTM[row, :frames], batch.target_BTM[row, :frames], batch.voice.mel_BSM[row, :prompt]


def is_part_of(part: torch.Tensor, whole: torch.Tensor) -> bool:
    """Whether a mel is cut from another, which was stored with 16 bits."""
    starts = range(len(whole) - len(part) + 1)
    return any(torch.allclose(part, whole[start : start + len(part)], atol=2e-2) for start in starts)


def test_a_batch_is_a_pure_function_of_seed_and_number(tmp_path: Path) -> None:
    stream = toy_stream(tmp_path, share=0.5)
    again = PhoneMelStream(stream.rows, BATCHES, seed=3, swaps=stream.swaps)
    other = PhoneMelStream(stream.rows, BATCHES, seed=4, swaps=stream.swaps)
    [again.batch(n) for n in (2, 0)]
    same = [torch.equal(a, b) for a, b in zip(tensors(stream.batch(5)), tensors(again.batch(5)), strict=True)]
    assert all(same)
    assert stream.ids(5) == again.ids(5)
    assert [other.ids(n) for n in range(3)] != [stream.ids(n) for n in range(3)]


def test_rows_are_whole_and_frames_are_the_phones(tmp_path: Path) -> None:
    stream = toy_stream(tmp_path)
    batch = stream.batch(0)
    for row, index in enumerate(batch.row_B.tolist()):
        real: PhoneMelRow = stream.rows[index]
        source, target, _ = mels_of(batch, row)
        assert torch.equal(source, real.mel_TM)
        assert torch.equal(target, real.mel_TM)
        count = len(real.phones)
        numbers = batch.spoken.phones_BP[row, :count].tolist()
        assert [("", *INVENTORY)[n - 1] for n in numbers] == list(real.phones)
        assert torch.equal(batch.spoken.frames_BP[row, :count], real.frames_P)
        assert not bool(batch.spoken.phones_BP[row, count:].any())
    at_BT = phones_at_frames(batch.spoken.frames_BP, batch.mask_BT.shape[1])
    for row, frames in enumerate(batch.spoken.frames_BP):
        expected = torch.arange(len(frames)).repeat_interleave(frames)
        assert torch.equal(at_BT[row, : len(expected)], expected)
    assert int(batch.num_valid) == int(batch.spoken.frames_BP.sum())
    assert stream.num_valid(2) == int(batch.num_valid) + int(stream.batch(1).num_valid)


def test_a_prompt_is_another_recording_of_the_voice(tmp_path: Path) -> None:
    stream = toy_stream(tmp_path)
    rows = list(stream.rows)
    chosen = set()
    for n in range(12):
        batch = stream.batch(n)
        for row, index in enumerate(batch.row_B.tolist()):
            timbre, prompt = batch.voice.timbre_BE[row], mels_of(batch, row)[2]
            found = [i for i, other in enumerate(rows) if torch.equal(other.timbre_E, timbre)]
            assert len(found) == 1
            assert found[0] != index
            assert rows[found[0]].speaker == rows[index].speaker
            assert len(prompt) <= BATCHES.prompt_max_frames
            assert is_part_of(prompt, rows[found[0]].mel_TM)
            chosen.add((index, found[0]))
    assert len(chosen) > len(rows), "prompts change from epoch to epoch"


@pytest.mark.parametrize("direction", ["synth_source", "synth_target"])
def test_swapped_rows_lie_on_the_side_that_is_asked_for(tmp_path: Path, direction: str) -> None:
    stream = toy_stream(tmp_path, share=1.0, direction=direction)
    assert stream.swaps is not None
    said = {row.source_id: row for row in stream.swaps.rows}
    batch = stream.batch(1)
    assert bool(batch.swapped_B.all())
    for row, index in enumerate(batch.row_B.tolist()):
        real = stream.rows[index]
        swapped = said[real.id]
        source, target, prompt = mels_of(batch, row)
        pair = (swapped, real) if direction == "synth_source" else (real, swapped)
        assert torch.equal(source, pair[0].mel_TM)
        assert torch.equal(target, pair[1].mel_TM)
        assert SPEAKERS[int(batch.speaker_B[row])] == pair[1].speaker
        assert torch.equal(batch.spoken.log_f0_BP[row, : len(real.phones)], pair[1].log_f0_P)
        voices = [other for other in stream.rows if other.speaker == pair[1].speaker and other.id != real.id]
        assert any(is_part_of(prompt, other.mel_TM) for other in voices), "a recording of the target's voice"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_the_share_of_swapped_rows_is_what_was_asked_for(tmp_path: Path, share: float) -> None:
    stream = toy_stream(tmp_path, share=share)
    swapped = torch.cat([stream.batch(n).swapped_B for n in range(100)]).float()
    deviation = (share * (1 - share) / len(swapped)) ** 0.5
    assert abs(float(swapped.mean()) - share) <= 4 * deviation


def test_rows_without_a_swapped_one_stay_real(tmp_path: Path) -> None:
    rows = toy_rows()
    opened = write_set(tmp_path / "real", rows, describe(FromRecordings()))
    stream = PhoneMelStream(opened, BATCHES, seed=0, swaps=swaps_of(tmp_path / "swapped", rows[:5], 1.0))
    found = {stream.rows[int(i)].id for n in range(6) for i in stream.batch(n).row_B[stream.batch(n).swapped_B]}
    assert found == {row.id for row in rows[:5]}
    assert stream.swapped_share == 5 / len(rows)
    half = PhoneMelStream(opened, BATCHES, seed=0, swaps=swaps_of(tmp_path / "half", rows[:5], 0.5))
    assert half.swapped_share == 2.5 / len(rows)
    assert PhoneMelStream(opened, BATCHES, seed=0).swapped_share == 0.0


def test_ranks_share_the_batches(tmp_path: Path) -> None:
    alone = toy_stream(tmp_path)
    ranks = [PhoneMelStream(alone.rows, BATCHES, seed=3, rank=rank, world_size=2) for rank in range(2)]
    assert [ranks[n % 2].ids(n // 2) for n in range(6)] == [alone.ids(n) for n in range(6)]
    assert ranks[0].num_valid(3) == ranks[1].num_valid(3) == alone.num_valid(6)


def test_what_cannot_be_trained_on_is_refused(tmp_path: Path) -> None:
    rows = toy_rows()
    lonely = write_set(tmp_path / "lonely", [rows[0], *rows[1::4]], describe(FromRecordings()))
    with pytest.raises(DataError, match=r"1 speakers have a single training row \(ada\).*another recording"):
        PhoneMelStream(lonely, BATCHES, seed=0)
    with pytest.raises(DataError, match="no phone mels to train on"):
        PhoneMelStream(lonely.split("test"), BATCHES, seed=0)
    real = write_set(tmp_path / "real", rows[:8], describe(FromRecordings()))
    with pytest.raises(DataError, match="no swapped row is of a training row"):
        PhoneMelStream(real, BATCHES, seed=0, swaps=swaps_of(tmp_path / "other", rows[8:], 0.5))
    assert swapped_rows(rows)[0].source_id == rows[0].id
