"""Starting a student from its teacher: a copy, a subset of layers, a selection of channels, or chance.

Width selection ranks what to keep by magnitude (in the spirit of Minitron, METHODS.md 1.6): residual channels by the
energy that the embeddings and the blocks write to them, heads and feed-forward units by the norm of their weights; or
all of them by their activations on calibration rows (:mod:`retort.models.activations`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor, nn

from retort.errors import ConfigError
from retort.models.activations import Activations
from retort.models.codec_lm import CodecLM, CodecLMConfig
from retort.nn.transformer import Block, RMSNorm

Initialisation = Literal["teacher", "activations", "random"]
"""Where a student's first weights come from: the teacher's strongest, the teacher's most active, or chance."""


@dataclass(frozen=True)
class _Kept:
    """Indices that survive: residual channels, heads, key-value heads, feed-forward units."""

    channels: Tensor
    heads: Tensor
    kv_heads: Tensor
    units: Tensor


def student_from(
    teacher: CodecLM,
    config: CodecLMConfig,
    *,
    init: Initialisation,
    layers: Sequence[int] | None = None,
    activations: Activations | None = None,
) -> CodecLM:
    """Build a student of shape ``config``.

    At equal shape it is an exact copy; with fewer layers it keeps ``layers``, or evenly spaced ones; with less width it
    keeps the strongest channels, heads and units, or the most active ones.

    Args:
        teacher: what is copied, unless ``init`` is random.
        config: the student's shape.
        init: see :data:`Initialisation`.
        layers: of the teacher, ascending; ``None`` keeps evenly spaced ones, the first and the last among them.
        activations: of the teacher; needed by ``init = "activations"``.

    Raises:
        ConfigError: the student is deeper or wider than its teacher, its vocabulary differs, or it does not have as
            many layers as are kept.
    """
    check_compatible(teacher.config, config)
    kept = kept_layers(teacher.config.num_layers, config.num_layers) if layers is None else list(layers)
    check_kept(kept, teacher.config.num_layers)
    if len(kept) != config.num_layers:
        raise ConfigError(f"the student has {config.num_layers} layers, but the layers {kept} are to be kept")
    student = CodecLM(config)
    if init == "random":
        return student
    assert (activations is not None) == (init == "activations"), "activations are what that init ranks by"
    with torch.no_grad():
        _copy(teacher, student, kept, activations)
    return student


def bypass(model: CodecLM, kept: Sequence[int]) -> CodecLM:
    """The model without its other layers, sharing every weight with ``model``: x stays x where a layer was.

    Raises:
        ConfigError: ``kept`` are not ascending layers of the model.
    """
    check_kept(kept, model.config.num_layers)
    with torch.device("meta"):
        shell = CodecLM(model.config.replace(num_layers=len(kept)))
    for name, part in model.named_children():
        if name != "blocks":
            setattr(shell, name, part)
    shell.null_prompt = model.null_prompt
    shell.blocks = nn.ModuleList(model.blocks[layer] for layer in kept)
    return shell.train(model.training)


def check_kept(kept: Sequence[int], num_layers: int) -> None:
    """Refuse layers that are not there, or not in order.

    Raises:
        ConfigError: names them.
    """
    if not kept or any(a >= b for a, b in pairwise(kept)) or kept[0] < 0 or kept[-1] >= num_layers:
        raise ConfigError(f"kept layers {list(kept)} must be ascending layers of the teacher's {num_layers}")


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


def _copy(teacher: CodecLM, student: CodecLM, layers: Sequence[int], activations: Activations | None) -> None:
    _check_copyable(teacher.config, student.config)
    energy = _channel_energy(teacher)
    scores = energy * teacher.heads.weight.square().sum(0) if activations is None else activations.channels_D
    channels = _strongest(scores, student.config.dim)
    for name in ("text_embedding", "audio_embedding"):
        getattr(student, name).weight.copy_(getattr(teacher, name).weight[:, channels])
    _copy_prompt(teacher, student, channels)
    if student.scale_embedding is not None:
        nn.init.zeros_(student.scale_embedding.weight)
    for layer, source in enumerate(layers):
        block = _blocks(teacher)[source]
        ranked = _weight_scores(block, channels, teacher.config.head_size)
        if activations is not None:
            ranked = activations.heads_LH[source], activations.units_LF[source]
        kept = _choose(block, student.config, channels, ranked)
        _copy_block(block, _blocks(student)[layer], kept, student.config.head_size)
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


def _copy_block(theirs: Block, ours: Block, kept: _Kept, head_dim: int) -> None:
    channels = kept.channels
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


def _weight_scores(block: Block, channels: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Scores of a block's heads and feed-forward units by the norms of their weights."""
    heads_H = block.attention.out.weight[channels].square().sum(0).view(-1, head_dim).sum(1)
    gate, up = block.feed_forward.gate_up.weight.chunk(2)
    down = block.feed_forward.down.weight[channels]
    return heads_H, gate.norm(dim=1) * up.norm(dim=1) * down.norm(dim=0)


def _choose(block: Block, config: CodecLMConfig, channels: Tensor, scores: tuple[Tensor, Tensor]) -> _Kept:
    head_score, unit_score = scores
    kv_heads_t = block.attention.num_kv_heads
    group = len(head_score) // kv_heads_t
    if group == 1 and config.num_kv_heads == config.num_heads:
        heads = kv_heads = _strongest(head_score, config.num_heads)
    else:
        # Grouped queries: keep whole groups, so that each query head still meets its own keys.
        if config.num_heads // config.num_kv_heads != group:
            raise ConfigError(f"the student must keep the teacher's {group} query heads per key-value head")
        kv_heads = _strongest(head_score.view(kv_heads_t, group).sum(1), config.num_kv_heads)
        heads = _rows(kv_heads, group)
    return _Kept(channels, heads, kv_heads, _strongest(unit_score, config.ffn_dim))


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
