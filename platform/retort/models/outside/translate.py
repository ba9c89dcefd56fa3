"""Weights of a Llama or Qwen2 checkpoint as those of a :class:`CodecLM`, and back, bit for bit.

The outside model has one table for text and speech, and one output row for each of its ids. Ours has a table for text
and one for speech, and outputs for speech alone, so its last product is a fraction of the outside one. Output rows of
text are kept apart (``rest``), for the way back.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from retort.errors import ConfigError, DataError
from retort.models.codec_lm import CodecLM, CodecLMConfig
from retort.models.outside.checkpoint_style import CheckpointStyle
from retort.nn.conditions import TEXT_NULL
from retort.nn.transformer import Block
from retort.text.hf_tokenizer import HFTokenizerConfig
from retort.text.tokenizer import NUM_RESERVED

EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
REST = "text_heads"
Read = Callable[[str], Tensor]


@dataclass(frozen=True)
class Translated:
    """A checkpoint as ours.

    Attributes:
        model: the decoder.
        rest: what the way back needs beside it: output rows of text, where they are not the text embedding itself.
    """

    model: CodecLM
    rest: dict[str, Tensor]


def expected_shapes(style: CheckpointStyle, *, has_head: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint of this configuration."""
    config = style.codec_lm(text_vocabulary_size=NUM_RESERVED, codebook_size=2)
    D, F, V = config.dim, config.ffn_dim, style.vocab_size
    rows = {
        "q": config.num_heads * config.head_size,
        "k": config.num_kv_heads * config.head_size,
        "v": config.num_kv_heads * config.head_size,
    }
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (V, D), NORM: (D,)}
    if has_head:
        shapes[HEAD] = (V, D)
    for layer in range(config.num_layers):
        at = f"model.layers.{layer}."
        for name, size in rows.items():
            shapes[f"{at}self_attn.{name}_proj.weight"] = (size, D)
            if config.qkv_bias:
                shapes[f"{at}self_attn.{name}_proj.bias"] = (size,)
        shapes[f"{at}self_attn.o_proj.weight"] = (D, rows["q"])
        shapes[f"{at}mlp.gate_proj.weight"] = shapes[f"{at}mlp.up_proj.weight"] = (F, D)
        shapes[f"{at}mlp.down_proj.weight"] = (D, F)
        shapes[f"{at}input_layernorm.weight"] = shapes[f"{at}post_attention_layernorm.weight"] = (D,)
    return shapes


def to_codec_lm(read: Read, style: CheckpointStyle, text: HFTokenizerConfig, null_ids: tuple[int, ...]) -> Translated:
    """Build our model from the tensors that ``read`` gives by name, in fp32.

    Args:
        read: a tensor of the checkpoint.
        style: its configuration.
        text: vocabulary and template.
        null_ids: outside ids whose mean embedding stands for "no text"; none leaves that row zero.
    """
    config = style.codec_lm(
        text_vocabulary_size=NUM_RESERVED + text.vocabulary_size - text.audio.count, codebook_size=text.audio.count
    )
    table_VD = read(EMBEDDING)
    head_VD = table_VD if style.tie_word_embeddings else read(HEAD)
    codes = torch.arange(text.audio.first, text.audio.codes.stop)
    reserved = table_VD.new_zeros(NUM_RESERVED, config.dim)
    if null_ids:
        reserved[TEXT_NULL] = table_VD[list(null_ids)].mean(0)
    ends = table_VD[[text.audio.eos, text.start]]
    weights = {
        "text_embedding.weight": torch.cat([reserved, table_VD[_text_ids(text)]]),
        "audio_embedding.weight": torch.cat([table_VD[codes], ends]),
        "heads.weight": torch.cat([head_VD[codes], head_VD[[text.audio.eos]]]),
        "norm.weight": read(NORM),
    }
    for layer in range(config.num_layers):
        weights |= _block_weights(read, f"model.layers.{layer}.", f"blocks.{layer}.", config)
    rest = {} if style.tie_word_embeddings else {REST: head_VD[_text_ids(text)].clone()}
    with torch.device("meta"):  # no time for weights that are replaced at once
        model = CodecLM(config)
    model.load_state_dict({name: tensor.contiguous() for name, tensor in weights.items()}, assign=True)
    return Translated(model.eval(), rest)


def _block_weights(read: Read, theirs: str, ours: str, config: CodecLMConfig) -> dict[str, Tensor]:
    weights = {
        f"{ours}attention.qkv.weight": torch.cat([read(f"{theirs}self_attn.{name}_proj.weight") for name in "qkv"]),
        f"{ours}attention.out.weight": read(f"{theirs}self_attn.o_proj.weight"),
        f"{ours}feed_forward.gate_up.weight": torch.cat([read(f"{theirs}mlp.{n}_proj.weight") for n in ("gate", "up")]),
        f"{ours}feed_forward.down.weight": read(f"{theirs}mlp.down_proj.weight"),
        f"{ours}attention_norm.weight": read(f"{theirs}input_layernorm.weight"),
        f"{ours}feed_forward_norm.weight": read(f"{theirs}post_attention_layernorm.weight"),
    }
    if config.qkv_bias:
        biases = [read(f"{theirs}self_attn.{name}_proj.bias") for name in "qkv"]
        weights[f"{ours}attention.qkv.bias"] = torch.cat(biases)
    return weights


def from_codec_lm(
    model: CodecLM, text: HFTokenizerConfig, rest: Mapping[str, Tensor], *, was_tied: bool
) -> tuple[dict[str, Tensor], bool]:
    """Tensors of a checkpoint in the outside layout, and whether input and output share one table.

    They share it where they did and no training has moved them apart; then the output has no tensor of its own.

    Raises:
        ConfigError: the model has another width than the output rows of text that were kept.
        DataError: those rows are not all there.
    """
    if not was_tied and (REST not in rest or len(rest[REST]) != len(_text_ids(text))):
        raise DataError(
            f"the output rows of text ({REST}) that the import kept are missing or too few; import the checkpoint again"
        )
    if not was_tied and rest[REST].shape[1] != model.config.dim:
        raise ConfigError(
            f"the student is {model.config.dim} wide, the checkpoint it comes from {rest[REST].shape[1]}, and the "
            "output rows of text are known at that width only; export students of the teacher's width"
        )
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    texts, speech, heads = (state[f"{name}.weight"] for name in ("text_embedding", "audio_embedding", "heads"))
    count, ids = text.audio.count, _text_ids(text)
    table = torch.empty(text.vocabulary_size, model.config.dim)
    table[ids] = texts[NUM_RESERVED:]
    table[text.audio.first : text.audio.codes.stop] = speech[:count]
    table[[text.audio.eos, text.start]] = speech[count:]
    tensors = {EMBEDDING: table, NORM: state["norm.weight"]}
    is_tied = was_tied and bool(torch.equal(heads, speech[: count + 1]))
    if not is_tied:
        head = table.clone() if was_tied else torch.empty_like(table)
        if not was_tied:
            head[ids] = rest[REST]
        head[text.audio.first : text.audio.codes.stop] = heads[:count]
        head[text.audio.eos] = heads[count]
        tensors[HEAD] = head
    for layer, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        tensors |= _outside_block(block, f"model.layers.{layer}.")
    return {name: tensor.contiguous() for name, tensor in tensors.items()}, is_tied


def _outside_block(block: Block, at: str) -> Iterator[tuple[str, Tensor]]:
    attention, feed_forward = block.attention, block.feed_forward
    sizes = [attention.num_heads * attention.head_dim] + [attention.num_kv_heads * attention.head_dim] * 2
    for kind, fused in (("weight", attention.qkv.weight), ("bias", attention.qkv.bias)):
        if fused is not None:
            parts = zip("qkv", torch.split(fused.detach(), sizes), strict=True)
            yield from ((f"{at}self_attn.{name}_proj.{kind}", part) for name, part in parts)
    gate, up = feed_forward.gate_up.weight.detach().chunk(2)
    yield f"{at}self_attn.o_proj.weight", attention.out.weight.detach()
    yield f"{at}mlp.gate_proj.weight", gate
    yield f"{at}mlp.up_proj.weight", up
    yield f"{at}mlp.down_proj.weight", feed_forward.down.weight.detach()
    yield f"{at}input_layernorm.weight", block.attention_norm.weight.detach()
    yield f"{at}post_attention_layernorm.weight", block.feed_forward_norm.weight.detach()


def _text_ids(text: HFTokenizerConfig) -> Tensor:
    """Outside ids that are no codes, in the order of the text embedding's rows behind the reserved ones."""
    return torch.tensor([i for i in range(text.vocabulary_size) if i not in text.audio.codes])
