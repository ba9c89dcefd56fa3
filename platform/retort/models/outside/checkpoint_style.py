"""``config.json`` of a Llama or Qwen2 checkpoint, read strictly: what our blocks do not compute is refused by name."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError

from retort.config import Config, first_fault
from retort.errors import ConfigError, DataError
from retort.models.codec_lm import CodecLMConfig
from retort.nn.transformer import Llama3Rope

STYLES = ("llama", "qwen2")
_ONLY = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "use_sliding_window": (False,),
    "quantization_config": (),
    "partial_rotary_factor": (1, 1.0),
    "num_experts": (),
    "num_local_experts": (),
}
"""Keys that change what is computed, and the values that our blocks can do; absent and null are fine."""
_NOT_WRITTEN = ("auto_map", "_name_or_path", "dtype", "torch_dtype")
_RESTORE = "restore the file that came with the checkpoint"
_CURE = "Retort's blocks do not compute that, and it would be wrong without an error; bring a checkpoint without it"


class CheckpointStyle(Config):
    """What decides the logits of a Llama or Qwen2 checkpoint."""

    model_type: Literal["llama", "qwen2"]
    vocab_size: int = Field(ge=1)
    hidden_size: int = Field(ge=8)
    intermediate_size: int = Field(ge=8)
    num_hidden_layers: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    num_key_value_heads: int | None = Field(default=None, ge=1)
    head_dim: int | None = Field(default=None, ge=2)
    rms_norm_eps: float = Field(default=1e-6, gt=0)
    tie_word_embeddings: bool = False
    rope_theta: float = Field(default=10_000.0, gt=0)
    rope_scaling: Llama3Rope | None = None

    @property
    def qkv_bias(self) -> bool:
        """Qwen2 adds a bias to queries, keys and values, and cannot leave it out; Llama has none."""
        return self.model_type == "qwen2"

    def codec_lm(self, *, text_vocabulary_size: int, codebook_size: int) -> CodecLMConfig:
        """The same decoder as a codec language model of one codebook, without a prompt column.

        Raises:
            DataError: the sizes do not make a decoder.
        """
        heads = self.num_attention_heads
        try:
            return CodecLMConfig(
                text_vocabulary_size=text_vocabulary_size,
                num_codebooks=1,
                codebook_size=codebook_size,
                dim=self.hidden_size,
                num_layers=self.num_hidden_layers,
                num_heads=heads,
                num_kv_heads=self.num_key_value_heads or heads,
                ffn_dim=self.intermediate_size,
                qkv_bias=self.qkv_bias,
                rope_theta=self.rope_theta,
                norm_eps=self.rms_norm_eps,
                rope_scaling=self.rope_scaling,
                head_dim=None if self.head_dim in (None, self.hidden_size / heads) else self.head_dim,
                speaker_prompt="none",
            )
        except ValidationError as error:
            raise DataError(f"config.json: these sizes make no decoder: {first_fault(error)}; {_RESTORE}") from None


def read_style(tree: Mapping[str, Any]) -> CheckpointStyle:
    """What counts in the tree of a ``config.json``, written by transformers 4 or 5.

    Raises:
        DataError: another model_type, a feature that our blocks do not compute (named), or a value that makes no sense.
    """
    kind = tree.get("model_type")
    if kind not in STYLES:
        raise DataError(f"config.json: model_type {kind!r} is not supported; {' and '.join(STYLES)} checkpoints are")
    refused = [*_refused(tree)]
    if refused:
        raise DataError(f"config.json: {'; '.join(refused)}: {_CURE}")
    given = {
        name: tree[name] for name in CheckpointStyle.model_fields if tree.get(name) is not None and name[:4] != "rope"
    }
    try:
        return CheckpointStyle.model_validate({**given, **_rope(tree)})
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"]))
        problem = "is missing" if fault["type"] == "missing" else f"is {fault['input']!r}: {fault['msg']}"
        raise DataError(f"config.json: {where} {problem}; {_RESTORE}") from None


def _refused(tree: Mapping[str, Any]) -> Iterator[str]:
    for name, allowed in _ONLY.items():
        value = tree.get(name)
        if value is not None and value not in allowed:
            yield f"{name} is {value!r}" if allowed else f"{name} is set"
    windows = {kind for kind in tree.get("layer_types") or () if kind != "full_attention"}
    if windows:
        yield f"layer_types has {', '.join(sorted(map(str, windows)))}"


def _rope(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Base and stretching of the rotary positions; transformers 5 keeps both in ``rope_parameters``."""
    rope = tree.get("rope_parameters") or tree.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise DataError(f"config.json: rope_scaling is {rope!r}, which is no mapping; restore the original file")
    kind = rope.get("rope_type", rope.get("type", "default"))
    theta = rope.get("rope_theta", tree.get("rope_theta"))
    found: dict[str, Any] = {} if theta is None else {"rope_theta": theta}
    if kind == "default":
        return found
    if kind != "llama3":
        raise DataError(f"config.json: rope_type {kind!r} is not supported; default and llama3 are: {_CURE}")
    scaling = {name: rope[name] for name in ("factor", "low_freq_factor", "high_freq_factor") if name in rope}
    original = rope.get("original_max_position_embeddings", tree.get("max_position_embeddings"))
    return {**found, "rope_scaling": {**scaling, "original_context": original}}


def written_config(original: Mapping[str, Any], config: CodecLMConfig, *, is_tied: bool, dtype: str) -> dict[str, Any]:
    """The ``config.json`` of an exported model: the original one, with what pruning may have changed.

    Raises:
        ConfigError: the model computes something that the style has no words for.
    """
    if config.num_codebooks != 1 or config.speaker_prompt != "none":
        raise ConfigError(
            f"a model of {config.num_codebooks} codebook(s) with speaker_prompt {config.speaker_prompt!r} cannot be "
            "written as a Hugging Face checkpoint; only students of an imported teacher can"
        )
    tree = {name: value for name, value in original.items() if name not in _NOT_WRITTEN}
    tree |= {
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "tie_word_embeddings": is_tied,
        "dtype" if "dtype" in original else "torch_dtype": dtype,
    }
    if config.head_dim is not None or "head_dim" in original:
        tree["head_dim"] = config.head_size
    if tree.get("layer_types"):
        tree["layer_types"] = ["full_attention"] * config.num_layers
    return tree
