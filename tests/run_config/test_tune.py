"""What a sweep's file must satisfy, and the trials that it stands for."""

from pathlib import Path
from typing import Any

import pytest

from retort.errors import ConfigError
from retort.inference.decoding import CodecLMDecoding
from retort.run_config import DistillConfig, EvaluateConfig
from tests.orchestration.tune_runs import sweep, sweep_tree

ROOT = Path("runs")


def choice(*values: Any) -> dict[str, Any]:
    return {"kind": "choice", "values": list(values)}


def test_a_trial_is_the_jobs_with_its_settings_in_its_folders() -> None:
    width = {"student.student.dim": 32, "student.student.num_heads": 4}
    config = sweep(
        ROOT,
        space={
            "width": {"kind": "together", "values": [width]},
            "student.training.optimizer.learning_rate": {"kind": "loguniform", "low": 1e-4, "high": 1e-2},
            "evaluation.systems.0.decoding.sampler.temperature": choice(0.5),
        },
        search={"kind": "random"},
        num_trials=3,
    )
    parameters = {
        "width": width,
        "student.training.optimizer.learning_rate": 0.002,
        "evaluation.systems.0.decoding.sampler.temperature": 0.5,
    }
    student, evaluation = config.trial_jobs(7, parameters)
    assert isinstance(student, DistillConfig)
    assert isinstance(evaluation, EvaluateConfig)
    assert (student.student.dim, student.student.num_heads, student.student.num_layers) == (32, 4, 1)  # type: ignore[union-attr]
    assert student.training.optimizer.learning_rate == 0.002
    assert isinstance(evaluation.systems[0].decoding, CodecLMDecoding)
    assert evaluation.systems[0].decoding.sampler.temperature == 0.5
    trial = ROOT / "sweep" / "trials" / "0007"
    assert (student.output, evaluation.output) == (trial / "student", trial / "evaluation")
    assert evaluation.systems[0].model == trial / "student"
    assert (student.teacher, evaluation.data) == (ROOT / "teacher", ROOT / "data")
    assert config.trial[0].output == ROOT / "sweep" / "student", "the file itself is as it was"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "student.student.num_layer",
            2,
            r"student.student.num_layer: unknown key 'num_layer'; did you mean 'num_layer",
        ),
        ("student.trainin.steps", 2, "student.trainin: unknown key 'trainin'; did you mean 'training'"),
        ("studnet.training.steps", 2, "did you mean 'student.training.steps'"),
        ("steps", 2, "'steps' does not start with a job of the trial"),
        ("student", 2, "'student' does not start with a job of the trial"),
        ("student.training.steps", "many", "student.training.steps: Input should be a valid integer"),
        ("student.training.steps", 0, "student.training.steps: Input should be greater"),
        ("student.training.steps.more", 1, "student.training.steps"),
        ("evaluation.systems.1.name", "x", "'1' is not an index below 1"),
        ("evaluation.split", "test", "evaluation.split: test must not choose the winner"),
        ("evaluation.temperatures.split", "test", "split: test must not choose a temperature"),
    ],
)
def test_a_key_or_value_that_no_trial_could_have_is_refused_at_once(key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sweep(ROOT, space={key: choice(value)})


def test_both_ends_of_a_range_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"student\.sampled_fraction: Input should be less than or equal to 1"):
        sweep(ROOT, space={"student.sampled_fraction": {"kind": "uniform", "low": 0.0, "high": 1.5}},
              search={"kind": "random"}, num_trials=2)  # fmt: skip
    with pytest.raises(ConfigError, match="must be less than high"):
        sweep(ROOT, space={"student.training.steps": {"kind": "integers", "low": 5, "high": 5}})


def test_values_that_only_do_not_go_together_are_left_to_the_trial() -> None:
    config = sweep(
        ROOT, space={"student.sampled_fraction": choice(0.5)}
    )  # without `synthetic`, which another axis sets
    with pytest.raises(ConfigError, match="need `synthetic`"):
        config.trial_jobs(0, {"student.sampled_fraction": 0.5})


def undecoded(**changes: Any) -> list[dict[str, Any]]:
    """Jobs whose evaluation says nothing of the decoding."""
    student, evaluation = sweep_tree(ROOT)["trial"]
    del evaluation["systems"][0]["decoding"]
    return [student, {**evaluation, **changes}]


DECODING = "evaluation.systems.0.decoding"
TEMPERATURE = {f"{DECODING}.sampler.temperature": choice(0.5, 1.0)}
LACKS_KIND = (
    "evaluation.systems.0.decoding.kind: required key is missing; one of codec_lm, mel_diffusion, zero_shot; the file "
    "has no systems.0.decoding, so give it this key there, or in the space"
)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (TEMPERATURE, LACKS_KIND),
        ({f"{DECODING}.sampler.top_p": {"kind": "uniform", "low": 0.5, "high": 1.0}}, LACKS_KIND),
        ({"both": {"kind": "together", "values": [{f"{DECODING}.scale": 1.5}]}}, LACKS_KIND),
        (
            {
                "one": {
                    "kind": "together",
                    "values": [{f"{DECODING}.scale": 1.5, f"{DECODING}.kind": "codec_lm"}, {f"{DECODING}.scale": 1.0}],
                }
            },
            LACKS_KIND,
        ),
        (
            {"evaluation.speaker_encoder.path": choice("encoder")},
            "evaluation.speaker_encoder.kind: required key is missing; one of resemblyzer, wavlm_sv",
        ),
    ],
)
def test_a_key_that_every_trial_would_lack_is_refused_at_once(space: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        sweep(ROOT, trial=undecoded(), space=space, search={"kind": "random"}, num_trials=2)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "other",
    [
        {f"{DECODING}.kind": choice("codec_lm")},
        {DECODING: choice({"kind": "codec_lm"})},
    ],
)
def test_a_key_that_another_axis_gives_is_not_lacking(other: dict[str, Any]) -> None:
    config = sweep(ROOT, trial=undecoded(), space={**other, **TEMPERATURE})
    point = {name: axis["values"][0] for name, axis in {**other, **TEMPERATURE}.items()}
    decoding = config.trial_jobs(0, point)[-1].systems[0].decoding  # type: ignore[union-attr]
    assert isinstance(decoding, CodecLMDecoding)
    assert decoding.sampler.temperature == 0.5


def changed(**changes: Any) -> dict[str, Any]:
    return changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (changed(search={"kind": "random"}), "num_trials is needed"),
        (changed(space={"student.sampled_fraction": {"kind": "uniform", "low": 0.0, "high": 0.5}}), "no end of values"),
        (changed(early_stopping={"job": "evaluation", "first_rung": 5}), "is no training job of the trial; student is"),
        (changed(gate="fastest"), "is not a gate"),
        (changed(objectives=["wre"]), "objectives.0"),
        (changed(objectives=["wer", "target_kl"]), "target_kl needs evaluation.confidence_teacher"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sweep(ROOT, **changes)


@pytest.mark.parametrize(
    ("job", "changes", "message"),
    [
        (0, {"output": "elsewhere/student"}, "write to folders of runs/sweep itself"),
        (0, {"output": "runs/sweep/trials"}, "must differ from each other and from trials"),
        (1, {"split": "test"}, "split: test must not choose the winner"),
        (1, {"systems": [{"name": "r", "kind": "recordings"}]}, "one system whose model the trial makes, it has 0"),
        (1, {"speed": None}, "need evaluation.speed"),
    ],
)
def test_a_trial_that_could_not_be_judged_is_refused(job: int, changes: dict[str, Any], message: str) -> None:
    tree = sweep_tree(ROOT)
    tree["trial"][job] |= changes
    with pytest.raises(ConfigError, match=message):
        sweep(ROOT, trial=tree["trial"])


def test_the_evaluation_comes_last() -> None:
    student, evaluation = sweep_tree(ROOT)["trial"]
    with pytest.raises(ConfigError, match="the last job must be an evaluation, it is distill"):
        sweep(ROOT, trial=[evaluation, student])
