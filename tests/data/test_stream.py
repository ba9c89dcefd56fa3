from collections import Counter

import pytest
import torch

from retort.data.batches import CodebookLayout
from retort.data.stream import BatchConfig, BatchStream
from retort.data.tokens import TokenRow
from retort.errors import DataError
from retort.nn.conditions import TEXT_NULL

LAYOUT = CodebookLayout(16, (0, 1))


def rows(count: int = 37, speakers: int = 3) -> list[TokenRow]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for i in range(count):
        T = int(torch.randint(3, 20, (1,), generator=generator))
        codes = torch.randint(0, 16, (2, T), generator=generator)
        made.append(TokenRow(f"u{i:03d}", "a", (5, 6), f"s{i % speakers}", "train", codes, T / 40))
    return made


def stream(config: BatchConfig | None = None, **kwargs: int) -> BatchStream:
    config = config or BatchConfig(max_utterances=8, max_frames=100)
    return BatchStream(rows(), LAYOUT, config, seed=kwargs.pop("seed", 1), **kwargs)


def test_a_batch_is_a_function_of_its_number() -> None:
    config = BatchConfig(max_utterances=8, max_frames=100, drop_text=0.2, drop_speaker=0.2, drop_both=0.1)
    fresh, used = stream(config), stream(config)
    for n in range(20):
        used.batch(n)
    for n in (13, 2, 30):
        a, b = fresh.batch(n), used.batch(n)
        assert torch.equal(a.inputs_BKS, b.inputs_BKS)
        assert torch.equal(a.conditions.text_BL, b.conditions.text_BL)
        assert torch.equal(a.conditions.prompt_BKP, b.conditions.prompt_BKP)
        assert torch.equal(a.row_B, b.row_B)
    assert not torch.equal(stream(config, seed=2).batch(0).row_B, fresh.batch(0).row_B)


def test_an_epoch_has_every_row_once_and_ranks_share_it() -> None:
    alone = stream()
    epoch = len(alone._plan.epoch(0))
    seen = Counter(int(i) for n in range(epoch) for i in alone.batch(n).row_B)
    assert seen == Counter(range(37))
    both = [stream(rank=r, world_size=2) for r in (0, 1)]
    for n in range(4):
        for r in (0, 1):
            assert torch.equal(both[r].batch(n).row_B, alone.batch(2 * n + r).row_B)


def test_tokens_are_counted_as_the_batches_hold_them() -> None:
    ranks = [stream(rank=r, world_size=2) for r in (0, 1)]
    seen = sum(int(one.batch(n).num_valid) for one in ranks for n in range(9))
    assert ranks[0].num_valid(9) == ranks[1].num_valid(9) == seen


def test_batches_keep_to_their_limits() -> None:
    config = BatchConfig(max_utterances=6, max_frames=50)
    limited = BatchStream(rows(), LAYOUT, config, seed=0)
    for n in range(15):
        batch = limited.batch(n)
        lengths = [limited.lengths[int(i)] for i in batch.row_B]
        assert len(lengths) <= 6
        assert len(lengths) == 1 or max(lengths) * len(lengths) <= 50


def test_the_prompt_is_another_utterance_of_the_speaker() -> None:
    batches = stream()
    by_content = {row.codes_KT.numpy().tobytes(): i for i, row in enumerate(batches.rows)}
    for n in range(10):
        batch = batches.batch(n)
        for b, row in enumerate(batch.row_B.tolist()):
            P = int(batch.conditions.prompt_mask_BP[b].sum())
            other = by_content[batch.conditions.prompt_BKP[b, :, :P].numpy().tobytes()]
            assert other != row
            assert batches.rows[other].speaker == batches.rows[row].speaker


def test_drops_are_independent_per_row_at_their_rates() -> None:
    config = BatchConfig(max_utterances=8, max_frames=1000, drop_text=0.2, drop_speaker=0.3, drop_both=0.1)
    batches = stream(config)
    counts: Counter[tuple[bool, bool]] = Counter()
    for n in range(400):
        given = batches.batch(n).conditions
        text = (given.text_BL == TEXT_NULL).any(1)
        speaker = ~given.prompt_mask_BP.any(1)
        counts.update(zip(text.tolist(), speaker.tolist(), strict=True))
    total = sum(counts.values())
    rates = {(True, False): 0.2, (False, True): 0.3, (True, True): 0.1, (False, False): 0.4}
    for drop, rate in rates.items():
        assert counts[drop] / total == pytest.approx(rate, abs=0.04)


def test_nothing_to_train_on_is_an_error() -> None:
    with pytest.raises(DataError, match="no rows"):
        BatchStream([], LAYOUT, BatchConfig(max_utterances=1, max_frames=1), seed=0)
    with pytest.raises(DataError, match="below 1"):
        stream(BatchConfig(max_utterances=1, max_frames=1, drop_text=0.5, drop_speaker=0.5))


def test_the_plan_of_batches_is_that_of_earlier_versions() -> None:
    seen = [stream().batch(n).row_B.tolist() for n in (0, 1, 9)]
    assert seen == [[17, 35, 18, 0, 31, 14, 36], [13, 12, 20, 8, 23, 26, 32, 7], [27, 16, 4, 2, 29]]
