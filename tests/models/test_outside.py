"""Outside checkpoints: the logits of ``transformers``, the weights bit for bit, and refusals that name the fault."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from retort.data.batches import CodebookLayout, conditions_for, lay_out
from retort.errors import ConfigError, DataError
from retort.inference.native.model import NativeModel
from retort.models.codec_lm import CodecLM
from retort.models.initialise import kept_layers, student_from
from retort.models.outside.checkpoint import INDEX_FILE, WEIGHTS_FILE, Checkpoint
from retort.models.outside.checkpoint_style import read_style, written_config
from retort.models.outside.translate import HEAD, Translated, expected_shapes, from_codec_lm, to_codec_lm
from retort.nn.conditions import TEXT_NULL
from retort.text.hf_tokenizer import AudioTokens, HFTokenizer, HFTokenizerConfig
from tests.models.checkpoints import (
    FIRST_CODE,
    KINDS,
    LLAMA3,
    NUM_CODES,
    SPEECH_END,
    SPEECH_START,
    TEXT_END,
    TEXT_START,
    VOCABULARY,
    outside_model,
    write_checkpoint,
)

TEXT = HFTokenizerConfig(
    before=(TEXT_START,), after=(TEXT_END,), start=SPEECH_START, vocabulary_size=VOCABULARY,
    audio=AudioTokens(first=FIRST_CODE, count=NUM_CODES, eos=SPEECH_END),
)  # fmt: skip


def translated(folder: Path, null_ids: tuple[int, ...] = ()) -> Translated:
    checkpoint = Checkpoint.open(folder)
    return to_codec_lm(checkpoint.tensor, read_style(checkpoint.config), TEXT, null_ids)


def sequence(folder: Path, *, frames: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Outside ids of a whole sequence [1, T], our text ids [L], and codes [1, S]."""
    ids = HFTokenizer((folder / "tokenizer.json").read_text(), TEXT).encode("ten, twenty")
    codes = torch.randint(NUM_CODES, (1, frames), generator=torch.Generator().manual_seed(5))
    outside = [TEXT.audio.outside_id(i) for i in ids]
    whole = torch.tensor([[*outside, SPEECH_START, *(codes[0] + FIRST_CODE).tolist()]])
    return whole, torch.tensor(ids), codes


def speech_logits(model: torch.nn.Module, whole: torch.Tensor, frames: int) -> torch.Tensor:
    """What ``transformers`` says about the codes and their end, [S + 1, V + 1]."""
    with torch.no_grad():
        logits = model(whole).logits[0, -(frames + 1) :]
    return torch.cat([logits[:, FIRST_CODE : FIRST_CODE + NUM_CODES], logits[:, SPEECH_END, None]], dim=1)


def our_logits(lm: CodecLM, ids: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    inputs, _, _ = lay_out([codes], CodebookLayout(NUM_CODES, (0,)))
    with torch.no_grad():
        return lm(conditions_for([ids.tolist()], [None], 1), inputs)[0, :, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    theirs = write_checkpoint(tmp_path, kind)
    ours = translated(tmp_path).model
    whole, ids, codes = sequence(tmp_path)
    expected, got = speech_logits(theirs, whole, 40), our_logits(ours, ids, codes)
    assert whole.shape[1] > LLAMA3["original_max_position_embeddings"] * 3
    assert expected.std() > 0.5
    assert torch.allclose(expected, got, atol=1e-4, rtol=0)


def test_positions_beyond_the_original_context_need_the_scaling(tmp_path: Path) -> None:
    theirs = write_checkpoint(tmp_path, "llama3_scaled")
    whole, ids, codes = sequence(tmp_path)
    lm = translated(tmp_path).model
    plain = CodecLM(lm.config.replace(rope_scaling=None)).eval()
    plain.load_state_dict(lm.state_dict())
    assert not torch.allclose(speech_logits(theirs, whole, 40), our_logits(plain, ids, codes), atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_forward_pass_in_c_gives_them_too(tmp_path: Path, kind: str) -> None:
    theirs = write_checkpoint(tmp_path, kind)
    lm = translated(tmp_path).model
    whole, ids, codes = sequence(tmp_path)
    native = NativeModel(lm, weight_format="fp32", max_rows=1, max_columns=128, threads=1)
    prefix = lm.embed_conditions(conditions_for([ids.tolist()], [None], 1))[0][0].detach()
    inputs = torch.cat([torch.tensor([[lm.config.fill]]), codes], dim=1)
    L, S = len(prefix), inputs.shape[1]
    native.forward(rows=[0] * L, positions=list(range(L)), embedded_CD=prefix, outputs=())
    got = native.forward(rows=[0] * S, positions=list(range(L, L + S)), tokens_CK=inputs.T)[:, 0]
    expected = speech_logits(theirs, whole, 40)
    assert float((expected - got).norm() / expected.norm()) < 1e-5


def test_shards_and_one_file_are_the_same(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "one", "qwen2_untied").save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert (tmp_path / "many" / INDEX_FILE).is_file()
    one, many = translated(tmp_path / "one").model, translated(tmp_path / "many").model
    assert all(torch.equal(tensor, many.state_dict()[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_and_back_is_bit_equal(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    write_checkpoint(tmp_path, kind).to(dtype).save_pretrained(tmp_path)
    checkpoint, was_tied = Checkpoint.open(tmp_path), bool(KINDS[kind][1].get("tie_word_embeddings"))
    ours = translated(tmp_path)
    tensors, is_tied = from_codec_lm(ours.model, TEXT, ours.rest, was_tied=was_tied)
    original = load_file(tmp_path / WEIGHTS_FILE)
    assert checkpoint.dtype == dtype
    assert is_tied == was_tied
    assert set(tensors) == set(original)
    assert all(torch.equal(tensors[name].to(dtype), tensor) for name, tensor in original.items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_pruned_student_goes_back_to_transformers(tmp_path: Path, kind: str) -> None:
    from transformers import AutoModelForCausalLM

    source, target = tmp_path / "source", tmp_path / "target"
    write_checkpoint(source, kind)
    teacher = translated(source)
    student = student_from(teacher.model, teacher.model.config.replace(num_layers=2), init="teacher").eval()
    kept = [teacher.model.blocks[i].state_dict() for i in kept_layers(4, 2)]
    for block, expected in zip(student.blocks, kept, strict=True):
        assert all(torch.equal(tensor, expected[name]) for name, tensor in block.state_dict().items())
    config = Checkpoint.open(source).config
    tensors, is_tied = from_codec_lm(student, TEXT, teacher.rest, was_tied=read_style(config).tie_word_embeddings)
    target.mkdir()
    save_file(tensors, target / WEIGHTS_FILE, metadata={"format": "pt"})
    tree = written_config(config, student.config, is_tied=is_tied, dtype="float32")
    (target / "config.json").write_text(json.dumps(tree))
    whole, ids, codes = sequence(source)
    loaded, report = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values()), report
    expected = speech_logits(loaded.eval(), whole, 40)
    assert torch.allclose(expected, our_logits(student, ids, codes), atol=1e-4, rtol=0)


def test_a_tied_table_that_training_moved_apart_is_written_as_two(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "qwen2_tied")
    ours = translated(tmp_path)
    with torch.no_grad():
        ours.model.heads.weight[3] += 1.0
    tensors, is_tied = from_codec_lm(ours.model, TEXT, ours.rest, was_tied=True)
    assert not is_tied
    assert torch.equal(tensors[HEAD][FIRST_CODE + 3], ours.model.heads.weight[3])
    assert torch.equal(tensors[HEAD][:FIRST_CODE], tensors["model.embed_tokens.weight"][:FIRST_CODE])


def test_the_null_is_the_mean_of_its_tokens_and_zero_without_any(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path, "llama_gqa_untied")
    table = model.model.embed_tokens.weight
    assert torch.equal(translated(tmp_path, (7, 9)).model.text_embedding.weight[TEXT_NULL], table[[7, 9]].mean(0))
    assert not translated(tmp_path).model.text_embedding.weight[TEXT_NULL].any()


def test_a_student_of_another_width_has_no_way_back(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "llama_gqa_untied")
    ours = translated(tmp_path)
    small = ours.model.config.replace(dim=16, num_heads=2, num_kv_heads=1, num_layers=2)
    with pytest.raises(ConfigError, match=r"16 wide.*32"):
        from_codec_lm(student_from(ours.model, small, init="teacher"), TEXT, ours.rest, was_tied=False)


def test_a_student_must_keep_the_biases(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "qwen2_untied")
    teacher = translated(tmp_path).model
    with pytest.raises(ConfigError, match="qkv_bias: true"):
        student_from(teacher, teacher.config.replace(qkv_bias=False), init="teacher")
    assert torch.equal(
        student_from(teacher, teacher.config, init="teacher").blocks[1].attention.qkv.bias,
        teacher.blocks[1].attention.qkv.bias,
    )


REFUSED = [
    ({"model_type": "mistral"}, "model_type 'mistral'"),
    ({"attention_bias": True}, "attention_bias is True"),
    ({"mlp_bias": True}, "mlp_bias is True"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ({"use_sliding_window": True}, "use_sliding_window is True"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_type 'yarn'"),
    ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type 'linear'"),
    ({"quantization_config": {"bits": 4}}, "quantization_config is set"),
    ({"num_local_experts": 8}, "num_local_experts is set"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ({"vocab_size": None}, "vocab_size is missing"),
    ({"hidden_size": "32"}, "hidden_size is '32'"),
    ({"num_attention_heads": 3}, "make no decoder"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_our_blocks_do_not_compute_is_refused_by_name(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    write_checkpoint(tmp_path, "llama_gqa_untied")
    tree = {**Checkpoint.open(tmp_path).config, **change}
    with pytest.raises(DataError, match=message):
        read_style(tree).codec_lm(text_vocabulary_size=9, codebook_size=4)


def test_configurations_of_transformers_4_are_read_too(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "llama3_scaled")
    new = Checkpoint.open(tmp_path).config
    old = {name: value for name, value in new.items() if name != "rope_parameters"}
    scaling = {name: value for name, value in LLAMA3.items() if name != "rope_theta"}
    assert read_style({**old, "rope_theta": 500_000.0, "rope_scaling": scaling}) == read_style(new)


def without_a_tensor(shard: Path) -> None:
    weights = load_file(shard)
    weights.pop(next(iter(weights)))
    save_file(weights, shard)


def with_a_half(shard: Path) -> None:
    weights = load_file(shard)
    name = next(iter(weights))
    save_file({**weights, name: weights[name].half()}, shard)


def as_integers(shard: Path) -> None:
    for path in shard.parent.glob("*.safetensors"):
        save_file({name: tensor.int() for name, tensor in load_file(path).items()}, path)


def rewrite_index(shard: Path, old: str, new: str) -> None:
    index = shard.parent / INDEX_FILE
    index.write_text(index.read_text().replace(old, new))


def a_second_copy(shard: Path) -> None:
    shutil.copyfile(shard, shard.parent / "copy.safetensors")
    index = shard.parent / INDEX_FILE
    tree = json.loads(index.read_text())
    tree["weight_map"][next(iter(load_file(shard)))] = "copy.safetensors"
    index.write_text(json.dumps(tree))


def pickles_alone(shard: Path) -> None:
    for path in shard.parent.glob("model*"):
        path.unlink()
    (shard.parent / "pytorch_model.bin").write_bytes(b"\x80\x04")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing shard": (Path.unlink, "no such file, and .* places .* in it"),
    "cut shard": (lambda shard: shard.write_bytes(shard.read_bytes()[:-40]), "damaged"),
    "no index": (lambda shard: (shard.parent / INDEX_FILE).write_text("{}"), "no weight_map"),
    "path outside": (
        lambda shard: rewrite_index(shard, shard.name, "../a.safetensors"),
        "not the name of a safetensors",
    ),
    "pickle in the index": (lambda shard: rewrite_index(shard, shard.name, "a.bin"), "not the name of a safetensors"),
    "missing tensor": (without_a_tensor, "says that .* is in it, and it is not"),
    "the same tensor twice": (a_second_copy, "is also in"),
    "mixed formats": (with_a_half, "tensors in F16, F32"),
    "integers": (as_integers, "tensors in I32"),
    "pickles alone": (pickles_alone, "pytorch_model.bin is a pickle.*safe_serialization"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_damage_is_told_with_its_place(tmp_path: Path, what: str) -> None:
    model = outside_model("qwen2_untied")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    damage, message = DAMAGES[what]
    damage(sorted(tmp_path.glob("*.safetensors"))[1])
    with pytest.raises(DataError, match=message):
        Checkpoint.open(tmp_path)


def test_weights_that_do_not_fit_the_configuration_are_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "llama_gqa_untied")
    checkpoint = Checkpoint.open(tmp_path)
    style = read_style(checkpoint.config)
    checkpoint.check(expected_shapes(style, has_head=True))
    for change, message in (
        ({"num_hidden_layers": 5}, "model.layers.4.self_attn.q_proj.weight is missing"),
        ({"num_hidden_layers": 3}, "model.layers.3.* is unexpected"),
        ({"model_type": "qwen2"}, "q_proj.bias is missing"),
        ({"vocab_size": 300}, r"embed_tokens.weight has shape \(288, 32\) instead of \(300, 32\)"),
    ):
        with pytest.raises(DataError, match=message):
            checkpoint.check(expected_shapes(style.replace(**change), has_head=True))


def test_a_truncated_tensor_file_and_a_broken_config_are_data_errors(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "llama_gqa_untied")
    (tmp_path / "config.json").write_text("[1")
    with pytest.raises(DataError, match=r"config\.json: not JSON"):
        Checkpoint.open(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(DataError, match=r"config\.json: no such file"):
        Checkpoint.open(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        Checkpoint.open(tmp_path / "absent")
