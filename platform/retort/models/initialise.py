"""Starting a student from its teacher: a copy, a subset of layers, a selection of channels, or chance.

Width selection ranks what to keep by magnitude (in the spirit of Minitron, METHODS.md 1.6): residual channels by the
energy that the embeddings and the blocks write to them, heads and feed-forward units by the norm of their weights.
"""

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from retort.errors import ConfigError
from retort.models.codec_lm import CodecLM, CodecLMConfig
from retort.nn.transformer import Block, RMSNorm

Initialisation = Literal["teacher", "random"]


@dataclass(frozen=True)
class _Kept:
    """Indices that survive: residual channels, heads, key-value heads, feed-forward units."""

    channels: Tensor
    heads: Tensor
    kv_heads: Tensor
    units: Tensor


def student_from(teacher: CodecLM, config: CodecLMConfig, *, init: Initialisation) -> CodecLM:
    """Build a student of shape ``config``.

    ``init = "teacher"`` copies what fits: at equal shape it is an exact copy; with fewer layers it keeps evenly spaced
    ones, the first and the last among them; with less width it keeps the strongest channels, heads and units.

    Raises:
        ConfigError: the student is deeper or wider than its teacher, or its vocabulary differs.
    """
    check_compatible(teacher.config, config)
    student = CodecLM(config)
    if init == "random":
        return student
    with torch.no_grad():
        _copy(teacher, student)
    return student


def check_compatible(teacher: CodecLMConfig, student: CodecLMConfig) -> None:
    """Refuse pairs whose logits cannot be compared or whose weights cannot be shared.

    Raises:
        ConfigError: names the field and both values.
    """
    for field in ("text_vocabulary_size", "num_codebooks", "codebook_size", "codebook_delays", "speaker_prompt"):
        ours, theirs = getattr(student, field), getattr(teacher, field)
        if ours != theirs:
            raise ConfigError(
                f"{field}: the student has {ours}, the teacher {theirs}; distilling logits needs equal ones"
            )
    for field in ("dim", "num_layers", "num_heads", "num_kv_heads", "ffn_dim"):
        ours, theirs = getattr(student, field), getattr(teacher, field)
        if ours > theirs:
            raise ConfigError(f"{field}: the student has {ours}, more than its teacher's {theirs}")


def kept_layers(teacher_layers: int, student_layers: int) -> list[int]:
    """Evenly spaced layers with the first and the last, e.g. 6 → 3 keeps 0, 2 (or 3), 5."""
    if student_layers == 1:
        return [0]
    return [round(i * (teacher_layers - 1) / (student_layers - 1)) for i in range(student_layers)]


def _copy(teacher: CodecLM, student: CodecLM) -> None:
    _check_copyable(teacher.config, student.config)
    energy = _channel_energy(teacher)
    channels = _strongest(energy * teacher.heads.weight.square().sum(0), student.config.dim)
    layers = kept_layers(teacher.config.num_layers, student.config.num_layers)
    for name in ("text_embedding", "audio_embedding"):
        getattr(student, name).weight.copy_(getattr(teacher, name).weight[:, channels])
    _copy_prompt(teacher, student, channels)
    if student.scale_embedding is not None:
        nn.init.zeros_(student.scale_embedding.weight)
    for layer, source in enumerate(layers):
        _copy_block(_blocks(teacher)[source], _blocks(student)[layer], student.config, channels)
    student.norm.weight.copy_(teacher.norm.weight[channels])
    student.heads.weight.copy_(teacher.heads.weight[:, channels])
    _rescale_norms(student, energy[channels].mean() / energy.mean())


def _check_copyable(teacher: CodecLMConfig, student: CodecLMConfig) -> None:
    if teacher.head_size != student.head_size:
        raise ConfigError(
            f"the student's heads have {student.head_size} dimensions, the teacher's {teacher.head_size}; "
            "choose dim and num_heads so that dim / num_heads is equal, or init: random"
        )
    if teacher.qkv_bias and not student.qkv_bias:
        raise ConfigError("qkv_bias: the teacher has biases that the student would lose; set qkv_bias: true")


def _copy_prompt(teacher: CodecLM, student: CodecLM, channels: Tensor) -> None:
    if student.prompt_encoder is None or teacher.prompt_encoder is None:
        return
    assert student.null_prompt is not None
    assert teacher.null_prompt is not None
    student.null_prompt.copy_(teacher.null_prompt[channels])
    for ours, theirs in zip(student.prompt_encoder, teacher.prompt_encoder, strict=True):
        if isinstance(ours, nn.Linear) and isinstance(theirs, nn.Linear):
            ours.weight.copy_(theirs.weight[channels][:, channels])
            ours.bias.copy_(theirs.bias[channels])


def _rescale_norms(student: CodecLM, kept_to_all: Tensor) -> None:
    """RMSNorm divides by the root mean square over its channels, and the kept ones have more energy than the mean."""
    for module in student.modules():
        if isinstance(module, RMSNorm):
            module.weight.mul_(kept_to_all.sqrt())


def _copy_block(theirs: Block, ours: Block, config: CodecLMConfig, channels: Tensor) -> None:
    head_dim = config.head_size
    kept = _choose(theirs, config, channels, head_dim)
    q, k, v = torch.split(theirs.attention.qkv.weight, _qkv_sizes(theirs, head_dim))
    rows = [_rows(kept.heads, head_dim), _rows(kept.kv_heads, head_dim), _rows(kept.kv_heads, head_dim)]
    ours.attention.qkv.weight.copy_(torch.cat([w[r][:, channels] for w, r in zip((q, k, v), rows, strict=True)]))
    if ours.attention.qkv.bias is not None and theirs.attention.qkv.bias is not None:
        parts = torch.split(theirs.attention.qkv.bias, _qkv_sizes(theirs, head_dim))
        ours.attention.qkv.bias.copy_(torch.cat([b[r] for b, r in zip(parts, rows, strict=True)]))
    ours.attention.out.weight.copy_(theirs.attention.out.weight[channels][:, rows[0]])
    gate, up = theirs.feed_forward.gate_up.weight.chunk(2)
    ours.feed_forward.gate_up.weight.copy_(torch.cat([gate[kept.units][:, channels], up[kept.units][:, channels]]))
    ours.feed_forward.down.weight.copy_(theirs.feed_forward.down.weight[channels][:, kept.units])
    ours.attention_norm.weight.copy_(theirs.attention_norm.weight[channels])
    ours.feed_forward_norm.weight.copy_(theirs.feed_forward_norm.weight[channels])


def _choose(block: Block, config: CodecLMConfig, channels: Tensor, head_dim: int) -> _Kept:
    out = block.attention.out.weight[channels]
    head_energy = out.square().sum(0).view(-1, head_dim).sum(1)
    kv_heads_t = block.attention.num_kv_heads
    group = len(head_energy) // kv_heads_t
    if group == 1 and config.num_kv_heads == config.num_heads:
        heads = kv_heads = _strongest(head_energy, config.num_heads)
    else:
        # Grouped queries: keep whole groups, so that each query head still meets its own keys.
        if config.num_heads // config.num_kv_heads != group:
            raise ConfigError(f"the student must keep the teacher's {group} query heads per key-value head")
        kv_heads = _strongest(head_energy.view(kv_heads_t, group).sum(1), config.num_kv_heads)
        heads = _rows(kv_heads, group)
    gate, up = block.feed_forward.gate_up.weight.chunk(2)
    down = block.feed_forward.down.weight[channels]
    units = _strongest(gate.norm(dim=1) * up.norm(dim=1) * down.norm(dim=0), config.ffn_dim)
    return _Kept(channels, heads, kv_heads, units)


def _channel_energy(model: CodecLM) -> Tensor:
    """Energy that the embeddings and the blocks write to each residual channel, estimated from the weights."""
    energy = model.audio_embedding.weight.square().mean(0) + model.text_embedding.weight.square().mean(0)
    for block in _blocks(model):
        energy = energy + block.attention.out.weight.square().sum(1) + block.feed_forward.down.weight.square().sum(1)
    return energy


def _strongest(score: Tensor, count: int) -> Tensor:
    """The ``count`` highest scores, in ascending order of index, so that equal shapes give the identity."""
    return score.topk(count).indices.sort().values


def _rows(blocks: Tensor, size: int) -> Tensor:
    return (blocks[:, None] * size + torch.arange(size)[None, :]).flatten()


def _qkv_sizes(block: Block, head_dim: int) -> list[int]:
    return [block.attention.num_heads * head_dim] + [block.attention.num_kv_heads * head_dim] * 2


def _blocks(model: CodecLM) -> list[Block]:
    return [cast("Block", block) for block in model.blocks]
