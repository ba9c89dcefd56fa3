import random

import pytest
import torch

from retort.data.batches import CodebookLayout
from retort.data.prompts import PromptsById, crop_prompt
from retort.data.stream import BatchConfig, BatchStream
from retort.data.tokens import TokenRow

LAYOUT = CodebookLayout(16, (0, 1))


def _rows(count=12, speakers=3, frames=9):
    generator = torch.Generator().manual_seed(0)
    return [
        TokenRow(
            f"u{i:02d}", "", (3, 4), f"s{i % speakers}", "train",
            torch.randint(16, (2, frames + i), generator=generator), 1.0,
        )
        for i in range(count)
    ]  # fmt: skip


def _by_id(rows):
    return PromptsById([row.id for row in rows], [row.speaker for row in rows])


def test_a_prompt_is_another_utterance_of_the_speaker():
    rows = _rows()
    law = _by_id(rows)
    for row in rows:
        choice = law.choose(row.id, row.speaker)
        assert choice.id == rows[choice.index].id != row.id
        assert rows[choice.index].speaker == row.speaker
        assert 0 <= choice.position < 1


def test_the_choice_does_not_depend_on_the_order_of_the_rows():
    rows = _rows()
    shuffled = random.Random(1).sample(rows, len(rows))
    for row in rows:
        first, second = _by_id(rows).choose(row.id, row.speaker), _by_id(shuffled).choose(row.id, row.speaker)
        assert (first.id, first.position) == (second.id, second.position)


def test_every_other_utterance_is_chosen_by_somebody():
    names = [f"u{i}" for i in range(5)]
    law = PromptsById(names, ["s"] * 5)
    assert {law.choose(f"new-{i}", "s").id for i in range(200)} == set(names)
    assert {law.choose("u3", "s").id for _ in range(3)} <= set(names) - {"u3"}


def test_there_is_no_prompt_without_another_utterance():
    law = PromptsById(["a"], ["s"])
    assert law.choose("a", "s") is None
    assert law.choose("b", "s").id == "a"
    assert law.choose("b", "unknown") is None


@pytest.mark.parametrize(("position", "start"), [(0.0, 0), (0.5, 3), (0.999999, 6)])
def test_a_crop_lies_inside(position, start):
    codes_KT = torch.arange(20).view(2, 10)
    assert torch.equal(crop_prompt(codes_KT, position, 4), codes_KT[:, start : start + 4])
    assert torch.equal(crop_prompt(codes_KT, position, 50), codes_KT)


def test_the_stream_by_id_gives_a_row_the_same_prompt_in_every_batch():
    rows = _rows()
    config = BatchConfig(max_utterances=4, max_frames=1000, prompt_max_frames=5, prompts="by_id")
    seen = {}
    for seed in (0, 1):
        for batch in BatchStream(rows, LAYOUT, config, seed=seed).iterate(0, 6):
            for b, row in enumerate(batch.row_B.tolist()):
                mask = batch.conditions.prompt_mask_BP[b]
                prompt = batch.conditions.prompt_BKP[b][:, mask]
                assert torch.equal(seen.setdefault(row, prompt), prompt)
    assert len(seen) == 12
    choice = _by_id(rows).choose("u05", "s2")
    assert torch.equal(seen[5], crop_prompt(rows[choice.index].codes_KT, choice.position, 5))


def test_random_prompts_change_and_are_never_the_row_itself():
    rows = _rows(speakers=1, frames=20)
    config = BatchConfig(max_utterances=4, max_frames=1000, prompt_max_frames=500)
    prompts = {}
    for batch in BatchStream(rows, LAYOUT, config, seed=0).iterate(0, 30):
        for b, row in enumerate(batch.row_B.tolist()):
            prompt = batch.conditions.prompt_BKP[b][:, batch.conditions.prompt_mask_BP[b]]
            length = prompt.shape[1]
            assert length != rows[row].num_frames
            prompts.setdefault(row, set()).add(length)
    assert all(len(lengths) > 3 for lengths in prompts.values())


@pytest.mark.parametrize("prompts", ["random", "by_id"])
def test_prompts_come_from_the_prompt_rows_alone(prompts):
    real = _rows(3, speakers=1)
    synthetic = [TokenRow("new", "", (3,), "s0", "train", torch.full((2, 30), 15), 1.0)]
    config = BatchConfig(max_utterances=4, max_frames=1000, prompts=prompts)
    stream = BatchStream([*real, *synthetic], LAYOUT, config, seed=0, prompt_rows=real)
    for batch in stream.iterate(0, 8):
        assert batch.conditions.prompt_mask_BP.any(1).all()
        assert batch.conditions.prompt_mask_BP.sum(1).max() < 30
