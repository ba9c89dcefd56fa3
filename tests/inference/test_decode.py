import pytest
import torch

from retort.data.batches import CodebookLayout, conditions_for, lay_out
from retort.inference.decode import combine_rows, decode, stack_for_guidance
from retort.inference.sampling import SamplerConfig, forbid_illegal, sample
from retort.losses.divergence import legal_log_softmax
from retort.models.codec_lm import CodecLM, CodecLMConfig
from retort.nn.conditions import Conditions
from retort.nn.guidance import Guidance, NoGuidance, ThreeTermGuidance, TwoTermGuidance

GUIDANCES = {
    "none": NoGuidance().build(),
    "two": TwoTermGuidance(scale=2.0).build(),
    "three": ThreeTermGuidance(first_scale=1.5, second_scale=2.0).build(),
}


def model(K: int) -> CodecLM:
    torch.manual_seed(0)
    lm = CodecLM(
        CodecLMConfig(
            text_vocabulary_size=12, num_codebooks=K, codebook_size=6, dim=32, num_layers=2, num_heads=2,
            num_kv_heads=2, ffn_dim=48,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        lm.heads.weight.mul_(20)  # far from uniform, so that a wrong order of anything shows
    return lm


def conditions(K: int, texts: list[list[int]]) -> Conditions:
    prompt = torch.randint(0, 6, (K, 4), generator=torch.Generator().manual_seed(5))
    return conditions_for(texts, [prompt] * len(texts), K)


def slow_decode(lm: CodecLM, given: Conditions, guidance: Guidance, seed: int, limit: int) -> tuple[torch.Tensor, bool]:
    """Uncached, one row: run the whole model again for every step."""
    K, delays = lm.config.num_codebooks, lm.config.codebook_delays
    columns = [[lm.config.fill] * K]
    end = limit
    for s in range(limit + max(1, max(delays))):
        inputs = torch.tensor(columns).T[None].repeat(len(guidance.conditions), 1, 1)
        with torch.no_grad():
            logits = combine_rows(lm(stack_for_guidance(given, guidance), inputs), guidance)[:, -1]
        token = sample(forbid_illegal(logits), SamplerConfig(), seed_B=torch.tensor([seed]), counter=s)[0].tolist()
        if end == limit and s < limit and token[0] == lm.config.eos:
            end = s
        column = [token[k] if 0 <= s - delays[k] < end else lm.config.fill for k in range(K)]
        if s == end and end < limit:
            column[0] = lm.config.eos
        columns.append(column)
    steps = torch.tensor(columns[1:]).T
    return torch.stack([steps[k, delays[k] : delays[k] + end] for k in range(K)]), end < limit


@pytest.mark.parametrize("name", GUIDANCES)
@pytest.mark.parametrize("K", [1, 3])
def test_decoding_equals_uncached_unbatched_decoding(K: int, name: str) -> None:
    lm, guidance = model(K), GUIDANCES[name]
    texts = [[5, 6], [7, 8, 9, 10], [4]]
    got = decode(
        lm, conditions(K, texts), guidance=guidance, sampler=SamplerConfig(), seeds=[3, 4, 5], max_frames=12
    )  # fmt: skip
    ended = 0
    for text, seed, result in zip(texts, [3, 4, 5], got, strict=True):
        codes, has_eos = slow_decode(lm, conditions(K, [text]), guidance, seed, 12)
        assert torch.equal(result.codes_KT, codes)
        assert result.has_eos == has_eos
        ended += has_eos
    assert all((r.codes_KT >= 0).all() and (r.codes_KT < 6).all() for r in got)


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    lm = model(3)
    together = decode(
        lm, conditions(3, [[5, 6], [7, 8, 9]]), guidance=GUIDANCES["two"], sampler=SamplerConfig(), seeds=[1, 2],
        max_frames=20,
    )  # fmt: skip
    alone = decode(
        lm, conditions(3, [[7, 8, 9]]), guidance=GUIDANCES["two"], sampler=SamplerConfig(), seeds=[2], max_frames=20
    )
    assert torch.equal(together[1].codes_KT, alone[0].codes_KT)


def test_kept_top_k_is_the_guided_distribution_of_the_sampled_tokens() -> None:
    lm, guidance = model(3), GUIDANCES["two"]
    given = conditions(3, [[5, 6]])
    result = decode(
        lm, given, guidance=guidance, sampler=SamplerConfig(), seeds=[9], max_frames=8, keep_top_k=4
    )[0]  # fmt: skip
    assert result.top_k is not None
    inputs, _, mask = lay_out([result.codes_KT], CodebookLayout(6, lm.config.codebook_delays))
    with torch.no_grad():
        logits = combine_rows(lm(stack_for_guidance(given, guidance), inputs.repeat(2, 1, 1)), guidance)
    expected = legal_log_softmax(logits)[0]
    for k in range(3):
        for s in range(inputs.shape[2]):
            if mask[0, k, s] and s < result.top_k.ids.shape[0]:
                values = expected[s, k][result.top_k.ids[s, k]]
                assert torch.allclose(values, result.top_k.log_probs[s, k], atol=1e-3)


def test_without_an_end_every_row_takes_the_limit() -> None:
    results = decode(
        model(2), conditions(2, [[5], [6, 7]]), guidance=GUIDANCES["none"], sampler=SamplerConfig(), seeds=[0, 1],
        max_frames=7, stop_at_eos=False,
    )  # fmt: skip
    assert [r.codes_KT.shape[1] for r in results] == [7, 7]
    assert not any(r.has_eos for r in results)


def test_samples_follow_the_distribution_and_greedy_takes_the_best() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0]).view(1, 1, 3).expand(4000, 1, 3)
    drawn = sample(logits, SamplerConfig(), seed_B=torch.arange(4000), counter=0)[:, 0]
    frequency = torch.bincount(drawn, minlength=3) / 4000
    assert torch.allclose(frequency, logits[0, 0].softmax(-1), atol=0.03)
    assert (sample(logits, SamplerConfig(temperature=0), seed_B=torch.arange(4000), counter=0) == 2).all()
    cut = sample(logits, SamplerConfig(top_k=2), seed_B=torch.arange(4000), counter=0)
    assert set(cut.flatten().tolist()) == {1, 2}
    nucleus = sample(logits, SamplerConfig(top_p=0.6), seed_B=torch.arange(4000), counter=0)
    assert set(nucleus.flatten().tolist()) == {2}
