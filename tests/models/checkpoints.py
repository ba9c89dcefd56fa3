"""Tiny Llama and Qwen2 checkpoints with random weights, written by ``transformers`` and ``tokenizers`` themselves."""

from pathlib import Path

import torch

NUM_BYTES, NUM_CODES = 256, 24
TEXT_START, TEXT_END, SPEECH_START, SPEECH_END = range(NUM_BYTES, NUM_BYTES + 4)
FIRST_CODE = NUM_BYTES + 4
VOCABULARY = FIRST_CODE + NUM_CODES + 4  # a few rows beyond the tokenizer, as published tables have them
SPECIAL = ("<|text_start|>", "<|text_end|>", "<|speech_start|>", "<|speech_end|>")
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
_PLAIN = {"rope_type": "default", "rope_theta": 1e6}
KINDS = {
    "llama_gqa_untied": ("llama", {}),
    "llama_mha_tied": ("llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "llama3_scaled": ("llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "llama_head_dim": ("llama", {"head_dim": 12, "rope_parameters": _PLAIN}),
    "qwen2_tied": ("qwen2", {"tie_word_embeddings": True, "rope_parameters": _PLAIN}),
    "qwen2_untied": ("qwen2", {}),
}  # fmt: skip


def outside_model(kind: str, *, seed: int = 0, **changes: object) -> torch.nn.Module:
    """A model of ``transformers`` with weights large enough that every part of it matters to the logits."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    style, own = KINDS[kind]
    classes = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}
    make_config, make_model = classes[style]
    torch.manual_seed(seed)
    model = make_model(make_config(**{**SHAPE, **own, **changes})).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=0.3 if "proj" in name else 1.0)
    return model


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer without merges, with control tokens and one token for each code."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(f"<|s_{i}|>", normalized=False) for i in range(NUM_CODES)])
    assert tokenizer.token_to_id("<|s_0|>") == FIRST_CODE
    tokenizer.save(str(folder / "tokenizer.json"))


def write_checkpoint(folder: Path, kind: str, **changes: object) -> torch.nn.Module:
    """A whole checkpoint folder in fp32; returns the model."""
    model = outside_model(kind, **changes)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model


def import_tree(checkpoint: Path, output: Path, **changes: object) -> dict[str, object]:
    """The run file of an import of such a checkpoint."""
    return {
        "job": "import",
        "output": str(output),
        "checkpoint": str(checkpoint),
        "audio": {"first": "<|s_0|>", "count": NUM_CODES, "eos": "<|speech_end|>"},
        "template": {"before": "<|text_start|>", "after": "<|text_end|><|speech_start|>"},
        "codec": {"kind": "outside", "name": "tiny"},
        **changes,
    }
