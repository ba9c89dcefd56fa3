"""A CFG distillation's targets: cached as live, or none, and none that were made for something else."""

from pathlib import Path
from typing import Any

import pytest

from retort.data.stream import BatchStream
from retort.errors import RetortError
from retort.methods.cfg_distill import CachedTeacher, LiveTeacher
from retort.store.artifact import Artifact
from retort.training.seam import NoTeacher
from tests.methods.distillations import checked, lineage_of, problem_of, write_synthetic
from tests.orchestration.train_runs import distill, write_teacher, write_tokens


@pytest.fixture
def data(tmp_path: Path) -> Artifact:
    return write_tokens(tmp_path / "data")


@pytest.mark.parametrize(
    "method", [{}, {"temperature": 2.0}, {"temperature": 0.7, "divergence": {"kind": "skew_kl", "skew": 0.3}}]
)
def test_cached_targets_teach_what_the_live_teacher_teaches(
    tmp_path: Path, data: Artifact, method: dict[str, Any]
) -> None:
    teacher = write_teacher(tmp_path / "teacher")
    by_id = {"batch": {"prompts": "by_id"}}
    live = distill(tmp_path, "live", training=by_id, method=method)
    write_synthetic(tmp_path / "synthetic", live, teacher, data, temperature=method.get("temperature", 1.0))
    cached = distill(
        tmp_path,
        "cached",
        synthetic=tmp_path / "synthetic",
        sampled_fraction=0.2,
        method={"targets": "cached", **method},
    )
    assert set(checked(cached)) == {"data", "teacher", "synthetic"}
    one, two = problem_of(live), problem_of(cached)
    assert isinstance(one.teacher, LiveTeacher)
    assert isinstance(two.teacher, CachedTeacher)
    assert lineage_of(two) == lineage_of(one)
    assert isinstance(two.batches, BatchStream)
    assert two.batches.config.prompts == "by_id", "the prompts that the targets were made with"
    rows = two.batches.rows
    assert sum(row.id.startswith("sampled-") for row in rows) / len(rows) == pytest.approx(0.2, abs=0.02)
    losses = []
    for n in range(4):
        batch = two.batches.batch(n)  # rows of both kinds; the live teacher needs no ids
        losses += [float(p.objective(batch, p.teacher.targets(batch)).loss.detach()) for p in (one, two)]
    assert losses[1::2] == pytest.approx(losses[0::2], rel=2e-3)
    assert max(losses) > 0.2


@pytest.mark.parametrize(
    ("made", "method", "message"),
    [
        ({"teacher_fingerprint": "codec_lm-other"}, {}, r"codec_lm-other.*codec_lm-"),
        ({}, {"guidance": {"kind": "two_term", "scale": 2.0}}, "guidance"),
        ({}, {"temperature": 2.0}, "temperature"),
        ({"data_fingerprint": "others"}, {}, "others"),
    ],
)
def test_a_synthetic_set_of_something_else_is_refused(
    tmp_path: Path, data: Artifact, made: dict[str, object], method: dict[str, object], message: str
) -> None:
    teacher = write_teacher(tmp_path / "teacher")
    write_synthetic(tmp_path / "synthetic", distill(tmp_path, "live"), teacher, data, **made)
    job = distill(tmp_path, "out", synthetic=tmp_path / "synthetic", method={"targets": "cached", **method})
    with pytest.raises(RetortError, match=message):
        checked(job)


def test_cross_entropy_alone_runs_no_teacher(tmp_path: Path, data: Artifact) -> None:
    write_teacher(tmp_path / "teacher")
    problem = problem_of(distill(tmp_path, "out", method={"kl_weight": 0.0, "ce_weight": 1.0}))
    assert isinstance(problem.teacher, NoTeacher)
    batch = problem.batches.batch(0)
    out = problem.objective(batch, problem.teacher.targets(batch))
    assert set(out.metrics) == {"ce"}
    assert float(out.loss.detach()) == float(out.metrics["ce"])
