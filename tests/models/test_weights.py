import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from retort.errors import ConfigError, DataError
from retort.models.codec_lm import CodecLM
from retort.models.codec_lm_lineage import CodecLMLineage
from retort.models.mel_diffusion import MelDiffusion
from retort.models.mel_lineage import MelDiffusionLineage
from retort.models.presets import tiny
from retort.models.weights import fingerprint_of, load_codec_lm, load_mel_diffusion, save_model
from retort.nn.guidance import NoGuidance, ThreeTermGuidance, TwoTermGuidance
from tests.methods.mel_toys import TOY

GOLDEN_CONFIG = """{
  "model": {
    "text_vocabulary_size": 12,
    "num_codebooks": 2,
    "codebook_size": 16,
    "dim": 32,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 2,
    "ffn_dim": 64,
    "qkv_bias": false,
    "rope_theta": 10000.0,
    "dropout": 0.0,
    "delays": null,
    "guidance_scales": []
  },
  "lineage": {
    "method": "pretrain",
    "codec_fingerprint": "c",
    "text_fingerprint": "t",
    "teacher_fingerprint": null,
    "distilled_at": null,
    "trained_drops": [],
    "kept_layers": null,
    "selected_by": null
  }
}
"""
GOLDEN_FINGERPRINT = "codec_lm-7674b6879debd775"


def model(seed: int = 0) -> CodecLM:
    torch.manual_seed(seed)
    return CodecLM(tiny((12, 2, 16)))


def lineage(**changes: object) -> CodecLMLineage:
    base = CodecLMLineage(
        method="pretrain", codec_fingerprint="c", text_fingerprint="t", trained_drops=("no_text", "null")
    )
    return base.replace(**changes)


def test_a_saved_model_comes_back_bit_for_bit(tmp_path: Path) -> None:
    saved = model()
    save_model(tmp_path, saved, lineage())
    loaded = load_codec_lm(tmp_path)
    assert loaded.fingerprint == fingerprint_of(saved)
    for name, tensor in saved.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)
    assert loaded.lineage == lineage()
    assert not loaded.model.training
    assert fingerprint_of(model(1)) != loaded.fingerprint


def test_a_distilled_student_refuses_to_be_guided_again(tmp_path: Path) -> None:
    save_model(tmp_path, model(), lineage(method="cfg_distill", distilled_at=TwoTermGuidance(scale=2.0)))
    loaded = load_codec_lm(tmp_path)
    loaded.lineage.check_guidance(NoGuidance().build())
    loaded.lineage.check_guidance(TwoTermGuidance(scale=1.0).build())
    with pytest.raises(ConfigError, match="guide twice"):
        loaded.lineage.check_guidance(TwoTermGuidance(scale=1.5).build())


def test_guidance_against_an_untrained_null_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path, model(), lineage())
    loaded = load_codec_lm(tmp_path)
    loaded.lineage.check_guidance(TwoTermGuidance(scale=2.0, against="null").build())
    loaded.lineage.check_guidance(ThreeTermGuidance(first_scale=1.5, second_scale=2.0, partial="no_text").build())
    with pytest.raises(ConfigError, match="no_speaker"):
        loaded.lineage.check_guidance(
            ThreeTermGuidance(first_scale=1.5, second_scale=2.0, partial="no_speaker").build()
        )


def test_what_is_not_a_model_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a model"):
        load_codec_lm(tmp_path)
    save_model(tmp_path, model(), lineage())
    config = tmp_path / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"num_layers": 2', '"num_layers": 3'))
    with pytest.raises(DataError, match="not a usable model"):
        load_codec_lm(tmp_path)
    config.write_text(text.replace('"dim"', '"dimm"'))
    with pytest.raises(DataError, match="dimm"):
        load_codec_lm(tmp_path)
    config.write_text(text)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(DataError, match="not a usable model"):
        load_codec_lm(tmp_path)


def test_what_is_written_and_its_fingerprint_are_those_of_models_before_there_were_families(tmp_path: Path) -> None:
    """Golden: a folder without a ``type`` is a codec LM, byte for byte and in its fingerprint."""
    found = CodecLM(tiny((12, 2, 16)))
    with torch.no_grad():  # weights that no generator decides
        for i, parameter in enumerate(found.parameters()):
            parameter.copy_((torch.arange(parameter.numel()).remainder(7 + i) / 8).view(parameter.shape))
    save_model(tmp_path, found, CodecLMLineage(method="pretrain", codec_fingerprint="c", text_fingerprint="t"))
    text = (tmp_path / "config.json").read_text()
    assert text == GOLDEN_CONFIG
    assert "type" not in json.loads(text)["model"]
    assert fingerprint_of(found) == GOLDEN_FINGERPRINT
    loaded = load_codec_lm(tmp_path)
    assert (loaded.fingerprint, loaded.model.config.type) == (GOLDEN_FINGERPRINT, "codec_lm")
    # Who writes the type says the same.
    (tmp_path / "config.json").write_text(text.replace('"model": {', '"model": {"type": "codec_lm", '))
    assert load_codec_lm(tmp_path).fingerprint == GOLDEN_FINGERPRINT


def test_another_family_is_refused_where_a_codec_lm_is_needed(tmp_path: Path) -> None:
    denoiser = MelDiffusion(TOY)
    made = MelDiffusionLineage(method="mel_pretrain", lm_fingerprint="l", codec_fingerprint="c", text_fingerprint="t")
    save_model(tmp_path, denoiser, made)
    assert load_mel_diffusion(tmp_path).fingerprint == fingerprint_of(denoiser)
    with pytest.raises(
        ConfigError, match="of the family mel_diffusion, and a codec_lm is needed here; give the folder"
    ):
        load_codec_lm(tmp_path)
    save_model(tmp_path, model(), lineage())
    with pytest.raises(
        ConfigError, match="of the family codec_lm, and a mel_diffusion is needed here; give the folder"
    ):
        load_mel_diffusion(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"model": {', '"model": {"type": "another", '))
    for load in (load_codec_lm, load_mel_diffusion):
        with pytest.raises(
            DataError, match=r"not a usable model.*type: unknown.*one of codec_lm, mel_diffusion, zero_shot, vocoder"
        ):
            load(tmp_path)
    config.write_text("[]")
    with pytest.raises(DataError, match=r"config.json is no mapping"):
        load_codec_lm(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_neither_written_nor_loaded(tmp_path: Path, value: float) -> None:
    denoiser = MelDiffusion(TOY)
    made = MelDiffusionLineage(method="mel_pretrain", lm_fingerprint="l", codec_fingerprint="c", text_fingerprint="t")
    for family, its_lineage, load in ((model(), lineage(), load_codec_lm), (denoiser, made, load_mel_diffusion)):
        folder = tmp_path / type(family).__name__
        save_model(folder, family, its_lineage)
        weights = load_file(folder / "model.safetensors")
        name = next(reversed(weights))
        weights[name].view(-1)[0] = value
        save_file(weights, folder / "model.safetensors")
        with pytest.raises(DataError, match=rf"not a usable model.* no numbers: {name} holds 1 .* of .*restore"):
            load(folder)
        family.load_state_dict(weights)
        with pytest.raises(DataError, match=rf"not written.*{name} holds 1 "):
            save_model(tmp_path / "again", family, its_lineage)
        assert not (tmp_path / "again").exists()


def test_weights_that_do_not_fit_are_named_with_the_cure(tmp_path: Path) -> None:
    save_model(tmp_path, model(), lineage())
    path = tmp_path / "model.safetensors"
    good = load_file(path)
    name = next(iter(good))
    for bad, message in (
        ({key: tensor for key, tensor in good.items() if key != name}, f"{name} is missing"),
        ({**good, "extra": good[name].clone()}, "extra is unexpected"),
        ({**good, name: good[name][:1].clone()}, rf"{name} has shape \(1,.*\) instead of"),
    ):
        save_file(bad, path)
        with pytest.raises(DataError, match=rf"do not fit config.json: {message}.*; restore the folder"):
            load_codec_lm(tmp_path)
