"""A finished job whose run file changed: what leaves it finished, what it goes on with, and what is refused."""

import copy
import functools
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from retort.config import load_tree, put, validate
from retort.errors import ConfigError
from retort.location import parse_location
from retort.orchestration.after_finish import after_finish
from retort.orchestration.outputs import CHECKPOINTS, run_once
from retort.orchestration.progress import PlainProgress
from retort.orchestration.train.job import refuse_other_run
from retort.run_config import DemoConfig, RunConfig
from retort.store.artifact import Artifact, describe_artifact, write_artifact
from retort.training.schedule import OptimizerConfig, keeps_learning_rates, learning_rate_at
from tests.orchestration.train_runs import pretrain

ROOT = Path(__file__).parents[2]
RESYNTHESIS = {"name": "again", "kind": "resynthesis", "role": "reference"}
FIGURES = {"trials": 9, "rows_read": 100, "rows_kept": 95, "steps_left_out": 2}
"""What the records of finished jobs say."""


@functools.cache
def run_files() -> tuple[dict[str, Any], ...]:
    """The trees of all run files, with the jobs of tours one by one."""
    trees: list[dict[str, Any]] = []
    for file in sorted([*ROOT.glob("jobs/configs/*.yaml"), *ROOT.glob("tune_configs/*.yaml")]):
        config = validate(load_tree(file), RunConfig, where=file.name)  # type: ignore[arg-type, var-annotated]
        jobs = config.jobs if isinstance(config, DemoConfig) else [config]
        trees += (job.model_dump(mode="json") for job in jobs)
    return tuple(trees)


def file_of(job: str) -> dict[str, Any]:
    """The first run file of a kind: the value of ``job``, after a slash what it is of or makes."""
    verb, _, kind = job.partition("/")
    return next(
        tree
        for tree in run_files()
        if tree["job"] == verb
        and (not kind or kind in (*map(tree.get, ("family", "makes", "kind")), tree.get("source", {}).get("kind")))
    )


def loaded(tree: dict[str, Any], output: Path, **values: Any) -> Any:
    tree = copy.deepcopy(tree) | {"output": str(output)}
    if tree["job"] == "tune":  # its jobs write below it
        tree = json.loads(json.dumps(tree | {"before": []}).replace(file_of("tune")["output"], str(output)))
    for key, value in values.items():
        put(tree, key, value, said=key)
    return validate(tree, RunConfig, where="test")  # type: ignore[arg-type]


def finish(config: Any, *, folder: Path | None = None) -> Artifact:
    """The result of a job that has ended, and what lies beside it."""
    info = describe_artifact("x", "x", "1", inputs={}, config=config.model_dump(mode="json"), metrics=FIGURES)
    if hasattr(config, "training"):
        step = config.output / CHECKPOINTS / f"step-{config.training.steps:08d}"
        write_artifact(step, describe_artifact("x", "x", "1", inputs={}, config={}), lambda target: None)
    return write_artifact((folder or config.output) / "result", info, lambda target: None)


class _Working(Exception):  # noqa: N818 - it is no fault
    """The job went on."""


def again(config: Any) -> str:
    """What a finished job says to a file; raises :class:`_Working` with it if it goes on."""
    stream = io.StringIO()

    def work() -> Artifact:
        raise _Working(stream.getvalue().strip())

    run_once(config, PlainProgress(stream), work, after_finish(config))
    return stream.getvalue().strip()


MAY_CHANGE = {
    "prepare": {"pool.size": 7, "max_reject_fraction": 0.5},
    "pretrain/codec_lm": {
        "training.checkpoint_every": 77,
        "training.keep_checkpoints": 9,
        "training.log_every": 7,
        "training.max_bad_steps": 5,
        "training.workers.max_failures": 9,
        "training.workers.preemption_grace_s": 77.0,
    },
    "pretrain/mel_diffusion": {"training.log_every": 7},
    "distill/codec_lm": {"training.workers.threads_per_worker": 3, "training.workers.zero_stage": 1},
    "distill/mel_diffusion": {"training.checkpoint_every": 77},
    "generate/tokens": {"pool.size": 7, "pool.threads_per_worker": 2},
    "generate/mels": {"pool.wait_for_nodes_s": 7.0},
    "generate/speech": {"pool.size": 7, "chunk_size": 7},
    "generate/phone_mels": {"pool.size": 7},
    "generate/swapped": {"source.chunk_size": 7},
    "align": {"pool.size": 7, "max_reject_fraction": 0.5},
    "prune": {"pool.size": 7},
    "evaluate": {"pool.size": 7, "max_missing_fraction": 0.5},
    "tune": {"max_concurrent": 7, "max_failures": 7},
}
GO_ON = {
    "tune": {
        "num_trials": 99,
        "gate": "parameters<=1e9",
        "objectives": ["wer", "parameters"],
        "early_stopping.first_rung": 77,
    },
    "evaluate": {
        "systems": [RESYNTHESIS],
        "margins.wer": 0.07,
        "num_resamples": 777,
        "cluster_by_speaker": True,
        "slices": ["cut_prompt"],
        "temperatures": {"num_strings": 7},
        "long_text": {"minutes": 1.0},
        "leakage": {"mels": "runs/mels"},
        "speed.rounds": 5,
    },
}
REFUSED = {
    "prepare": {
        "codec_fit_utterances": (7, "Choose another output"),
        "max_reject_fraction": (0.01, "5 of 100 rows were rejected, more than max_reject_fraction 0.01 allows"),
        "max_unread_fraction": (0.5, "may change after the finish: max_reject_fraction, pool"),
    },
    "pretrain/codec_lm": {
        "training.steps": (99_999, "the learning rates of the .* steps that are done led down to the end"),
        "training.seed": (77, "may change after the finish: .*training.steps"),
        "training.workers.precision": ("bf16", "another precision is another model"),
        "training.optimizer.accumulation": (7, "change training.workers and training.optimizer.accumulation together"),
        "training.workers.num_workers": (
            2,
            "a step was made of 1 micro-batches, and 2 workers with accumulation 1 would",
        ),
        "training.max_bad_steps": (1, "2 bad steps were left out, more than training.max_bad_steps 1 allows"),
    },
    "pretrain/mel_diffusion": {"training.steps": (99_999, "training.optimizer.final_fraction is 1")},
    "distill/codec_lm": {"training.steps": (1, "steps are done, and none is taken back")},
    "distill/mel_diffusion": {"training.steps": (99_999, "learning rates"), "training.seed": (7, "another output")},
    "import": {"template.normalise": (True, "Choose another output")},
    "export/hugging_face": {"number_format": ("float16", "Choose another output")},
    "export/bundle": {"note": ("of a friend", "Choose another output")},
    "generate/tokens": {
        "num_sampled": (99_999, "another output makes all of it, the rows of this one included"),
        "seed": (77, "may change after the finish: pool"),
    },
    "generate/recordings": {"source.max_rows": (99_999, "another output makes all of it")},
    "generate/synthetic": {"source.num_rows": (99_999, "another output makes all of it")},
    "generate/phone_mels": {"seed": (77, "may change after the finish: pool, source.chunk_size")},
    "generate/swapped": {"source.pairs_per_row": (7, "the rows of this one included")},
    "generate/speech": {"seed": (77, "may change after the finish: chunk_size, pool")},
    "align": {
        "max_reject_fraction": (0.01, "5 of 100 rows were rejected, more than max_reject_fraction 0.01 allows"),
        "voice": ("en-gb", "may change after the finish: max_reject_fraction, pool"),
    },
    "prune": {
        "method.keep_ratio": (0.9, "a student of kind: pruned takes this output as `layers` and its own num_layers"),
        "method.removal": ("greedy", "what was measured is gone; another output measures it again"),
        "num_strings": (99, "what was measured is gone"),
    },
    "evaluate": {
        "num_strings": (77, "all systems are judged on the same strings"),
        "batch_size": (7, "may change after the finish: .*systems"),
        "pool.gpus_per_worker": (1.0, "figures of another device do not compare"),
        "systems.0.name": ("other", "is in its report; systems can be added, and none can be left out"),
        "systems.2.decoding.sampler.temperature": (0.7, "was judged otherwise; add the changed one under another name"),
    },
    "tune": {
        "num_trials": (1, "9 trials are measured, and none is forgotten"),
        "seed": (77, "may change after the finish: .*num_trials"),
    },
}


def cases(table: dict[str, dict[str, Any]]) -> list[Any]:
    return [pytest.param(j, k, v, id=f"{j}-{k}") for j, keys in table.items() for k, v in keys.items()]


def of_tune(job: str, key: str, tree: dict[str, Any]) -> dict[str, Any]:
    """A random search, which has its number of trials from the file, and stops some of them."""
    if job != "tune":
        return tree
    trained = next(Path(inner["output"]).name for inner in tree["trial"] if "training" in inner)
    stopping = {"job": trained, "first_rung": 10}
    return tree | {"search": {"kind": "random"}, "num_trials": 9, "early_stopping": stopping}


@pytest.mark.parametrize(("job", "key", "value"), cases(MAY_CHANGE))
def test_a_key_that_the_result_does_not_depend_on_leaves_the_job_finished(
    tmp_path: Path, job: str, key: str, value: Any
) -> None:
    tree = of_tune(job, key, file_of(job))
    finish(loaded(tree, tmp_path / "out"))
    assert again(loaded(tree, tmp_path / "out")).endswith(f"{tmp_path / 'out'} is finished")
    said = again(loaded(tree, tmp_path / "out", **{key: value}))
    assert "is finished; without effect on its result: " in said
    assert f"{key}: " in said
    assert f" → {value}" in said


@pytest.mark.parametrize(("job", "key", "value"), cases(GO_ON))
def test_a_finished_job_goes_on_where_it_ends_as_an_unbroken_run(
    tmp_path: Path, job: str, key: str, value: Any
) -> None:
    tree = of_tune(job, key, file_of(job))
    finish(loaded(tree, tmp_path / "out"))
    changed = {key: [*tree["systems"], *value] if key == "systems" else value}
    with pytest.raises(_Working, match=rf"is finished, and goes on with .*{key}.*: .* → "):
        again(loaded(tree, tmp_path / "out", **changed))


@pytest.mark.parametrize(
    ("job", "key", "value", "way"), [pytest.param(*c.values[:2], *c.values[2], id=c.id) for c in cases(REFUSED)]
)
def test_any_other_change_is_refused_with_the_key_both_values_and_the_way(
    tmp_path: Path, job: str, key: str, value: Any, way: str
) -> None:
    tree = of_tune(job, key, file_of(job))
    finish(loaded(tree, tmp_path / "out"))
    with pytest.raises(ConfigError, match=way) as refused:
        again(loaded(tree, tmp_path / "out", **{key: value}))
    assert f"{key}: " in str(refused.value)
    assert f" → {value}" in str(refused.value)
    assert "Choose another output" in str(refused.value)


def test_a_change_that_may_not_be_is_refused_beside_one_that_may(tmp_path: Path) -> None:
    tree = file_of("evaluate")
    finish(loaded(tree, tmp_path / "out"))
    changes = {"systems": [*tree["systems"], RESYNTHESIS], "seed": 77, "pool.size": 7}
    with pytest.raises(ConfigError, match=r"differs in seed: \S+ → 77\. "):
        again(loaded(tree, tmp_path / "out", **changes))


def test_a_grid_goes_on_to_more_of_its_points(tmp_path: Path) -> None:
    tree = file_of("tune") | {"search": {"kind": "grid"}, "num_trials": 2}
    tree["space"] = {next(iter(tree["space"])): {"kind": "choice", "values": [1, 2, 4]}}
    few = loaded(tree, tmp_path / "out")
    info = describe_artifact("x", "x", "1", inputs={}, config=few.model_dump(mode="json"), metrics={"trials": 2})
    write_artifact(few.output / "result", info, lambda target: None)
    with pytest.raises(_Working, match="goes on with num_trials: 2 → None"):
        again(loaded(tree | {"num_trials": None}, tmp_path / "out"))
    with pytest.raises(ConfigError, match="num_trials: 2 → 1"):
        again(loaded(tree | {"num_trials": 1}, tmp_path / "out"))


def test_more_steps_at_the_same_learning_rates_go_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    level = {"final_fraction": 1.0}
    finish(pretrain(tmp_path, "out", optimizer=level))
    longer = pretrain(tmp_path, "out", optimizer=level, steps=9, log_every=3)
    with pytest.raises(_Working, match=r"goes on with training\.steps: 6 → 9"):
        again(longer)
    next((tmp_path / "out" / CHECKPOINTS).iterdir()).rename(tmp_path / "gone")
    with pytest.raises(ConfigError, match=r"training\.steps: 6 → 9; .*has no checkpoint of step 6 to go on from"):
        again(longer)


def test_the_same_step_by_other_workers_leaves_a_training_finished(tmp_path: Path) -> None:
    finish(pretrain(tmp_path, "out", workers={"num_workers": 2}))
    for workers, accumulation in ((1, 2), (1, 1), (2, 1)):
        changes = {"workers": {"num_workers": workers}, "optimizer": {"accumulation": accumulation}}
        assert "is finished" in again(pretrain(tmp_path, "out", **changes))


def test_more_steps_within_the_warm_up_go_on(tmp_path: Path) -> None:
    finish(pretrain(tmp_path, "out", optimizer={"warmup_steps": 20}))
    with pytest.raises(_Working, match=r"training\.steps: 6 → 30"):
        again(pretrain(tmp_path, "out", optimizer={"warmup_steps": 20}, steps=30))


def test_a_run_that_was_cut_short_goes_on_to_more_steps_by_the_same_rule(tmp_path: Path) -> None:
    level = {"final_fraction": 1.0}
    job = pretrain(tmp_path, "out", optimizer=level)
    finish(job, folder=tmp_path / "elsewhere")
    (job.output / "run.yaml").write_text(yaml.safe_dump(job.model_dump(mode="json")))
    refuse_other_run(pretrain(tmp_path, "out", optimizer=level, steps=9))
    with pytest.raises(ConfigError, match=r"training\.steps: 6 → 5\. It cannot go on there: 6 steps are done"):
        refuse_other_run(pretrain(tmp_path, "out", optimizer=level, steps=5))
    with pytest.raises(ConfigError, match=r"training\.steps: 6 → 9; training\.seed: 0 → 1"):
        refuse_other_run(pretrain(tmp_path, "out", optimizer=level, steps=9, seed=1))


@pytest.mark.parametrize("decay", ["cosine", "linear"])
@pytest.mark.parametrize("final_fraction", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("done", [1, 5, 6, 7, 12])
def test_learning_rates_are_said_to_be_kept_only_where_they_are(decay: Any, final_fraction: float, done: int) -> None:
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=5, decay=decay, final_fraction=final_fraction)
    same = all(learning_rate_at(s, 12, config) == learning_rate_at(s, 40, config) for s in range(done))
    kept = keeps_learning_rates(done, 12, 40, config)
    assert same or not kept
    assert kept == (final_fraction == 1.0 or done <= 5)
    assert keeps_learning_rates(done, 12, 12, config)


def test_a_result_in_a_store_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = file_of("evaluate")
    made = finish(loaded(tree, tmp_path / "out"))
    monkeypatch.setattr("retort.orchestration.outputs.is_finished", lambda place: True)
    monkeypatch.setattr("retort.orchestration.outputs.localise", lambda place: made.path)
    place = parse_location("s3://bucket/run")
    with pytest.raises(ConfigError, match=r"s3://bucket/run.*num_resamples: \d+ → 777.*in a store is written once"):
        again(loaded(tree, tmp_path / "out", num_resamples=777).replace(output=place))
    assert "is finished" in again(loaded(tree, tmp_path / "out", **{"pool.size": 7}).replace(output=place))


def test_the_document_has_a_row_for_every_job() -> None:
    """A person reads there what the code holds."""
    text = (ROOT / "docs" / "reliability.md").read_text()
    table = text.split("### After the finish")[1].split("\n### ")[0]
    for tree in run_files():
        rules = after_finish(validate(tree, RunConfig, where="file"))  # type: ignore[arg-type]
        assert f"`{tree['job']}`" in table
        for key in (*rules.same, *rules.more, *rules.ways):
            assert f"`{key}`" in table, f"{tree['job']}: {key}"


def test_jobs_that_are_tried_here_are_all_that_finish() -> None:
    told = {job.partition("/")[0] for table in (MAY_CHANGE, REFUSED) for job in table}
    assert told == {tree["job"] for tree in run_files()}
