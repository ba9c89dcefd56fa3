"""Every run file in ``jobs/configs`` loads, and what it reads is written by then."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from retort.config import Config, load_config, load_tree, validate
from retort.data.readers_parquet import ParquetConfig
from retort.methods.guided_distill import GuidedDistillConfig
from retort.orchestration.jobs import JOBS, load_job, plan_of
from retort.run_config import (
    AnyConfig,
    DemoConfig,
    DistillMelsConfig,
    EvaluateConfig,
    GenerateMelsConfig,
    GenerateSpeechConfig,
    PretrainMelsConfig,
    PretrainVocoderConfig,
    RunConfig,
    SyntheticMels,
)

FOLDER = Path(__file__).parents[2] / "jobs" / "configs"
FILES = sorted(FOLDER.rglob("*.y*ml"))
NUM_FILES = 26


def load(file: Path) -> AnyConfig:
    return load_config(file, RunConfig)  # type: ignore[arg-type, no-any-return]


def test_no_run_file_is_forgotten() -> None:
    assert len(FILES) == NUM_FILES


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(FOLDER)))
def test_run_file_loads_as_the_job_that_it_names(file: Path) -> None:
    job = load_tree(file)["job"]
    assert job in JOBS
    config = load_job(file, expected=job)
    assert plan_of(config)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(FOLDER)))
def test_resolved_tree_is_a_run_file_too(file: Path) -> None:
    config = load(file)
    tree = yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))
    assert validate(tree, RunConfig, where="tree") == config  # type: ignore[arg-type]


def test_the_tour_of_pruning_goes_on_from_the_default_tours_teacher() -> None:
    default, pruning = load(FOLDER / "demo.yaml"), load(FOLDER / "demo_prune.yaml")
    assert isinstance(default, DemoConfig)
    assert isinstance(pruning, DemoConfig)
    assert pruning.jobs[:2] == default.jobs[:2]


def test_whatever_is_there_to_be_beaten_in_the_tour_of_pruning_is_a_control() -> None:
    pruning = load(FOLDER / "demo_prune.yaml")
    assert isinstance(pruning, DemoConfig)
    evaluation = pruning.jobs[-1]
    assert isinstance(evaluation, EvaluateConfig)
    roles = {system.name: system.role for system in evaluation.systems if system.role != "teacher"}
    assert {name for name, role in roles.items() if role == "student"} == {"pruned_distilled", "pruned_cfg_distilled"}
    assert {"pruned_distilled_random_layers", "pruned_distilled_similarity_layers"} < set(roles)
    assert set(roles.values()) == {"student", "control"}


def test_the_jobs_of_denoisers_read_what_the_ones_before_write_and_leave_no_key_to_a_default() -> None:
    names = ("pretrain_mels", "generate_mels_digits", "distill_mels")
    pretraining, generation, distillation = (load(FOLDER / f"{name}.yaml") for name in names)
    assert isinstance(pretraining, PretrainMelsConfig)
    assert isinstance(generation, GenerateMelsConfig)
    assert isinstance(generation.source, SyntheticMels)
    assert isinstance(distillation, DistillMelsConfig)
    assert isinstance(distillation.method, GuidedDistillConfig)
    assert generation.source.voices == pretraining.data
    assert generation.source.teacher == distillation.teacher == pretraining.output
    assert distillation.data == generation.output
    assert distillation.method.guidance == generation.source.guidance
    assert distillation.method.num_steps == generation.source.solver.num_steps
    for name, config in (("pretrain_mels", pretraining), ("distill_mels", distillation)):
        assert keys_of(load_tree(FOLDER / f"{name}.yaml")) == keys_of(config.model_dump(mode="json"))


def test_the_vocoders_file_reads_the_speech_that_is_generated_and_leaves_no_key_to_a_default() -> None:
    pretraining, generation = load(FOLDER / "pretrain_vocoder.yaml"), load(FOLDER / "generate_english.yaml")
    assert isinstance(pretraining, PretrainVocoderConfig)
    assert isinstance(pretraining.corpus, ParquetConfig)
    assert isinstance(generation, GenerateSpeechConfig)
    assert pretraining.corpus.path == generation.output / "result" / "corpus"
    given, resolved = keys_of(load_tree(FOLDER / "pretrain_vocoder.yaml")), keys_of(pretraining.model_dump(mode="json"))
    assert {**given, "corpus": None} == {**resolved, "corpus": None}


def keys_of(tree: Any) -> Any:
    return {key: keys_of(value) for key, value in tree.items()} if isinstance(tree, dict) else None


def inputs_of(value: Any, name: str = "") -> Iterator[Path]:
    if isinstance(value, Path) and name != "output":
        yield value
    elif isinstance(value, Config):
        for field in type(value).model_fields:
            yield from inputs_of(getattr(value, field), field)
    elif isinstance(value, tuple):
        for item in value:
            yield from inputs_of(item)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(FOLDER)))
def test_each_job_of_a_tour_reads_what_an_earlier_one_wrote(file: Path) -> None:
    config = load(file)
    if not isinstance(config, DemoConfig):
        assert config.job != "demo"
        return
    written: list[Path] = []
    for job in config.jobs:
        inside = [path for path in inputs_of(job) if path.is_relative_to(config.output)]
        unwritten = [path for path in inside if not any(path.is_relative_to(output) for output in written)]
        assert unwritten == [], f"{job.output} reads {unwritten} before a job wrote it"
        assert job.output not in written, f"two jobs write {job.output}"
        written.append(job.output)
