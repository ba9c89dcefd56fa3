"""What the driver refuses of a denoiser's training before Ray starts, and what a run file may not say."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from retort.config import validate
from retort.data.mels import FromRecordings
from retort.errors import ConfigError, DataError, QualityGateError, RetortError
from retort.methods.guided_distill import PARITY_FILE
from retort.models.weights import load_codec_lm, load_mel_diffusion
from retort.orchestration.progress import QuietProgress
from retort.orchestration.train.job import run_distill, run_pretrain
from retort.orchestration.train.task import TrainJob, task_of
from retort.orchestration.train.worker import Assignment
from retort.run_config import PretrainConfig, RunConfig
from retort.store.artifact import describe_artifact, read_artifact, write_artifact
from tests.orchestration.mel_runs import write_denoiser
from tests.orchestration.mel_train_runs import (
    GUIDANCE,
    distill_mels,
    made_by,
    pretrain_mels,
    write_lm,
    write_mels,
    write_world,
)
from tests.orchestration.train_runs import distill, pretrain

GUIDED = {"kind": "guided_distill", "guidance": GUIDANCE}
INTERVAL = {"kind": "interval_distill", "guidance": {"kind": "none"}}


def halved(num_steps: int) -> dict[str, Any]:
    return {"kind": "progressive_distill", "num_steps": num_steps}


def student(method: str, **lineage: Any) -> dict[str, Any]:
    return {"method": method, "teacher_fingerprint": "t", "distilled_at": GUIDANCE, **lineage}


def write_judged(folder: Path, lm: Path, *, distance: float, **lineage: Any) -> None:
    """A guided student whose parity.json says how far it is from its teacher."""
    made = write_denoiser(folder / "unjudged", lm, **student("guided_distill", **lineage))
    figures = {"num_steps": 80, "student": distance, "unguided_teacher": 0.9, "largest_distance": 0.25}

    def fill(target: Path) -> None:
        for name in ("config.json", "model.safetensors"):
            shutil.copyfile(made / name, target / name)
        (target / PARITY_FILE).write_text(json.dumps(figures))

    write_artifact(folder / "result", describe_artifact("model", "d", "1", inputs={}, config={}), fill)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mel-inputs")
    write_world(folder)
    lm = folder / "lm" / "result"
    write_denoiser(folder / "teacher", lm)
    write_denoiser(folder / "undropped", lm, trained_drops=False)
    write_denoiser(folder / "stranger", write_lm(folder / "other-lm", folder / "data", seed=1))
    write_judged(folder / "guided", lm, distance=0.1)
    write_denoiser(folder / "unjudged", lm, **student("guided_distill"))
    write_judged(folder / "grid", lm, distance=0.1, num_steps=8)
    write_denoiser(folder / "five", lm, **student("progressive_distill", num_steps=5, solver="ddim"))
    write_denoiser(folder / "interval", lm, **student("interval_distill", solver="interval"))
    write_judged(folder / "near", lm, distance=0.2)
    write_judged(folder / "far", lm, distance=0.31)
    write_mels(folder / "few", folder, made_by("x"), rows=24)
    write_mels(folder / "silent", folder, FromRecordings(), has_lm=False)
    write_mels(folder / "silent-synthetic", folder, made_by("x"), has_lm=False)
    write_mels(folder / "held-out", folder, FromRecordings(), has_train=False)
    return folder


def assert_refused(job: TrainJob, error: type[RetortError], *words: str) -> None:
    """The job ends with this error, whose message has the words, before anything is started or written."""
    import ray

    with pytest.raises(error) as raised:
        run_pretrain(job, QuietProgress()) if job.job == "pretrain" else run_distill(job, QuietProgress())
    assert raised.type is error
    missing = [word for word in words if word not in str(raised.value)]
    assert missing == [], str(raised.value)
    assert not ray.is_initialized()
    assert not job.output.exists()


REFUSED: dict[str, tuple[str, dict[str, Any], str, type[RetortError], tuple[str, ...]]] = {
    # Name: teacher, method, data, error, words of its message.
    "recordings": ("teacher", GUIDED, "mels", ConfigError, ("mels holds recordings", "source.kind: synthetic")),
    "no_lm": ("teacher", GUIDED, "silent-synthetic", DataError, ("synthetic lacks its lm folder", "makes: mels")),
    "no_mels": ("teacher", GUIDED, "data", DataError, ("is not a mel set (no mels.json)", "makes: mels")),
    "nothing": ("teacher", GUIDED, "nowhere", DataError, ("nowhere: no such folder", "run the job that writes it")),
    "few": ("teacher", GUIDED, "few", DataError, ("few has 24 rows, of which 24 are kept out", "source.num_rows")),
    "codec_lm": ("lm", GUIDED, "synthetic", ConfigError, ("of the family codec_lm", "mel_diffusion is needed")),
    "no_teacher": ("nobody", GUIDED, "synthetic", DataError, ("nobody: no such folder",)),
    "guided_twice": ("guided", GUIDED, "synthetic", ConfigError, ("needs a teacher of method mel_pretrain",)),
    "unguidable": ("undropped", GUIDED, "synthetic", ConfigError, ("scale 1.5", "unconditioned_fraction above 0")),
    "no_half": ("five", halved(3), "synthetic", ConfigError, ("num_steps is 3", "knows 5 steps", "half of it is 2")),
    "no_half_of_a_grid": ("grid", halved(8), "synthetic", ConfigError, ("num_steps is 8", "half of it is 4")),
    "halved_jumps": ("interval", halved(4), "synthetic", ConfigError, ("no steps to halve", "fewer evaluations")),
    "halved_and_guided": (
        "guided", {**halved(4), "guidance": GUIDANCE}, "synthetic", ConfigError, ("guide twice", "guidance kind: none"),
    ),
    "no_parity": (
        "far", halved(4), "synthetic", QualityGateError,
        ("far: at 80 steps", "0.310", "method.largest_distance 0.25", "0.900 away", "Train it longer"),
    ),
    "unknown_parity": ("unjudged", halved(4), "synthetic", DataError, ("unjudged has no parity.json", "distil it")),
    "jumps_over_a_grid": ("five", INTERVAL, "synthetic", ConfigError, ("solver ddim with 5 steps", "times: uniform")),
    "jumps_over_a_guided_grid": ("grid", INTERVAL, "synthetic", ConfigError, ("solver any with 8 steps",)),
    "jumps_over_jumps": ("interval", INTERVAL, "synthetic", ConfigError, ("solver interval with any number of steps",)),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_before_anything_starts(root: Path, case: str) -> None:
    teacher, method, data, error, words = REFUSED[case]
    assert_refused(distill_mels(root, "out", teacher, method, data=data), error, *words)


def test_a_teacher_on_the_latents_of_another_lm_is_refused_with_both(root: Path) -> None:
    fingerprints = [load_codec_lm(root / name / "result").fingerprint for name in ("lm", "other-lm")]
    assert fingerprints[0] != fingerprints[1]
    for method in (GUIDED, halved(4), INTERVAL):
        job = distill_mels(root, "out", "stranger", method)
        assert_refused(job, DataError, *fingerprints, "the teacher", "give mels that were made with its codec LM")


def test_a_denoiser_is_not_trained_on_what_a_denoiser_made(root: Path) -> None:
    job = pretrain_mels(root, "out", data="synthetic")
    assert_refused(job, ConfigError, "synthetic was made by a denoiser", "source.kind: recordings")
    assert_refused(pretrain_mels(root, "out", data="silent"), DataError, "silent lacks its lm folder", "makes: mels")
    assert_refused(pretrain_mels(root, "out", data="held-out"), DataError, "the train split is empty", "source.splits")
    odd = pretrain_mels(root, "out").model.replace(num_heads=3)
    assert_refused(pretrain_mels(root, "out").replace(model=odd), ConfigError, "the model's size does not work", "3")


@pytest.mark.parametrize(
    ("teacher", "method"),
    [
        ("teacher", GUIDED),
        ("teacher", {**INTERVAL, "guidance": GUIDANCE}),
        ("teacher", halved(4)),
        ("guided", halved(4)),
        ("guided", INTERVAL),
        ("grid", halved(4)),
        ("five", halved(2)),
        ("near", halved(4)),
    ],
)
def test_what_fits_is_let_through_with_the_fingerprints_of_what_it_reads(
    root: Path, teacher: str, method: dict[str, Any]
) -> None:
    assert task_of(distill_mels(root, "out", teacher, method)).check() == {
        "data": read_artifact(root / "synthetic" / "result").fingerprint,
        "teacher": load_mel_diffusion(root / teacher / "result").fingerprint,
    }
    assert task_of(pretrain_mels(root, "out")).check() == {"data": read_artifact(root / "mels" / "result").fingerprint}


def test_a_damaged_mel_set_is_refused(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "synthetic", tmp_path / "synthetic")
    shutil.copytree(root / "teacher", tmp_path / "teacher")
    shard = tmp_path / "synthetic" / "result" / "rows" / "part-00000.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(RetortError, match=r"part-00000\.parquet"):
        run_distill(distill_mels(tmp_path, "out", "teacher", GUIDED), QuietProgress())


def changed(job: TrainJob, where: str, value: Any) -> dict[str, Any]:
    """The job's tree with one key, given by its dotted path, set."""
    tree: dict[str, Any] = job.model_dump(mode="json")
    *folders, name = where.split(".")
    node = tree
    for folder in folders:
        node = node[folder]
    node[name] = value
    return tree


MELS, TOKENS = "mel_diffusion", "codec_lm"
WRONG: list[tuple[str, str, str, Any, str]] = [
    # Job, its family, the key, its value, the whole message.
    ("pretrain", MELS, "family", "mel_difusion", "family: it is one of codec_lm, mel_diffusion, zero_shot, vocoder"),
    ("distill", MELS, "family", "zero", "family: it is one of codec_lm, mel_diffusion"),
    ("pretrain", MELS, "training.batch.prompt_max_frames", 9, "training.batch.prompt_max_frames: unknown key"),
    ("distill", MELS, "training.batch.drop_text", 0.1, "training.batch.drop_text: unknown key"),
    ("distill", MELS, "student", {"kind": "teacher"}, "student: unknown key"),
    ("distill", MELS, "synthetic", "somewhere", "synthetic: unknown key"),
    ("distill", MELS, "method.kind", "cfg_distill", "method.kind: unknown value 'cfg_distill'"),
    ("distill", MELS, "method.num_step", 4, "method.num_step: unknown key 'num_step'; did you mean 'num_steps'?"),
    ("pretrain", TOKENS, "model.patch_frames", 2, "model.patch_frames: unknown key"),
    ("pretrain", TOKENS, "method", {"kind": "mel_pretrain"}, "method: unknown key"),
    ("distill", TOKENS, "method.kind", "guided_distill", "method.kind: unknown value 'guided_distill'"),
    ("distill", TOKENS, "method.largest_distance", 0.2, "method.largest_distance: unknown key"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "family", "key", "value", "message"), WRONG)
def test_a_key_of_another_family_is_pointed_at(
    tmp_path: Path, name: str, family: str, key: str, value: Any, message: str
) -> None:
    of_mels = family == MELS
    jobs = {
        "pretrain": pretrain_mels(tmp_path, "out") if of_mels else pretrain(tmp_path, "out"),
        "distill": distill_mels(tmp_path, "out", "teacher", halved(4)) if of_mels else distill(tmp_path, "out"),
    }
    assert validate(changed(jobs[name], "output", "elsewhere"), RunConfig, where="run.yaml")  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as raised:
        validate(changed(jobs[name], key, value), RunConfig, where="run.yaml")  # type: ignore[arg-type]
    assert message in str(raised.value)


def test_a_tree_without_family_trains_codec_language_models(tmp_path: Path) -> None:
    tree = changed(pretrain(tmp_path, "out"), "output", "out")
    del tree["family"]
    assert isinstance(validate(tree, RunConfig, where="run.yaml"), PretrainConfig)  # type: ignore[arg-type]


def test_a_run_of_denoisers_survives_the_way_to_the_worker(tmp_path: Path) -> None:
    for job in (pretrain_mels(tmp_path, "a"), *(distill_mels(tmp_path, "b", "t", m) for m in (GUIDED, INTERVAL))):
        tree = json.loads(json.dumps(Assignment(job, {"a": 1}, {"data": "x"}, "run").to_tree()))
        assert Assignment.from_tree(tree).config == job
