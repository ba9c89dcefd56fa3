import pytest
import torch

from retort.data.batches import CodebookLayout, lay_out
from retort.models.codec_lm import CodecLM, CodecLMConfig
from retort.models.latents import latent_inputs, latents_of
from retort.nn.conditions import TEXT_PAD, Conditions

V = 16


def lm(delays: tuple[int, ...] | None = None, num_codebooks: int = 3) -> CodecLM:
    config = CodecLMConfig(
        text_vocabulary_size=12, num_codebooks=num_codebooks, codebook_size=V, dim=32, num_layers=2, num_heads=4,
        num_kv_heads=2, ffn_dim=48, delays=delays,
    )  # fmt: skip
    torch.manual_seed(0)
    return CodecLM(config).eval()


def given(texts: list[list[int]], num_codebooks: int = 3) -> Conditions:
    L = max(map(len, texts))
    text = torch.tensor([[TEXT_PAD] * (L - len(t)) + t for t in texts])
    prompt = torch.randint(0, V, (len(texts), num_codebooks, 4), generator=torch.Generator().manual_seed(1))
    return Conditions(text, prompt, torch.ones(len(texts), 4, dtype=torch.bool))


def codes_of(T: int, seed: int = 0, num_codebooks: int = 3) -> torch.Tensor:
    return torch.randint(0, V, (num_codebooks, T), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("delays", [(0, 1, 2), (0, 0, 0), (0, 3, 1)])
def test_a_frame_sees_all_its_codes_and_no_more_than_the_delays_imply(delays: tuple[int, ...]) -> None:
    model, codes = lm(delays), codes_of(12)
    before = latents_of(model, given([[5, 6, 7]]), [codes])[0]
    assert before.shape == (12, 32)
    assert before.dtype == torch.float32
    t = 5
    for k, delay in enumerate(delays):
        last_seen = t + max(delays) - delay
        for frame in range(12):
            changed = codes.clone()
            changed[k, frame] = (changed[k, frame] + 1) % V
            after = latents_of(model, given([[5, 6, 7]]), [changed])[0]
            assert torch.equal(before[t], after[t]) == (frame > last_seen), (k, frame)


@pytest.mark.parametrize("delays", [(0, 1, 2), (0, 0, 0), (0, 2, 1)])
def test_a_row_alone_has_the_latents_that_it_has_in_a_batch(delays: tuple[int, ...]) -> None:
    model = lm(delays)
    texts, codes = [[5, 6], [7, 8, 9, 10, 11], [4]], [codes_of(3), codes_of(11, 1), codes_of(7, 2)]
    together = given(texts)
    batch = latents_of(model, together, codes)
    assert [len(row) for row in batch] == [3, 11, 7]
    for b, code in enumerate(codes):
        assert torch.allclose(latents_of(model, together.row(b), [code])[0], batch[b], atol=1e-5)


@pytest.mark.parametrize("delays", [(0, 1, 2), (0, 0, 0), (0, 3, 1)])
def test_the_inputs_are_those_of_teacher_forcing_and_one_more_where_a_delay_needs_it(delays: tuple[int, ...]) -> None:
    codes = [codes_of(3), codes_of(8, 1)]
    forced, _, _ = lay_out(codes, CodebookLayout(V, delays))
    ours = latent_inputs(lm(delays).config, codes)
    assert torch.equal(ours[:, :, : forced.shape[2]], forced)
    assert ours.shape[2] == 8 + max(delays) + 1
    last = [codes[1][k, 7] if delay == max(delays) else None for k, delay in enumerate(delays)]
    assert all(code is None or ours[1, k, -1] == code for k, code in enumerate(last))


def test_the_heads_read_the_latents() -> None:
    model, codes = lm((0, 0, 0)), codes_of(6)
    inputs = latent_inputs(model.config, [codes])
    logits = model(given([[5, 6]]), inputs)
    assert torch.equal(model.heads(model.states(given([[5, 6]]), inputs)).view_as(logits), logits)
