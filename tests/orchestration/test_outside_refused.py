"""Checkpoints and models whose weights, tokens or files are not what they seem: refused at import, load and export."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from retort.config import validate
from retort.errors import ConfigError, DataError
from retort.models.weights import load_codec_lm
from retort.orchestration.outside import run_import
from retort.run_config import ImportConfig
from retort.store.results import result_of
from tests.models.checkpoints import FIRST_CODE, NUM_CODES, SPEECH_END, import_tree, write_checkpoint
from tests.orchestration.test_outside import exported, imported
from tests.orchestration.tiny_runs import Lines


def changed(folder: Path, name: str, change: Callable[[torch.Tensor], None]) -> None:
    """One tensor of a weight file, changed in place."""
    weights = load_file(folder / "model.safetensors")
    change(weights[name])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


DAMAGES = {
    "nan": ("model.layers.1.mlp.up_proj.weight", math.nan, r"model\.layers\.1\.mlp\.up_proj\.weight holds 3 NaN of"),
    "inf": ("model.norm.weight", math.inf, r"model\.norm\.weight holds 3 infinite of 32 values"),
    "-inf": ("model.embed_tokens.weight", -math.inf, r"model\.embed_tokens\.weight holds 3 infinite"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_values_that_are_no_numbers_are_refused_at_import_load_and_export(tmp_path: Path, kind: str) -> None:
    name, value, message = DAMAGES[kind]
    output = imported(tmp_path)
    changed(tmp_path / "hf", name, lambda tensor: tensor.view(-1)[-3:].fill_(value))
    shutil.move(output, tmp_path / "good")
    with pytest.raises(DataError, match=message):
        imported(tmp_path)
    assert not (tmp_path / "teacher" / "result").exists()
    folder = result_of(tmp_path / "good")
    changed(folder, "blocks.2.attention.qkv.weight", lambda tensor: tensor[0].fill_(value))
    with pytest.raises(DataError, match=r"blocks\.2\.attention\.qkv\.weight holds 32 (NaN|infinite) of"):
        load_codec_lm(folder)
    with pytest.raises(DataError, match=r"blocks\.2\.attention\.qkv\.weight holds 32 (NaN|infinite) of"):
        exported(tmp_path, tmp_path / "good")
    assert not (tmp_path / "exported" / "result").exists()


def test_kept_rows_of_text_that_are_no_numbers_or_not_there_are_refused(tmp_path: Path) -> None:
    output = imported(tmp_path)
    path = result_of(output) / "outside" / "rest.safetensors"
    rest = load_file(path)
    save_file({name: tensor * math.nan for name, tensor in rest.items()}, path)
    with pytest.raises(DataError, match=r"rest\.safetensors: the weights are no numbers: text_heads holds"):
        exported(tmp_path, output)
    for other in ({}, {"text_heads": rest["text_heads"][:5].clone()}):
        save_file(other, path)
        with pytest.raises(DataError, match="missing or too few; import the checkpoint again"):
            exported(tmp_path, output)


@pytest.mark.parametrize(
    ("number_format", "value", "cure"),
    [("float16", 70_000.0, "number_format: bfloat16 or float32"), ("bfloat16", 3.4e38, "number_format: float32")],
)
def test_a_number_format_that_does_not_hold_the_weights_is_refused(
    tmp_path: Path, number_format: str, value: float, cure: str
) -> None:
    write_checkpoint(tmp_path / "hf", "qwen2_tied")
    changed(tmp_path / "hf", "model.layers.0.self_attn.o_proj.weight", lambda tensor: tensor[0, :2].fill_(value))
    output = imported(tmp_path)
    with pytest.raises(ConfigError, match=rf"o_proj\.weight has 2 of 1024 values beyond it, up to .*; say {cure}"):
        exported(tmp_path, output, number_format=number_format)
    assert not (tmp_path / "exported" / "result").exists()
    exported(tmp_path, output, number_format="float32")


@pytest.mark.parametrize("name", ["model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"])
def test_what_is_zero_throughout_and_makes_the_model_deaf_is_refused(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path / "hf", "llama_gqa_untied")
    changed(tmp_path / "hf", name, torch.Tensor.zero_)
    with pytest.raises(DataError, match="are zero, so the model would say the same"):
        imported(tmp_path)


def test_a_block_that_passes_all_through_is_taken_and_told(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "llama_gqa_untied")
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        changed(tmp_path / "hf", f"model.layers.3.{name}.weight", torch.Tensor.zero_)
    lines = Lines()
    run_import(validate(import_tree(tmp_path / "hf", tmp_path / "out"), ImportConfig, where="t"), lines)
    assert any("blocks.3.attention.out.weight, blocks.3.feed_forward.down.weight are zero" in x for x in lines.lines)


def test_speech_tokens_in_another_order_than_the_tokenizers_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "llama_gqa_untied")
    file = tmp_path / "hf" / "tokenizer.json"
    tree = json.loads(file.read_text())
    by_name = {token["content"]: token for token in tree["added_tokens"]}
    two, seven = by_name["<|s_2|>"], by_name["<|s_7|>"]
    two["content"], seven["content"] = seven["content"], two["content"]
    file.write_text(json.dumps(tree))
    message = (
        r"code 2 is id 262, where '<\|s_7\|>' stands instead of '<\|s_2\|>', which has the id 267; .*correct audio"
    )
    with pytest.raises(ConfigError, match=message):
        imported(tmp_path)
    with pytest.raises(
        ConfigError, match=r"code 24 is id 284, where no token stands instead of '<\|s_24\|>'|code 2 is"
    ):
        imported(tmp_path, audio={"first": FIRST_CODE, "count": NUM_CODES + 2, "eos": SPEECH_END})


@pytest.mark.parametrize(
    "name",
    ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "adapters.safetensors",
     "pytorch_lora_weights.safetensors", "speech/adapter_config.json"],
)  # fmt: skip
def test_an_adapter_beside_the_weights_is_refused(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path / "hf", "qwen2_tied")
    path = tmp_path / "hf" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    with pytest.raises(DataError, match=rf"{name} is an adapter \(LoRA\).*merge_and_unload"):
        imported(tmp_path)
    path.unlink()
    imported(tmp_path)


def test_files_that_are_damaged_are_told_without_a_librarys_pointers(tmp_path: Path) -> None:
    output = imported(tmp_path)
    declaration = result_of(output) / "outside" / "outside.json"
    for content in ("{", '{"checkpoint": 3}', "[]"):
        declaration.write_text(content)
        with pytest.raises(DataError, match=r"outside\.json: damaged, .*; restore it") as raised:
            exported(tmp_path, output)
        assert "pydantic" not in str(raised.value)
    tree = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**tree, "num_attention_heads": 5}))
    shutil.rmtree(output)
    with pytest.raises(DataError, match=r"these sizes make no decoder: .*restore the file") as raised:
        imported(tmp_path)
    assert "pydantic" not in str(raised.value)
