from pathlib import Path

import pytest
import torch

from retort.errors import ConfigError, DataError
from retort.models.codec_lm import CodecLM
from retort.models.codec_lm_lineage import CodecLMLineage
from retort.models.presets import tiny
from retort.models.weights import fingerprint_of, load_model, save_model
from retort.nn.guidance import NoGuidance, ThreeTermGuidance, TwoTermGuidance


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
    loaded = load_model(tmp_path)
    assert loaded.fingerprint == fingerprint_of(saved)
    for name, tensor in saved.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)
    assert loaded.lineage == lineage()
    assert not loaded.model.training
    assert fingerprint_of(model(1)) != loaded.fingerprint


def test_a_distilled_student_refuses_to_be_guided_again(tmp_path: Path) -> None:
    save_model(tmp_path, model(), lineage(method="cfg_distill", distilled_at=TwoTermGuidance(scale=2.0)))
    loaded = load_model(tmp_path)
    loaded.lineage.check_guidance(NoGuidance().build())
    loaded.lineage.check_guidance(TwoTermGuidance(scale=1.0).build())
    with pytest.raises(ConfigError, match="guide twice"):
        loaded.lineage.check_guidance(TwoTermGuidance(scale=1.5).build())


def test_guidance_against_an_untrained_null_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path, model(), lineage())
    loaded = load_model(tmp_path)
    loaded.lineage.check_guidance(TwoTermGuidance(scale=2.0, against="null").build())
    loaded.lineage.check_guidance(ThreeTermGuidance(first_scale=1.5, second_scale=2.0, partial="no_text").build())
    with pytest.raises(ConfigError, match="no_speaker"):
        loaded.lineage.check_guidance(
            ThreeTermGuidance(first_scale=1.5, second_scale=2.0, partial="no_speaker").build()
        )


def test_what_is_not_a_model_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a model"):
        load_model(tmp_path)
    save_model(tmp_path, model(), lineage())
    config = tmp_path / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"num_layers": 2', '"num_layers": 3'))
    with pytest.raises(DataError, match="not a usable model"):
        load_model(tmp_path)
    config.write_text(text.replace('"dim"', '"dimm"'))
    with pytest.raises(DataError, match="dimm"):
        load_model(tmp_path)
    config.write_text(text)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(DataError, match="not a usable model"):
        load_model(tmp_path)
