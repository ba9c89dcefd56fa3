"""A codec language model and the same network as ``transformers`` knows it, with one set of random weights.

One codebook (K = 1), no text: a prompt of tokens, then the start column. So both sides see the same sequence, and their
greedy tokens can be compared one by one. The last two ids, end of speech and fill, are never drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retort.inference.runner import Plan
from retort.inference.sampling import SamplerConfig
from retort.models.codec_lm import CodecLM, CodecLMConfig
from retort.nn.transformer import Block

CODES = 4096
GREEDY = SamplerConfig(temperature=0)


@dataclass(frozen=True)
class Shape:
    """Size of a network."""

    dim: int
    num_layers: int
    num_heads: int
    ffn_dim: int


SHAPES = {
    "5M": Shape(256, 4, 4, 688),
    "29M": Shape(512, 8, 8, 1376),
    "88M": Shape(768, 12, 12, 1952),
    "180M": Shape(1024, 12, 8, 3200),
    "500M": Shape(1536, 16, 12, 4608),
    "1.3B": Shape(2048, 24, 16, 5632),
}
"""The last three are the sizes of paper 1, as in ``retort.models.presets``; they are for GPUs."""


def ours(shape: Shape, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> CodecLM:
    """Random weights; larger than at the start of training, so that greedy tokens are far from ties."""
    torch.manual_seed(0)
    config = CodecLMConfig(
        text_vocabulary_size=3, num_codebooks=1, codebook_size=CODES, dim=shape.dim, num_layers=shape.num_layers,
        num_heads=shape.num_heads, num_kv_heads=shape.num_heads, ffn_dim=shape.ffn_dim,
    )  # fmt: skip
    model = CodecLM(config).eval()
    with torch.no_grad():
        model.audio_embedding.weight.mul_(10)
        model.heads.weight.mul_(10)
    return model.to(device, dtype)


def theirs(model: CodecLM) -> Any:
    """``LlamaForCausalLM`` with the same weights, device and number format."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = model.config
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=CODES + 2, hidden_size=config.dim, intermediate_size=config.ffn_dim,
            num_hidden_layers=config.num_layers, num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads, max_position_embeddings=2048, rms_norm_eps=model.norm.eps,
            rope_theta=config.rope_theta, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
            pad_token_id=CODES + 1,
        )
    ).eval().to(model.heads.weight.device, model.heads.weight.dtype)  # fmt: skip
    with torch.no_grad():
        llama.model.embed_tokens.weight.copy_(model.audio_embedding.weight)
        llama.lm_head.weight.zero_()
        llama.lm_head.weight[: CODES + 1].copy_(model.heads.weight)
        llama.model.norm.weight.copy_(model.norm.weight)
        for layer, block in zip(llama.model.layers, model.blocks, strict=True):
            assert isinstance(block, Block)
            q, k, v = torch.split(block.attention.qkv.weight, config.dim)
            gate, up = block.feed_forward.gate_up.weight.chunk(2)
            pairs = {
                layer.self_attn.q_proj: q, layer.self_attn.k_proj: k, layer.self_attn.v_proj: v,
                layer.self_attn.o_proj: block.attention.out.weight, layer.mlp.gate_proj: gate, layer.mlp.up_proj: up,
                layer.mlp.down_proj: block.feed_forward.down.weight,
            }  # fmt: skip
            for linear, weight in pairs.items():
                linear.weight.copy_(weight)
            layer.input_layernorm.weight.copy_(block.attention_norm.weight)
            layer.post_attention_layernorm.weight.copy_(block.feed_forward_norm.weight)
    return llama


def prompts(number: int, *, length: int = 16) -> Tensor:
    """Random prompts [number, length]."""
    return torch.randint(CODES, (number, length), generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def plan(model: CodecLM, contexts: Sequence[Tensor], coefficients: Sequence[float], num_tokens: int) -> Plan:
    """Greedy decoding of ``num_tokens`` after a prompt for each condition, and after the start column of each."""
    device = model.heads.weight.device
    prefixes = tuple(model.embed_audio(context_P[None, None].to(device))[0] for context_P in contexts)
    return Plan(prefixes, tuple(coefficients), GREEDY, seed=0, max_frames=num_tokens, may_end=False)


def with_start(context_P: Tensor) -> Tensor:
    """What ``transformers`` is given for the same context: [1, P + 1]."""
    return torch.cat([context_P, torch.tensor([CODES + 1])])[None]


def generate(llama: Any, context_P: Tensor, num_tokens: int, **options: Any) -> list[int]:
    """Greedy tokens of ``transformers``."""
    given = with_start(context_P).to(llama.device)
    out = llama.generate(
        given, attention_mask=torch.ones_like(given), max_new_tokens=num_tokens, min_new_tokens=num_tokens,
        do_sample=False, suppress_tokens=[CODES, CODES + 1], **options,
    )  # fmt: skip
    tokens: list[int] = out[0, given.shape[1] :].tolist()
    assert len(tokens) == num_tokens, "the payload must be whole"
    return tokens
