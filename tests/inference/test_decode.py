import pytest
import torch

from retort.data.batches import CodebookLayout, lay_out
from retort.inference.decode import Decoder
from retort.inference.sampling import NEVER, SamplerConfig, cut_tails, draw
from retort.losses.divergence import legal_log_softmax
from retort.nn.guided_rows import combine_rows, stack_for_guidance
from tests.inference.plain_decoding import GUIDANCES, conditions, decode_plainly, model


@pytest.mark.parametrize("name", GUIDANCES)
@pytest.mark.parametrize("K", [1, 3])
def test_decoding_equals_uncached_unbatched_decoding(K: int, name: str) -> None:
    lm, guidance = model(K), GUIDANCES[name]
    texts = [[5, 6], [7, 8, 9, 10], [4]]
    got = Decoder(lm, precision="fp32").decode(
        conditions(K, texts), guidance=guidance, sampler=SamplerConfig(), seeds=[3, 4, 5], max_frames=12
    )
    for text, seed, result in zip(texts, [3, 4, 5], got, strict=True):
        codes_KT, has_eos = decode_plainly(
            lm, conditions(K, [text]), guidance, SamplerConfig(), seed=seed, max_frames=12
        )
        assert torch.equal(result.codes_KT, codes_KT)
        assert result.has_eos == has_eos
    assert any(result.has_eos for result in got)
    assert all((r.codes_KT >= 0).all() and (r.codes_KT < 6).all() for r in got)


def test_a_row_does_not_depend_on_the_rows_beside_it_nor_on_how_many_decode_at_once() -> None:
    decoder, common = Decoder(model(3), precision="fp32"), {"guidance": GUIDANCES["two"], "sampler": SamplerConfig()}
    given = conditions(3, [[5, 6], [7, 8, 9], [4]])
    together = decoder.decode(given, seeds=[1, 2, 3], max_frames=20, **common)
    few = Decoder(model(3), precision="fp32").decode(given, seeds=[1, 2, 3], max_frames=20, max_slots=2, **common)
    alone = decoder.decode(conditions(3, [[7, 8, 9]]), seeds=[2], max_frames=20, **common)
    assert torch.equal(together[1].codes_KT, alone[0].codes_KT)
    assert all(torch.equal(a.codes_KT, b.codes_KT) for a, b in zip(together, few, strict=True))


def test_kept_top_k_is_the_guided_distribution_of_the_sampled_tokens() -> None:
    lm, guidance = model(3), GUIDANCES["two"]
    given = conditions(3, [[5, 6]])
    result = Decoder(lm, precision="fp32").decode(
        given, guidance=guidance, sampler=SamplerConfig(), seeds=[9], max_frames=8, keep_top_k=4
    )[0]
    assert result.top_k is not None
    inputs, _, mask = lay_out([result.codes_KT], CodebookLayout(6, lm.config.codebook_delays))
    with torch.no_grad():
        logits = combine_rows(lm(stack_for_guidance(given, guidance), inputs.repeat(2, 1, 1)), guidance)
    expected = legal_log_softmax(logits)[0]
    compared = 0
    for k in range(3):
        for s in range(inputs.shape[2]):
            if mask[0, k, s] and s < result.top_k.ids.shape[0]:
                values = expected[s, k][result.top_k.ids[s, k]]
                assert torch.allclose(values, result.top_k.log_probs[s, k], atol=1e-3)
                compared += 1
    assert compared >= 3 * result.codes_KT.shape[1]


def test_without_an_end_every_row_takes_the_limit() -> None:
    results = Decoder(model(2), precision="fp32").decode(
        conditions(2, [[5], [6, 7]]), guidance=GUIDANCES["none"], sampler=SamplerConfig(), seeds=[0, 1],
        max_frames=7, stop_at_eos=False,
    )  # fmt: skip
    assert [r.codes_KT.shape[1] for r in results] == [7, 7]
    assert not any(r.has_eos for r in results)


def test_no_rows_decode_to_nothing() -> None:
    decoder = Decoder(model(2), precision="fp32")
    common = {"guidance": GUIDANCES["none"], "sampler": SamplerConfig()}
    assert decoder.decode(conditions(2, [[5]]), seeds=[], max_frames=7, **common) == []


def test_samples_follow_the_distribution_and_greedy_takes_the_best() -> None:
    N = 4000
    logits = torch.tensor([0.0, 1.0, 2.0]).view(1, 1, 3).expand(N, 1, 3)
    seeds, step = torch.arange(N), torch.zeros(N, dtype=torch.int64)

    def drawn(temperature: float, top_k: int = 0, top_p: float = 1.0) -> torch.Tensor:
        cut = cut_tails(logits, torch.full((N,), top_k), torch.full((N,), top_p))
        return draw(cut, torch.full((N,), temperature), seeds, step)[:, 0]

    frequency = torch.bincount(drawn(1.0), minlength=3) / N
    assert torch.allclose(frequency, logits[0, 0].softmax(-1), atol=0.03)
    assert (drawn(0.0) == 2).all()
    assert set(drawn(1.0, top_k=2).tolist()) == {1, 2}
    assert set(drawn(1.0, top_p=0.6).tolist()) == {2}


def test_top_p_keeps_the_token_that_crosses_the_mass_and_equal_logits_together() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().view(1, 1, 4)
    none, all_mass = torch.tensor([0]), torch.tensor([1.0])
    kept = cut_tails(logits, none, torch.tensor([0.6]))[0, 0] > NEVER
    assert kept.tolist() == [True, True, False, False]
    equal = torch.tensor([1.0, 1.0, 1.0, 0.0]).view(1, 1, 4)
    assert (cut_tails(equal, torch.tensor([2]), all_mass)[0, 0] > NEVER).tolist() == [True, True, True, False]
