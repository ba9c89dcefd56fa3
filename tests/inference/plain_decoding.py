"""The slow reference: uncached, one utterance, the whole model again for every step."""

import torch
from torch import Tensor

from retort.data.batches import conditions_for
from retort.inference.sampling import NEVER, SamplerConfig, cut_tails, draw
from retort.models.codec_lm import CodecLM, CodecLMConfig
from retort.nn.conditions import Conditions
from retort.nn.guidance import Guidance, NoGuidance, ThreeTermGuidance, TwoTermGuidance
from retort.nn.guided_rows import combine_rows, stack_for_guidance

GUIDANCES = {
    "none": NoGuidance().build(),
    "two": TwoTermGuidance(scale=2.0).build(),
    "three": ThreeTermGuidance(first_scale=1.5, second_scale=2.0).build(),
}
GREEDY = SamplerConfig(temperature=0)


def model(K: int, *, num_kv_heads: int = 2, qkv_bias: bool = False) -> CodecLM:
    """Random weights, far from uniform, so that a wrong order of anything shows."""
    torch.manual_seed(0)
    config = CodecLMConfig(
        text_vocabulary_size=12, num_codebooks=K, codebook_size=6, dim=32, num_layers=2, num_heads=2,
        num_kv_heads=num_kv_heads, ffn_dim=40, qkv_bias=qkv_bias,
    )  # fmt: skip
    lm = CodecLM(config).eval()
    with torch.no_grad():
        lm.heads.weight.mul_(20)
        for name, parameter in lm.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
    return lm


def conditions(K: int, texts: list[list[int]]) -> Conditions:
    """Texts with one prompt for all of them."""
    prompt = torch.randint(0, 6, (K, 4), generator=torch.Generator().manual_seed(5))
    return conditions_for(texts, [prompt] * len(texts), K)


def decode_plainly(
    lm: CodecLM, given: Conditions, guidance: Guidance, sampler: SamplerConfig, *, seed: int, max_frames: int
) -> tuple[Tensor, bool]:
    """Codes [K, T] of one row, and whether the model ended it."""
    K, delays, eos, fill = lm.config.num_codebooks, lm.config.codebook_delays, lm.config.eos, lm.config.fill
    columns, end, has_ended, step = [[fill] * K], max_frames, False, 0
    while step < (end + max(delays) if has_ended else max_frames + max(1, max(delays))):
        inputs = torch.tensor(columns).T[None].repeat(len(guidance.conditions), 1, 1)
        with torch.no_grad():
            logits = combine_rows(lm(stack_for_guidance(given, guidance), inputs), guidance)[:, -1].float()
        logits[:, 1:, -1] = NEVER
        if sampler.temperature > 0:
            logits = logits / sampler.temperature
        if sampler.cuts:
            top_p = 1.0 if sampler.top_p is None else sampler.top_p
            logits = cut_tails(logits, torch.tensor([sampler.top_k or 0]), torch.tensor([top_p]))
        token = draw(logits, torch.tensor([sampler.temperature]), torch.tensor([seed]), torch.tensor([step]))[
            0
        ].tolist()
        ends = token[0] == eos and not has_ended and step <= max_frames
        if ends:
            end, has_ended = step, True
        column = [token[k] if 0 <= step - delays[k] < end else fill for k in range(K)]
        if ends:
            column[0] = eos
        columns.append(column)
        step += 1
    steps = torch.tensor(columns[1:]).T
    return torch.stack([steps[k, delays[k] : delays[k] + end] for k in range(K)]), has_ended
