import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retort.data.batches import CodebookLayout, conditions_for, lay_out, pad_text
from retort.nn.conditions import TEXT_NULL, TEXT_PAD
from retort.text import tokenizer


def test_the_reserved_text_ids_are_the_tokenizers() -> None:
    assert (TEXT_PAD, TEXT_NULL) == (tokenizer.PAD, tokenizer.NULL)


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=3), delays=st.sampled_from([(0,), (0, 1), (0, 1, 3)]))
def test_layout_equals_a_slow_loop(lengths: list[int], delays: tuple[int, ...]) -> None:
    layout = CodebookLayout(10, delays)
    codes = [torch.randint(0, 10, (len(delays), n)) for n in lengths]
    inputs, targets, mask = lay_out(codes, layout)
    for b, code in enumerate(codes):
        T = code.shape[1]
        for k, delay in enumerate(delays):
            column = []
            for s in range(inputs.shape[2]):
                if 0 <= s - delay < T:
                    column.append((int(code[k, s - delay]), True))
                elif k == 0 and s == T:
                    column.append((layout.eos, True))
                else:
                    column.append((layout.fill, False))
            for s, (token, valid) in enumerate(column):
                assert bool(mask[b, k, s]) == valid
                if valid:
                    assert int(targets[b, k, s]) == token
                assert int(inputs[b, k, s]) == (layout.fill if s == 0 else column[s - 1][0])


def test_every_code_and_one_end_is_a_target() -> None:
    layout = CodebookLayout(10, (0, 1, 2, 3))
    _, targets, mask = lay_out([torch.zeros(4, 5, dtype=torch.int64), torch.ones(4, 2, dtype=torch.int64)], layout)
    assert mask.sum((1, 2)).tolist() == [4 * 5 + 1, 4 * 2 + 1]
    assert (targets == layout.eos).sum((1, 2)).tolist() == [1, 1]


def test_text_is_padded_on_the_left_and_dropped_to_one_null() -> None:
    assert pad_text([[5, 6, 7], [8]]).tolist() == [[5, 6, 7], [TEXT_PAD, TEXT_PAD, 8]]
    given_ = conditions_for(
        [[5, 6, 7], [8, 9]], [torch.zeros(2, 3), None], 2, drop_text_B=torch.tensor([True, False]),
        drop_speaker_B=torch.tensor([False, False]),
    )  # fmt: skip
    assert given_.text_BL.tolist() == [[TEXT_PAD, TEXT_NULL], [8, 9]]
    assert given_.prompt_mask_BP.any(1).tolist() == [True, False]
