"""How a model is decoded stands in one place of a run file; what used to lie about is refused by name."""

from typing import Any

import pytest

from retort.config import validate
from retort.errors import ConfigError
from retort.inference.decoding import CodecLMDecoding
from retort.run_config import EvaluateConfig, PruneConfig
from retort.run_config.evaluate import SystemConfig
from retort.serving.settings import ServedModel

RECOGNISER = {"kind": "pocketsphinx"}


def evaluation(**changes: Any) -> dict[str, Any]:
    system = {"name": "a", "kind": "model", "role": "student", "model": "m", **changes}
    return {"job": "evaluate", "output": "o", "data": "d", "recogniser": RECOGNISER, "systems": [system]}


@pytest.mark.parametrize("key", ["guidance", "sampler", "scale_input"])
def test_keys_that_lie_about_are_unknown(key: str) -> None:
    prune = {"output": "o", "teacher": "t", "data": "d", "recogniser": RECOGNISER, key: {}}
    for tree, kind in (
        (evaluation(**{key: {}}), EvaluateConfig),
        (prune, PruneConfig),
        ({"name": "a", "path": "b", key: {}}, ServedModel),
    ):
        with pytest.raises(ConfigError, match=f"unknown key '{key}'"):
            validate(tree, kind, where="file")


def test_the_nearest_name_is_told() -> None:
    with pytest.raises(ConfigError, match="did you mean 'guidance'"):
        validate(evaluation(decoding={"kind": "codec_lm", "guidanc": {"kind": "none"}}), EvaluateConfig, where="file")
    with pytest.raises(ConfigError, match="did you mean 'decoding'"):
        validate(evaluation(decodings={}), EvaluateConfig, where="file")


def test_what_is_left_out_is_the_plain_way() -> None:
    (system,) = validate(evaluation(), EvaluateConfig, where="file").systems
    assert system.decoding is None
    plain = CodecLMDecoding()
    assert (plain.guidance_scale, plain.scale, plain.sampler.temperature) == (1.0, None, 1.0)
    assert plain.guidance.build().conditions == ("full",)


def test_recordings_are_not_decoded() -> None:
    with pytest.raises(ConfigError, match="`decoding` belongs to a system of kind: model"):
        validate({"name": "r", "kind": "recordings", "decoding": {"kind": "codec_lm"}}, SystemConfig, where="file")
