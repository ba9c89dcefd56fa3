from pathlib import Path

import pytest
import yaml

from retort.config import validate
from retort.errors import ConfigError
from retort.run_config import RunConfig

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"


@pytest.mark.parametrize(
    ("job", "kind"),
    [
        ("pretrain", "mel_pretrain"),
        ("distill", "guided_distill"),
        ("distill", "progressive_distill"),
        ("distill", "interval_distill"),
    ],
)
def test_a_method_of_denoisers_without_its_family_is_told_that_the_family_is_missing(job: str, kind: str) -> None:
    tree = yaml.safe_load((CONFIGS / f"{job}_mels.yaml").read_text(encoding="utf-8"))
    steps = {"num_steps": 4} if kind == "progressive_distill" else {}
    tree = {**tree, "method": {"kind": kind, **steps}}
    validate(tree, RunConfig, where="run.yaml")
    del tree["family"]
    with pytest.raises(ConfigError, match=r"^run.yaml: family: required key is missing$"):
        validate(tree, RunConfig, where="run.yaml")


@pytest.mark.parametrize("name", ["pretrain_zero_shot", "self_distill"])
def test_the_same_of_zero_shot_models(name: str) -> None:
    tree = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    validate(tree, RunConfig, where="run.yaml")
    del tree["family"]
    with pytest.raises(ConfigError, match=r"^run.yaml: family: required key is missing$"):
        validate(tree, RunConfig, where="run.yaml")
