"""Every file in ``tune_configs`` is a sweep whose trials can begin."""

from pathlib import Path

import pytest
import yaml

from retort.config import load_config, load_tree, validate
from retort.orchestration.jobs import load_job, plan_of
from retort.run_config import DemoConfig, TuneConfig
from retort.tuning.search import num_trials, searcher_of

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "tune_configs").rglob("*.y*ml"))
NUM_FILES = 2


def test_no_file_is_forgotten() -> None:
    assert len(FILES) == NUM_FILES


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_sweep_loads_as_it_was_written_and_its_trials_are_valid(file: Path) -> None:
    assert load_tree(file)["job"] == "tune"
    config = load_job(file, expected="tune")
    assert isinstance(config, TuneConfig)
    assert validate(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json"))), TuneConfig, where="tree") == config
    assert f"{num_trials(config)} trials" in plan_of(config)
    searcher = searcher_of(config)
    for number in range(num_trials(config)):
        assert config.trial_jobs(number, searcher.propose(number))


def test_the_demo_s_sweep_starts_from_the_demo_s_own_first_jobs() -> None:
    sweep = load_config(ROOT / "tune_configs" / "demo.yaml", TuneConfig)
    tour = load_config(ROOT / "jobs" / "configs" / "demo.yaml", DemoConfig)
    assert sweep.before == tour.jobs[: len(sweep.before)]
    assert [job.job for job in sweep.before] == ["prepare", "pretrain", "generate"]
    assert num_trials(sweep) >= 12


def test_the_sweep_of_pruned_students_starts_from_the_tour_of_pruning() -> None:
    sweep = load_config(ROOT / "tune_configs" / "prune.yaml", TuneConfig)
    tour = load_config(ROOT / "jobs" / "configs" / "demo_prune.yaml", DemoConfig)
    assert sweep.before == tour.jobs[: len(sweep.before)]
    assert [job.job for job in sweep.before] == ["prepare", "pretrain", "prune"]
