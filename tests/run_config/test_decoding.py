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


@pytest.mark.parametrize(
    ("tree", "scale", "apart"),
    [
        ({"guidance": {"kind": "none"}}, 1.0, {}),
        ({"guidance": {"kind": "two_term", "scale": 1.5}}, 1.5, {}),
        ({"guidance": {"kind": "two_term", "scale": 3.0, "against": "no_text"}}, None, (3.0, 1.0)),
        ({"guidance": {"kind": "two_term", "scale": 3.0, "against": "no_speaker"}}, None, (1.0, 3.0)),
        ({"guidance": {"kind": "three_term", "first_scale": 1.5, "second_scale": 2.5}}, None, (2.5, 1.5)),
        (
            {"guidance": {"kind": "three_term", "first_scale": 1.5, "second_scale": 2.5, "partial": "no_speaker"}},
            None,
            (1.5, 2.5),
        ),
        ({"guidance": {"kind": "three_term", "first_scale": 2.0, "second_scale": 2.0}}, 2.0, {}),
        ({"scale": 2.5}, 2.5, {}),
    ],
)
def test_the_guidance_that_is_told_is_of_text_and_voice_apart_where_one_number_does_not_say_both(
    tree: dict[str, Any], scale: float | None, apart: tuple[float, float] | dict[str, float]
) -> None:
    decoding = CodecLMDecoding.model_validate(tree)
    assert decoding.guidance_scale == scale
    assert decoding.guidance_apart == pytest.approx(
        dict(zip(("guidance_text", "guidance_speaker"), apart, strict=False))
    )


def test_recordings_are_not_decoded() -> None:
    with pytest.raises(ConfigError, match="`decoding` belongs to a system of kind: model"):
        validate({"name": "r", "kind": "recordings", "decoding": {"kind": "codec_lm"}}, SystemConfig, where="file")
