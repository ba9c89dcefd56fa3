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
NUM_FILES = 27


def load(file: Path) -> AnyConfig:
    return load_config(file, RunConfig)  # type: ignore[arg-type, no-any-return]


def tour(name: str) -> DemoConfig:
    config = load(FOLDER / f"{name}.yaml")
    assert isinstance(config, DemoConfig)
    return config


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


def test_the_larger_tour_shares_the_default_one_s_corpus_and_nothing_else() -> None:
    default, large = tour("demo"), tour("demo_large")
    assert large.jobs[0] == default.jobs[0]
    assert {job.output for job in large.jobs} & {job.output for job in default.jobs} == {large.jobs[0].output}


@pytest.mark.parametrize(("name", "shared"), [("demo_prune", 2), ("demo_diffusion", 4)])
def test_the_tours_of_other_methods_go_on_from_the_larger_one(name: str, shared: int) -> None:
    large = tour("demo_large").jobs
    assert tour(name).jobs[:shared] == large[:shared]


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("paper_cfg", ["demo_large"]),
        ("paper_cfg_best", ["demo_large", "paper_cfg"]),
        ("paper_prosody", ["demo_large", "paper_cfg"]),
        ("paper_spade", ["demo_large", "demo_prune"]),
    ],
)
def test_what_a_papers_file_reads_is_written_by_it_or_by_the_tours_before_it(name: str, before: list[str]) -> None:
    config = load(FOLDER / f"{name}.yaml")
    own = config.jobs if isinstance(config, DemoConfig) else ()
    written = {job.output for job in (*(job for other in before for job in tour(other).jobs), *own)}
    read = set(inputs_of(config))
    assert read
    assert read <= written


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
