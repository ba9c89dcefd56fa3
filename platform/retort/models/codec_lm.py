"""The codec language model: an autoregressive decoder over text, a speaker prompt and K delayed codebooks.

One row of the sequence is ``[padding, text, speaker prompt, audio steps]``. The padding is on the left, so the audio
begins in the same column for every row, and relative rotary positions make a row independent of its padding.

Vocabulary of one codebook: codes ``0 .. V-1``, then ``V`` = end of speech (an input, and a legal output of codebook 0
only), then ``V + 1`` = fill (an input for positions that the delay pattern leaves empty, never an output).
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import Tensor, nn

from retort.config import Config
from retort.nn.conditions import TEXT_PAD, Conditions
from retort.nn.dropout import Dropout
from retort.nn.transformer import Attention, Block, FeedForward, LayerCache, Llama3Rope, RMSNorm, rotary_tables

_LATER_FIELDS = frozenset({"type", "norm_eps", "rope_scaling", "head_dim", "speaker_prompt"})


class CodecLMConfig(Config):
    """Shape of a :class:`CodecLM`; it is stored beside the weights."""

    type: Literal["codec_lm"] = "codec_lm"
    """The family (:mod:`retort.models.weights`)."""
    text_vocabulary_size: int = Field(ge=3)
    num_codebooks: int = Field(ge=1)
    codebook_size: int = Field(ge=2)
    dim: int = Field(ge=8)
    num_layers: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    num_kv_heads: int = Field(ge=1)
    ffn_dim: int = Field(ge=8)
    qkv_bias: bool = False
    rope_theta: float = 10_000.0
    dropout: float = Field(default=0.0, ge=0, lt=1)
    delays: tuple[int, ...] | None = None
    """Steps by which each codebook is delayed; ``None`` means 0, 1, ... K-1."""
    guidance_scales: tuple[float, ...] = ()
    """Guidance scales that a student takes as an input; empty for a model without that input."""
    norm_eps: float = Field(default=1e-6, gt=0)
    """Added to the mean square in every RMSNorm."""
    rope_scaling: Llama3Rope | None = None
    head_dim: int | None = Field(default=None, ge=2)
    """``None`` is dim / num_heads."""
    speaker_prompt: Literal["pooled", "none"] = "pooled"
    """``none``: no prompt column and no prompt encoder; the text alone is the prefix, and the fill that stands before
    the first code is an ordinary input. So a sequence is laid out as a flat language model lays it out."""

    @model_validator(mode="after")
    def _consistent(self) -> "CodecLMConfig":
        if (self.head_dim is None and self.dim % self.num_heads) or self.head_size % 2:
            raise ValueError(
                f"dim {self.dim} must be an even multiple of num_heads {self.num_heads}, or head_dim an even number"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}")
        if self.delays is not None and (len(self.delays) != self.num_codebooks or min(self.delays) != 0):
            raise ValueError(f"delays {self.delays} must be {self.num_codebooks} numbers, the smallest 0")
        if self.speaker_prompt == "none" and self.guidance_scales:
            raise ValueError("guidance_scales are added to the prompt column, which speaker_prompt: none leaves out")
        return self

    @model_serializer(mode="wrap")
    def _without_later_fields(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Fields that older models do not have are left out at their defaults: saved files and fingerprints stay."""
        tree: dict[str, Any] = write(self)
        return {
            name: value
            for name, value in tree.items()
            if name not in _LATER_FIELDS or value != type(self).model_fields[name].default
        }

    @property
    def head_size(self) -> int:
        """Dimensions of one attention head."""
        return self.dim // self.num_heads if self.head_dim is None else self.head_dim

    @property
    def vocabularies(self) -> tuple[int, int, int]:
        """Text vocabulary, number of codebooks, codes per codebook."""
        return self.text_vocabulary_size, self.num_codebooks, self.codebook_size

    @property
    def codebook_delays(self) -> tuple[int, ...]:
        """The delay of each codebook in steps."""
        return self.delays if self.delays is not None else tuple(range(self.num_codebooks))

    @property
    def eos(self) -> int:
        """Id of the end of speech."""
        return self.codebook_size

    @property
    def fill(self) -> int:
        """Id of an input position without a code."""
        return self.codebook_size + 1

    @property
    def output_size(self) -> int:
        """Logits per codebook: the codes and the end of speech."""
        return self.codebook_size + 1


@dataclass(frozen=True)
class Columns:
    """What all blocks share in one pass.

    Attributes:
        prefix_valid_BC: which columns of the condition are not padding.
        mask: bool [B, 1, T, T], True where a key may be seen.
        cos_TD: rotary tables, with ``sin_TD``.
        sin_TD: see ``cos_TD``.
    """

    prefix_valid_BC: Tensor
    mask: Tensor
    cos_TD: Tensor
    sin_TD: Tensor


@dataclass(frozen=True)
class Trace:
    """A teacher-forced pass from the inside.

    Attributes:
        logits_BSKV: as :meth:`CodecLM.forward` gives them.
        states_BTD: the embedding, then each block's output; the last one is before the final norm, so that all of them
            are on the residual stream's scale (METHODS.md 3.4e).
        columns: shared by all blocks.
        blocks: of the model.
    """

    logits_BSKV: Tensor
    states_BTD: tuple[Tensor, ...]
    columns: Columns
    blocks: nn.ModuleList

    def attention(self, layer: int, state_BTD: Tensor | None = None) -> Tensor:
        """The attention map [B, H, T, T] of a block, computed again from what it was given, or from ``state_BTD``."""
        block, given = self.blocks[layer], self.columns
        assert isinstance(block, Block)
        x_BTD = block.attention_norm(self.states_BTD[layer] if state_BTD is None else state_BTD)
        return block.attention.weights(x_BTD, given.cos_TD, given.sin_TD, given.mask)


class CodecLM(nn.Module):
    """Predicts K codebook distributions per step from text, speaker prompt and the steps before."""

    def __init__(self, config: CodecLMConfig) -> None:
        super().__init__()
        self.config = config
        D, K = config.dim, config.num_codebooks
        self.text_embedding = nn.Embedding(config.text_vocabulary_size, D)
        # One table for all codebooks, offset by k: one gather instead of K.
        self.audio_embedding = nn.Embedding(K * (config.codebook_size + 2), D)
        has_prompt = config.speaker_prompt == "pooled"
        self.prompt_encoder = nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.Linear(D, D)) if has_prompt else None
        self.null_prompt = nn.Parameter(torch.zeros(D)) if has_prompt else None
        self.scale_embedding = nn.Embedding(len(config.guidance_scales), D) if config.guidance_scales else None
        self.blocks = nn.ModuleList(
            Block(
                Attention(D, config.num_heads, config.num_kv_heads, config.head_size, qkv_bias=config.qkv_bias),
                FeedForward(D, config.ffn_dim),
                D,
                dropout=config.dropout,
                norm_eps=config.norm_eps,
            )
            for _ in range(config.num_layers)
        )
        self.norm = RMSNorm(D, config.norm_eps)
        self.heads = nn.Linear(D, K * config.output_size, bias=False)
        self.dropout = Dropout(config.dropout)
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, conditions: Conditions, inputs_BKS: Tensor) -> Tensor:
        """Teacher-forced logits [B, S, K, V + 1] for the tokens after each input column."""
        x, given = self._embed(conditions, inputs_BKS)
        for block in self.blocks:
            x = block(x, given.cos_TD, given.sin_TD, given.mask)
        return self._logits_of(x, given)

    def states(self, conditions: Conditions, inputs_BKS: Tensor) -> Tensor:
        """What the heads read: the states [B, S, D] of the input columns after the final norm."""
        x, given = self._embed(conditions, inputs_BKS)
        for block in self.blocks:
            x = block(x, given.cos_TD, given.sin_TD, given.mask)
        return self.norm(x[:, given.prefix_valid_BC.shape[1] :])  # type: ignore[no-any-return]

    def trace(self, conditions: Conditions, inputs_BKS: Tensor) -> "Trace":
        """:meth:`forward`, with what every block was given on the way."""
        x, given = self._embed(conditions, inputs_BKS)
        states = [x]
        for block in self.blocks:
            x = block(x, given.cos_TD, given.sin_TD, given.mask)
            states.append(x)
        return Trace(self._logits_of(x, given), tuple(states), given, self.blocks)

    def _embed(self, conditions: Conditions, inputs_BKS: Tensor) -> tuple[Tensor, "Columns"]:
        prefix_BCD, valid_BC = self.embed_conditions(conditions)
        x = self.dropout(torch.cat([prefix_BCD, self.embed_audio(inputs_BKS)], dim=1))
        cos, sin = self.rotary(x.shape[1], x.device)
        return x, Columns(valid_BC, causal_mask(valid_BC, x.shape[1]), cos.to(x.dtype), sin.to(x.dtype))

    def _logits_of(self, x_BTD: Tensor, given: "Columns") -> Tensor:
        C = given.prefix_valid_BC.shape[1]
        B, T = x_BTD.shape[:2]
        return self.logits(x_BTD[:, C:]).view(B, T - C, self.config.num_codebooks, self.config.output_size)

    def embed_conditions(self, conditions: Conditions) -> tuple[Tensor, Tensor]:
        """Prefix embeddings [B, C, D] and which of them are not padding [B, C]; C = L + 1, or L without a prompt."""
        text_BLD = self.text_embedding(conditions.text_BL)
        text_valid_BL = conditions.text_BL != TEXT_PAD
        if self.prompt_encoder is None or self.null_prompt is None:
            return text_BLD, text_valid_BL
        prompt_BD = self._prompt(conditions, self.prompt_encoder, self.null_prompt)
        if self.scale_embedding is not None:
            if conditions.scale_B is None:
                raise ValueError("this student takes the guidance scale as an input, and none was given")
            prompt_BD = prompt_BD + self.scale_embedding(conditions.scale_B)
        valid = torch.cat([text_valid_BL, torch.ones_like(conditions.text_BL[:, :1]).bool()], dim=1)
        return torch.cat([text_BLD, prompt_BD[:, None]], dim=1), valid

    def _prompt(self, conditions: Conditions, encoder: nn.Module, null_D: Tensor) -> Tensor:
        mask = conditions.prompt_mask_BP
        legal = conditions.prompt_BKP.masked_fill(~mask[:, None, :], self.config.fill)
        frames_BPD = encoder(self.embed_audio(legal))
        weight = mask[..., None].to(frames_BPD.dtype)
        mean_BD = (frames_BPD * weight).sum(1) / weight.sum(1).clamp_min(1.0)
        return torch.where(mask.any(1)[:, None], mean_BD, null_D.to(mean_BD.dtype))

    def embed_audio(self, inputs_BKS: Tensor) -> Tensor:
        """Sum of the codebooks' embeddings, [B, S, D]."""
        offset_K = torch.arange(self.config.num_codebooks, device=inputs_BKS.device) * (self.config.codebook_size + 2)
        return self.audio_embedding(inputs_BKS + offset_K[None, :, None]).sum(1)  # type: ignore[no-any-return]

    def logits(self, x_BSD: Tensor) -> Tensor:
        """Final norm and heads, [B, S, K * (V + 1)]."""
        return self.heads(self.norm(x_BSD))  # type: ignore[no-any-return]

    def new_caches(self, batch_size: int, num_columns: int) -> list[LayerCache]:
        """Empty caches for ``num_columns`` columns."""
        config, weight = self.config, self.heads.weight
        shape = (batch_size, config.num_kv_heads, num_columns, config.head_size)
        return [LayerCache(weight.new_zeros(shape), weight.new_zeros(shape)) for _ in range(config.num_layers)]

    def rotary(self, num_columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosine and sine tables [S, head_dim] of this model's positions, in fp32."""
        config = self.config
        return rotary_tables(num_columns, config.head_size, config.rope_theta, device, config.rope_scaling)


def causal_mask(valid_BC: Tensor, num_columns: int) -> Tensor:
    """Which keys each query may see, bool [B, 1, T, T]: not the future, not padding.

    A padding column sees itself, so that its softmax is finite; nothing else sees it.
    """
    B, C = valid_BC.shape
    valid = torch.ones(B, num_columns, dtype=torch.bool, device=valid_BC.device)
    valid[:, :C] = valid_BC
    causal = torch.ones(num_columns, num_columns, dtype=torch.bool, device=valid_BC.device).tril()
    own = torch.eye(num_columns, dtype=torch.bool, device=valid_BC.device)
    return ((causal & valid[:, None, :]) | own)[:, None]


def count_parameters(model: nn.Module) -> int:
    """Number of distinct trainable and frozen parameters."""
    return sum(p.numel() for p in model.parameters())
