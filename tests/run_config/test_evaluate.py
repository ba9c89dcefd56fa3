"""What the file of an evaluation must say of its systems and of what it asks."""

from pathlib import Path
from typing import Any

import pytest

from retort.config import load_tree, validate
from retort.errors import ConfigError
from retort.run_config import ComparisonConfig, EvaluateConfig, PruneConfig

DEMO = load_tree(Path("jobs/configs/demo.yaml"))["jobs"][-1]
SYSTEMS = [
    {"name": "r", "kind": "recordings"},
    {"name": "t", "kind": "model", "role": "teacher", "model": "runs/t"},
    {"name": "s", "kind": "model", "role": "student", "model": "runs/s"},
]

ENDPOINT = {"base_url": "https://host/v1", "model": "tts-1"}


def evaluation(**changes: Any) -> EvaluateConfig:
    tree = {**DEMO, "systems": SYSTEMS, "comparisons": [], "confidence_teacher": None, **changes}
    return validate(tree, EvaluateConfig, where="file")


def test_roles_are_stated_for_models_and_known_for_recordings() -> None:
    assert [system.role for system in evaluation().systems] == ["reference", "teacher", "student"]


@pytest.mark.parametrize(
    ("system", "message"),
    [
        (
            {"name": "control_x", "kind": "model", "model": "runs/x"},
            "does not say its role; add `role: ",
        ),
        ({"name": "x", "kind": "model", "model": "runs/x", "role": "pupil"}, "systems.0.role"),
        ({"name": "x", "kind": "recordings", "role": "teacher"}, "`role` of recordings is reference, not teacher"),
        ({"name": "x", "kind": "endpoint", "endpoint": ENDPOINT}, "does not say its role; add `role: "),
    ],
)
def test_a_role_that_is_not_said_is_not_guessed(system: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluation(systems=[system])


def test_comparisons_are_pairs_or_name_their_metric() -> None:
    asked = evaluation(comparisons=[["t", "s"], {"a": "t", "b": "s", "metric": "mel_distance"}, {"a": "s", "b": "t"}])
    assert asked.comparisons == (
        ComparisonConfig(a="t", b="s"),
        ComparisonConfig(a="t", b="s", metric="mel_distance"),
        ComparisonConfig(a="s", b="t"),
    )
    again = validate(asked.model_dump(mode="json"), EvaluateConfig, where="resolved")
    assert again == asked


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"comparisons": [["t", "s", "r"]]}, r"a comparison is \[a, b\], .* this has 3 entries"),
        ({"comparisons": [["t", "ghost"]]}, "the systems are"),
        ({"comparisons": [["t", "s"], ["s", "t"], ["t", "s"]]}, r"\[t, s\] stands there more than once"),
        ({"comparisons": [["t", "t"]]}, r"\[t, t\] compares a system with itself"),
        (
            {"comparisons": [["t", "s"], {"a": "t", "b": "s", "metric": "wer_capped"}]},
            r"\[t, s\] says the same by wer_capped, .* leave out the one with metric: wer_capped",
        ),
        ({"comparisons": [{"a": "t", "b": "s", "metric": "wre"}]}, "unknown figure 'wre'; did you mean 'wer'"),
        ({"comparisons": [{"a": "t", "b": "s", "metric": "rtf"}]}, "unknown figure 'rtf'"),
        ({"margins": {"wre": 0.02}}, "unknown figure 'wre'; did you mean 'wer'"),
        ({"margins": {"wer": 0.0}}, "greater than 0"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluation(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperatures": {"split": "test"}}, "split: test must not choose a temperature"),
        ({"temperatures": {"split": "validation"}, "split": "validation"}, "temperatures.split is validation, and so"),
        ({"temperatures": {"values": [0.5, 0.5]}}, "values must differ, they are 0.5, 0.5"),
        ({"temperatures": {"values": [0.5]}}, "at least 2"),
        ({"temperatures": {"values": [-1.0, 0.5]}}, "greater than or equal to 0"),
        ({"temperatures": {"metric": "speaker_similarity"}}, "'wer', 'wer_capped', 'wer_mean' or 'failure_rate'"),
        ({"temperatures": {}, "systems": [{**SYSTEMS[0], "name": "r@best"}]}, "no system has an @ in its name"),
    ],
)
def test_a_temperature_is_chosen_on_strings_that_judge_nothing(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluation(**changes)


def test_temperatures_are_chosen_on_validation_unless_the_file_says_otherwise() -> None:
    chosen = evaluation(temperatures={"num_strings": 7}).temperatures
    assert chosen is not None
    assert (chosen.split, chosen.values, chosen.metric) == ("validation", (0.4, 0.6, 0.8, 1.0), "wer")
    assert evaluation(temperatures=None).temperatures is None
    at_best = evaluation(systems=[{**SYSTEMS[0], "name": "r@best"}], temperatures=None)
    assert at_best.systems[0].name == "r@best", "it means nothing then"


def test_layers_are_not_chosen_on_test_strings() -> None:
    tree = load_tree(Path("jobs/configs/demo_prune.yaml"))["jobs"]
    prune = next(job for job in tree if job["job"] == "prune")
    assert validate(prune, PruneConfig, where="file").split == "validation"
    with pytest.raises(ConfigError, match="split"):
        validate({**prune, "split": "test"}, PruneConfig, where="file")


def test_margins_are_by_metric() -> None:
    assert evaluation(margins={"wer": 0.02, "mel_distance": 0.3}).margins == {"wer": 0.02, "mel_distance": 0.3}
    assert evaluation().margins == {"wer": 0.03}


def test_a_service_is_asked_as_the_file_says_and_belongs_to_its_kind_alone() -> None:
    service = {"name": "e", "kind": "endpoint", "role": "student", "endpoint": {**ENDPOINT, "voice": "alloy"}}
    asked = evaluation(systems=[*SYSTEMS, service])
    assert asked.systems[-1].endpoint is not None
    assert asked.systems[-1].endpoint.voice_of("anybody") == "alloy"
    assert validate(asked.model_dump(mode="json"), EvaluateConfig, where="resolved") == asked
    for changes, message in (
        ({"endpoint": None}, "`endpoint` says how"),
        ({"kind": "model", "model": "runs/x"}, "`endpoint` says how"),
        ({"model": "runs/x"}, "path of a system of kind: model"),
        ({"decoding": {"kind": "codec_lm"}}, "`decoding` belongs to"),
        ({"endpoint": {**ENDPOINT, "api_key": "sk"}}, "api_key"),
        ({"endpoint": {**ENDPOINT, "base_url": "https://me:sk@host"}}, "without user, password"),
    ):
        with pytest.raises(ConfigError, match=message):
            evaluation(systems=[{**service, **changes}])


def test_what_a_system_says_does_not_depend_on_its_role_or_on_how_fast_it_is_asked() -> None:
    service = {"name": "e", "kind": "endpoint", "role": "student", "endpoint": ENDPOINT}
    plain = evaluation(systems=[service]).systems[0]
    for changes in ({"role": "control"}, {"endpoint": {**ENDPOINT, "concurrency": 9, "api_key_env": "KEY"}}):
        assert evaluation(systems=[{**service, **changes}]).systems[0].said_by == plain.said_by
    other = evaluation(systems=[{**service, "endpoint": {**ENDPOINT, "voice": "x"}}]).systems[0]
    assert other.said_by != plain.said_by
    model = evaluation().systems[1]
    assert model.replace(role="student").said_by == model.said_by
    assert model.replace(model=Path("elsewhere")).said_by != model.said_by


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slices": ["cut_prompt", "cut_prompt"]}, "names one of them twice"),
        ({"slices": ["shouted"]}, "slices.0"),
        ({"slices": ["cut_prompt"], "systems": [SYSTEMS[0]]}, "cut_prompt is for systems of kind: model"),
        ({"slices": ["no_final_punctuation"], "systems": [SYSTEMS[0]]}, "there is none"),
        ({"long_text": {}, "systems": [SYSTEMS[0]]}, "there is none"),
        ({"long_text": {"minutes": 0}}, "long_text.minutes"),
        ({"long_text": {"part_characters": 0}}, "long_text.part_characters"),
    ],
)
def test_harder_strings_that_nobody_can_be_asked_for_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluation(**changes)


def test_a_long_text_is_ten_minutes_unless_the_file_says_otherwise() -> None:
    asked = evaluation(long_text={}, slices=["no_final_punctuation", "cut_prompt"])
    assert asked.long_text is not None
    assert (asked.long_text.minutes, asked.long_text.part_characters) == (10.0, 240)
    assert validate(asked.model_dump(mode="json"), EvaluateConfig, where="resolved") == asked
