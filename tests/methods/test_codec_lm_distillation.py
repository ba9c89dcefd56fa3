"""What a distillation of codec LMs is made of, and what is refused before anything starts."""

from pathlib import Path

import pytest
import torch

from retort.errors import ConfigError, DataError, RetortError
from retort.methods.cfg_distill import LiveTeacher
from retort.methods.codec_lm_distillation import in_precision, mixed_rows
from retort.methods.multilevel_distill import MultilevelObjective, TracedTeacher
from retort.models.codec_lm import CodecLM
from retort.models.presets import tiny
from retort.models.weights import fingerprint_of
from retort.nn.conditions import TEXT_NULL, Conditions
from retort.nn.dropout import Dropout
from retort.nn.guidance import TwoTermGuidance
from retort.orchestration.train.task import task_of
from retort.store.artifact import Artifact
from retort.training.seam import NoTeacher, Place
from tests.methods.distillations import MULTILEVEL, checked, lineage_of, problem_of, write_choice
from tests.orchestration.train_runs import VOCABULARIES, distill, token_rows, write_teacher, write_tokens


@pytest.fixture
def data(tmp_path: Path) -> Artifact:
    return write_tokens(tmp_path / "data")


@pytest.mark.parametrize(
    ("lineage", "changes", "message"),
    [
        ({"trained_drops": ("no_text",)}, {}, "guidance against null needs a model trained with those drops"),
        ({"distilled_at": {"kind": "two_term", "scale": 2.0}}, {}, "guiding it again would guide twice"),
        ({}, {"student": {"kind": "preset", "name": "demo"}}, "dim: the student has 256, more than its teacher's 32"),
        ({}, {"student": {"kind": "shape", "dim": 30, "num_layers": 1, "num_heads": 4, "ffn_dim": 8}}, "dim 30"),
        ({}, {"method": {"kl_weight": 0.0, "ce_weight": 1.0, "guidance_scales": [1.0, 2.0]}}, "kl_weight above 0"),
    ],
)
def test_what_cannot_work_is_refused(
    tmp_path: Path, data: Artifact, lineage: dict[str, object], changes: dict[str, object], message: str
) -> None:
    if "distilled_at" in lineage:
        lineage = {"distilled_at": TwoTermGuidance(scale=2.0)}
    write_teacher(tmp_path / "teacher", **lineage)
    with pytest.raises(ConfigError, match=message):
        checked(distill(tmp_path, "out", **changes))


def test_a_pruned_student_starts_from_the_layers_that_were_chosen(tmp_path: Path, data: Artifact) -> None:
    teacher = write_teacher(tmp_path / "teacher")
    write_choice(tmp_path / "prune", fingerprint_of(teacher))
    student = {"kind": "pruned", "layers": tmp_path / "prune"}
    job = distill(tmp_path, "out", init="teacher", student=student, method=MULTILEVEL)
    assert set(checked(job)) == {"data", "teacher", "layers"}
    problem = problem_of(job)
    assert isinstance(problem.teacher, TracedTeacher)
    assert isinstance(problem.objective, MultilevelObjective)
    assert problem.objective.matched == [1]
    ours, theirs = problem.objective.student.blocks[0], teacher.blocks[1]
    assert torch.equal(ours.attention.qkv.weight, theirs.attention.qkv.weight)
    assert (lineage_of(problem).method, lineage_of(problem).kept_layers) == ("multilevel_distill", (1,))
    assert lineage_of(problem).selected_by == "listener"
    assert lineage_of(problem).distilled_at == job.method.guidance
    batch = problem.batches.batch(0)
    out = problem.objective(batch, problem.teacher.targets(batch))
    assert set(out.metrics) == {"ce", "logit", "latent", "attention", "embedding"}
    other = job.replace(student={**student, "layers": str(tmp_path / "prune"), "criterion": "random"})
    assert lineage_of(problem_of(other)).kept_layers == (0,)
    assert lineage_of(problem_of(other)).selected_by is None
    whole = job.replace(student={"kind": "pruned", "layers": [0, 1]})
    assert lineage_of(problem_of(whole)).kept_layers == (0, 1)


def test_a_pruned_student_may_be_narrower_and_taught_by_guided_logits_alone(tmp_path: Path, data: Artifact) -> None:
    write_teacher(tmp_path / "teacher")
    student = {"kind": "pruned", "layers": [1], "dim": 16, "num_heads": 1, "ffn_dim": 40}
    job = distill(tmp_path, "out", init="activations", student=student)
    problem = problem_of(job)
    model = problem.objective.student
    assert isinstance(model, CodecLM)
    assert (model.config.dim, model.config.num_heads, model.config.num_layers, model.config.ffn_dim) == (16, 1, 1, 40)
    assert lineage_of(problem).method == "cfg_distill"
    assert lineage_of(problem).kept_layers == (1,)
    with pytest.raises(ConfigError, match=r"set method.latent_weight and method.embedding_weight to 0"):
        checked(distill(tmp_path, "out", student=student, method=MULTILEVEL))
    logits_alone = {**MULTILEVEL, "latent_weight": 0.0, "embedding_weight": 0.0, "attention_weight": 0.0}
    checked(distill(tmp_path, "out", student=student, method=logits_alone))


SIZES = {
    "teacher": {"kind": "teacher"},
    "pruned": {"kind": "pruned", "layers": [0, 1]},
    "shape": {"kind": "shape", "dim": 32, "num_layers": 2, "num_heads": 2, "ffn_dim": 64},
    "preset": {"kind": "preset", "name": "tiny"},
}


@pytest.mark.parametrize("method", [{"kind": "cfg_distill"}, MULTILEVEL, {"kl_weight": 0.0, "ce_weight": 1.0}], ids=str)
@pytest.mark.parametrize("kind", SIZES)
def test_a_student_of_a_teacher_with_dropout_has_none(
    tmp_path: Path, data: Artifact, kind: str, method: dict[str, object]
) -> None:
    write_teacher(tmp_path / "teacher", dropout=0.4)
    problem = problem_of(distill(tmp_path, "out", init="teacher", student=SIZES[kind], method=method))
    student = problem.objective.student
    assert isinstance(student, CodecLM)
    assert student.training
    assert [module.rate for module in problem.objective.modules() if isinstance(module, Dropout)] == [0.0] * 3
    batch = problem.batches.batch(0)
    one, two = (student(batch.conditions, batch.inputs_BKS) for _ in range(2))
    assert torch.equal(one, two)


@pytest.mark.parametrize("kind", ["teacher", "pruned", "shape"])
def test_a_student_has_the_dropout_that_it_is_given(tmp_path: Path, data: Artifact, kind: str) -> None:
    write_teacher(tmp_path / "teacher", dropout=0.4)
    student = problem_of(distill(tmp_path, "out", student={**SIZES[kind], "dropout": 0.25})).objective.student
    assert isinstance(student, CodecLM)
    assert student.config.dropout == 0.25


@pytest.mark.parametrize("method", [{"kind": "cfg_distill"}, MULTILEVEL], ids=str)
def test_a_live_teacher_says_the_same_twice_whatever_it_was_trained_with(
    tmp_path: Path, data: Artifact, method: dict[str, object]
) -> None:
    write_teacher(tmp_path / "teacher", dropout=0.4)
    problem = problem_of(distill(tmp_path, "out", method=method))
    problem.objective.train()
    teacher = problem.teacher
    assert isinstance(teacher, LiveTeacher | TracedTeacher)
    assert not any(module.training for module in teacher.model.modules())
    batch = problem.batches.batch(0)
    losses = [float(problem.objective(batch, teacher.targets(batch)).loss.detach()) for _ in range(2)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("student", "error", "message"),
    [
        ({"layers": [1, 0]}, ConfigError, "must be ascending layers of the teacher's 2"),
        ({"layers": [0, 2]}, ConfigError, "must be ascending layers of the teacher's 2"),
        ({"layers": "teacher"}, DataError, "not the output of `retort prune`"),
        ({"layers": "prune"}, DataError, "codec_lm-other"),
        ({"layers": [0], "dim": 64}, ConfigError, "dim: the student has 64, more than"),
        ({"layers": [0], "num_heads": 5}, ConfigError, "size does not work"),
    ],
)
def test_a_pruned_student_that_does_not_fit_is_refused(
    tmp_path: Path, data: Artifact, student: dict[str, object], error: type[RetortError], message: str
) -> None:
    write_teacher(tmp_path / "teacher")
    write_choice(tmp_path / "prune", "codec_lm-other")
    layers = student["layers"]
    given = {"kind": "pruned", **student, "layers": tmp_path / layers if isinstance(layers, str) else layers}
    with pytest.raises(error, match=message):
        checked(distill(tmp_path, "out", init="teacher", student=given, method=MULTILEVEL))


def test_a_list_of_layers_and_a_choice_among_them_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`layers` is a list"):
        distill(tmp_path, "out", student={"kind": "pruned", "layers": [0], "criterion": "wer"})


def test_a_student_that_learns_from_tokens_alone_is_fine_tuned(tmp_path: Path, data: Artifact) -> None:
    write_teacher(tmp_path / "teacher")
    job = distill(tmp_path, "out", method={**MULTILEVEL, "ce_weight": 1.0})
    problem = problem_of(job)
    assert isinstance(problem.teacher, NoTeacher)
    assert lineage_of(problem).method == "fine_tune"
    assert lineage_of(problem).distilled_at is None
    assert lineage_of(problem).trained_drops == ()


def test_a_teacher_that_goes_on_with_drops_can_still_be_guided(tmp_path: Path, data: Artifact) -> None:
    write_teacher(tmp_path / "teacher")
    drops = {"drop_text": 0.2, "drop_both": 0.3}
    alone = {"guidance": {"kind": "none"}, "kl_weight": 0.0, "ce_weight": 1.0}
    problem = problem_of(distill(tmp_path, "out", method=alone, training={"batch": drops}))
    lineage = lineage_of(problem)
    assert lineage.trained_drops == ("no_text", "null")
    lineage.check_guidance(TwoTermGuidance(scale=2.0, against="null").build())
    with pytest.raises(ConfigError, match="guidance against no_speaker needs a model trained with those drops"):
        lineage.check_guidance(TwoTermGuidance(scale=2.0, against="no_speaker").build())
    assert any((problem.batches.batch(n).conditions.text_BL == TEXT_NULL).any() for n in range(8))
    for method in ({}, MULTILEVEL):
        with pytest.raises(ConfigError, match="only with cross-entropy alone"):
            distill(tmp_path, "out", method=method, training={"batch": drops})


def test_ranks_have_the_same_student_and_other_random_numbers(tmp_path: Path, data: Artifact) -> None:
    write_teacher(tmp_path / "teacher")
    job = distill(tmp_path, "out", method={"guidance_scales": [1.0, 1.5, 2.0, 3.0]})
    first, second = (task_of(job).build(Place(r, 2)) for r in range(2))
    for a, b in zip(first.objective.parameters(), second.objective.parameters(), strict=True):
        assert torch.equal(a, b)
    batch = first.batches.batch(0)
    scales = [[p.teacher.targets(batch).scale_B.tolist() for _ in range(4)] for p in (first, second)]
    assert scales[0] != scales[1]


def test_the_last_layer_of_a_bf16_teacher_stays_exact() -> None:
    torch.manual_seed(0)
    exact = CodecLM(tiny(VOCABULARIES)).eval()
    mixed, rounded = CodecLM(exact.config).eval(), CodecLM(exact.config).eval()
    for model in (mixed, rounded):
        model.load_state_dict(exact.state_dict())
    in_precision(mixed, torch.bfloat16)
    rounded.bfloat16()
    given = Conditions(torch.tensor([[3, 4]]), torch.zeros(1, 2, 1, dtype=torch.int64), torch.zeros(1, 1).bool())
    inputs = torch.randint(0, 16, (1, 2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found, coarse = (model(given, inputs) for model in (exact, mixed, rounded))
    assert found.dtype == torch.float32
    assert (found - expected).abs().mean() < (coarse.float() - expected).abs().mean()


def test_shares_of_sampled_rows() -> None:
    real, sampled = token_rows(40), [row.__class__(**{**vars(row), "id": "s" + row.id}) for row in token_rows(20)]
    for fraction, expected in ((0.0, (40, 0)), (1.0, (0, 20)), (0.5, (20, 20)), (0.2, (40, 10)), (0.8, (5, 20))):
        rows = mixed_rows(real, sampled, fraction, seed=1)
        count = sum(row.id.startswith("s") for row in rows)
        assert (len(rows) - count, count) == expected
        assert len({row.id for row in rows}) == len(rows)
    assert [r.id for r in mixed_rows(real, sampled, 0.5, seed=1)] == [
        r.id for r in mixed_rows(real, sampled, 0.5, seed=1)
    ]
    assert [r.id for r in mixed_rows(real, sampled, 0.5, seed=1)] != [
        r.id for r in mixed_rows(real, sampled, 0.5, seed=2)
    ]
