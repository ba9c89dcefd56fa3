"""What a run is made of, and what is refused before anything starts."""

import json
from pathlib import Path

import pytest
import torch

from retort.config import validate
from retort.data.batches import CodebookLayout
from retort.data.logit_cache import CacheEncoding, encode_top_k
from retort.data.prompts import PromptsById
from retort.data.stream import BatchStream
from retort.data.synthetic import (
    SAMPLED,
    SYNTHETIC_FILE,
    TARGETS,
    SyntheticDescription,
    forced_record,
    forced_schema,
    sampled_record,
    sampled_schema,
)
from retort.data.tokens import TokenRow, TokenSet
from retort.errors import ConfigError, DataError, RetortError, StorageError
from retort.losses.divergence import top_k_of
from retort.methods.cfg_distill import CachedTeacher, LiveTeacher, guided_logits
from retort.methods.layer_pruning import LayerChoice
from retort.methods.multilevel_distill import MultilevelObjective, TracedTeacher
from retort.models.codec_lm import CodecLM
from retort.models.presets import tiny
from retort.models.weights import fingerprint_of
from retort.nn.conditions import Conditions
from retort.orchestration.progress import QuietProgress
from retort.orchestration.train.job import refuse_other_run, run_distill, run_pretrain
from retort.orchestration.train.setup import (
    AbsentTeacher,
    Problem,
    build_problem,
    check_inputs,
    in_precision,
    mixed_rows,
)
from retort.orchestration.train.student_setup import LAYERS_FILE
from retort.run_config import DistillConfig
from retort.store.artifact import Artifact, describe_artifact, write_artifact
from tests.orchestration.train_runs import VOCABULARIES, distill, pretrain, token_rows, write_teacher, write_tokens

CPU = torch.device("cpu")


def problem_of(job: DistillConfig) -> Problem:
    return build_problem(job, rank=0, world_size=1, device=CPU, dtype=torch.float32)


def write_synthetic(folder: Path, job: DistillConfig, teacher: CodecLM, data: Artifact, **changes: object) -> None:
    """What `retort generate` leaves: the guided top-16 of 16 codes (and of the end of speech) for each row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tokens = TokenSet.open(data.path)
    real = list(tokens.split("train"))
    sampled = [row.__class__(**{**vars(row), "id": f"sampled-{row.id}"}) for row in real[:9]]
    tree = {
        "teacher_fingerprint": fingerprint_of(teacher),
        "data_fingerprint": data.fingerprint,
        "tokens": tokens.description,
        "delays": (0, 1),
        "guidance": job.method.guidance,
        "coefficients": dict(job.method.guidance.build().coefficients),
        "temperature": 1.0,
        "top_k": 16,
        "encoding": CacheEncoding(prob_bits=16, tail_bits=16, max_loss_nats=0.0),
        "sampler": {},
        "prompt_max_frames": job.training.batch.prompt_max_frames,
        "precision": "fp32",
        "seed": 0,
        "code_version": "0",
        **changes,
    }
    made = SyntheticDescription(**tree)
    layout = CodebookLayout(16, (0, 1))
    config = job.training.batch.replace(prompts="by_id")
    stream = BatchStream([*real, *sampled], layout, config, seed=0, prompt_rows=real)
    prompts = PromptsById([row.id for row in real], [row.speaker for row in real])

    def record(index: int, row: TokenRow) -> dict[str, object]:
        batch = stream.build([index], torch.Generator())
        top = top_k_of(guided_logits(teacher.eval(), batch, job.method.guidance), 16)
        one = top.__class__(top.ids[0], top.log_probs[0], top.log_tail[0])
        encoded = encode_top_k(one, codebook_size=16, encoding=made.encoding)
        prompt = prompts.choose(row.id, row.speaker)
        if index < len(real):
            return forced_record(row.id, prompt, encoded, made)
        return sampled_record(row, prompt, encoded, 1, made)

    def fill(temporary: Path) -> None:
        (temporary / SYNTHETIC_FILE).write_text(made.model_dump_json())
        records = [record(i, row) for i, row in enumerate([*real, *sampled])]
        for name, part, schema in (
            (TARGETS, records[: len(real)], forced_schema()),
            (SAMPLED, records[len(real) :], sampled_schema()),
        ):
            (temporary / name).mkdir()
            pq.write_table(pa.Table.from_pylist(part, schema=schema), temporary / name / "part.parquet")

    with torch.no_grad():
        info = describe_artifact("synthetic", "s", "1", inputs={}, config={})
        write_artifact(folder / "result", info, fill, replace=True)


@pytest.fixture
def data(tmp_path: Path) -> Artifact:
    return write_tokens(tmp_path / "data")


def test_mismatched_parts_are_refused_before_anything_starts(tmp_path: Path, data: Artifact) -> None:
    import ray

    write_teacher(tmp_path / "teacher", codec_fingerprint="codec-b")
    with pytest.raises(DataError, match=r"codec-b.*codec-a.*prepare the data with the teacher's codec"):
        run_distill(distill(tmp_path, "out"), QuietProgress())
    write_teacher(tmp_path / "second", text_fingerprint="text-b")
    with pytest.raises(DataError, match=r"text-b.*text-a"):
        run_distill(distill(tmp_path, "out", teacher=tmp_path / "second"), QuietProgress())
    assert not ray.is_initialized()
    assert not (tmp_path / "out").exists()


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
    from retort.nn.guidance import TwoTermGuidance

    if "distilled_at" in lineage:
        lineage = {"distilled_at": TwoTermGuidance(scale=2.0)}
    write_teacher(tmp_path / "teacher", **lineage)
    with pytest.raises(ConfigError, match=message):
        check_inputs(distill(tmp_path, "out", **changes))


def test_inputs_are_verified(tmp_path: Path, data: Artifact) -> None:
    write_teacher(tmp_path / "teacher")
    job = distill(tmp_path, "out")
    found = check_inputs(job)
    assert set(found) == {"data", "teacher"}
    assert found["data"] == data.fingerprint
    with (data.path / "part.parquet").open("ab") as file:
        file.write(b"x")
    with pytest.raises(StorageError, match="damaged"):
        check_inputs(job)
    with pytest.raises(DataError, match="no such folder"):
        run_pretrain(pretrain(tmp_path / "elsewhere", "out"), QuietProgress())


def test_a_token_set_without_its_codec_is_refused(tmp_path: Path, data: Artifact) -> None:
    """A model is saved with the codec and the text front-end of its data; their absence must not show at the end."""
    import shutil

    from retort.store.commit import commit_folder

    with commit_folder(tmp_path / "bare" / "data" / "result") as folder:
        shutil.copytree(
            data.path, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("codec", "COMMITTED", "MAN*")
        )
    with pytest.raises(DataError, match="lacks its codec folder"):
        check_inputs(pretrain(tmp_path / "bare", "out"))


def test_checkpoints_of_another_configuration_are_refused(tmp_path: Path, data: Artifact) -> None:
    job = pretrain(tmp_path, "out")
    (tmp_path / "out" / "checkpoints" / "step-00000004").mkdir(parents=True)
    (tmp_path / "out" / "run.yaml").write_text(json.dumps(job.model_dump(mode="json")))
    other = pretrain(tmp_path, "out", steps=7)
    refuse_other_run(other)  # nothing is committed yet
    write_artifact(
        tmp_path / "out" / "checkpoints" / "step-00000003",
        describe_artifact("x", "x", "1", inputs={}, config={}),
        lambda folder: None,
    )
    with pytest.raises(ConfigError, match=r"up to step 3.*training.steps: 6 → 7"):
        refuse_other_run(other)
    refuse_other_run(pretrain(tmp_path, "out", workers={"num_workers": 2}, log_every=5))


def test_cached_targets_teach_what_the_live_teacher_teaches(tmp_path: Path, data: Artifact) -> None:
    teacher = write_teacher(tmp_path / "teacher")
    by_id = {"batch": {"prompts": "by_id"}}
    live = distill(tmp_path, "live", training=by_id)
    write_synthetic(tmp_path / "synthetic", live, teacher, data)
    cached = distill(
        tmp_path,
        "cached",
        synthetic=tmp_path / "synthetic",
        sampled_fraction=0.2,
        method={"targets": "cached"},
    )
    assert set(check_inputs(cached)) == {"data", "teacher", "synthetic"}
    one, two = problem_of(live), problem_of(cached)
    assert isinstance(one.teacher, LiveTeacher)
    assert isinstance(two.teacher, CachedTeacher)
    assert two.lineage == one.lineage
    rows = two.stream.rows
    assert sum(row.id.startswith("sampled-") for row in rows) / len(rows) == pytest.approx(0.2, abs=0.02)
    losses = []
    for n in range(4):
        batch = two.stream.batch(n)  # rows of both kinds; the live teacher needs no ids
        losses += [float(p.objective(batch, p.teacher.targets(batch)).loss.detach()) for p in (one, two)]
    assert losses[1::2] == pytest.approx(losses[0::2], rel=2e-3)
    assert max(losses) > 0.5


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
        check_inputs(job)


def test_cross_entropy_alone_runs_no_teacher(tmp_path: Path, data: Artifact) -> None:
    write_teacher(tmp_path / "teacher")
    problem = problem_of(distill(tmp_path, "out", method={"kl_weight": 0.0, "ce_weight": 1.0}))
    assert isinstance(problem.teacher, AbsentTeacher)
    batch = problem.stream.batch(0)
    out = problem.objective(batch, problem.teacher.targets(batch))
    assert set(out.metrics) == {"ce"}
    assert float(out.loss.detach()) == float(out.metrics["ce"])


MULTILEVEL = {"kind": "multilevel_distill"}


def write_choice(folder: Path, teacher: str) -> None:
    """What `retort prune` leaves for a student."""
    choice = LayerChoice(
        teacher_fingerprint=teacher, num_layers=2, criterion="wer", num_kept=1,
        kept={"wer": {1: (1,), 2: (0, 1)}, "random": {1: (0,)}}, recogniser="listener",
    )  # fmt: skip
    info = describe_artifact("model", "prune", "1", inputs={}, config={})
    write_artifact(
        folder / "result", info, lambda target: (target / LAYERS_FILE).write_text(choice.model_dump_json()) and None
    )


def test_a_pruned_student_starts_from_the_layers_that_were_chosen(tmp_path: Path, data: Artifact) -> None:
    teacher = write_teacher(tmp_path / "teacher")
    write_choice(tmp_path / "prune", fingerprint_of(teacher))
    student = {"kind": "pruned", "layers": tmp_path / "prune"}
    job = distill(tmp_path, "out", init="teacher", student=student, method=MULTILEVEL)
    assert set(check_inputs(job)) == {"data", "teacher", "layers"}
    problem = problem_of(job)
    assert isinstance(problem.teacher, TracedTeacher)
    assert isinstance(problem.objective, MultilevelObjective)
    assert problem.objective.matched == [1]
    ours, theirs = problem.objective.student.blocks[0], teacher.blocks[1]
    assert torch.equal(ours.attention.qkv.weight, theirs.attention.qkv.weight)
    assert (problem.lineage.method, problem.lineage.kept_layers) == ("multilevel_distill", (1,))
    assert problem.lineage.selected_by == "listener"
    assert problem.lineage.distilled_at == job.method.guidance
    batch = problem.stream.batch(0)
    out = problem.objective(batch, problem.teacher.targets(batch))
    assert set(out.metrics) == {"ce", "skew_kl", "latent", "attention", "embedding"}
    other = job.replace(student={**student, "layers": str(tmp_path / "prune"), "criterion": "random"})
    assert problem_of(other).lineage.kept_layers == (0,)
    assert problem_of(other).lineage.selected_by is None
    whole = job.replace(student={"kind": "pruned", "layers": [0, 1]})
    assert problem_of(whole).lineage.kept_layers == (0, 1)


def test_a_pruned_student_may_be_narrower_and_taught_by_guided_logits_alone(tmp_path: Path, data: Artifact) -> None:
    write_teacher(tmp_path / "teacher")
    student = {"kind": "pruned", "layers": [1], "dim": 16, "num_heads": 1, "ffn_dim": 40}
    job = distill(tmp_path, "out", init="activations", student=student)
    problem = problem_of(job)
    model = problem.objective.student
    assert isinstance(model, CodecLM)
    assert (model.config.dim, model.config.num_heads, model.config.num_layers, model.config.ffn_dim) == (16, 1, 1, 40)
    assert problem.lineage.method == "cfg_distill"
    assert problem.lineage.kept_layers == (1,)
    with pytest.raises(ConfigError, match=r"set method.latent_weight and method.embedding_weight to 0"):
        check_inputs(distill(tmp_path, "out", student=student, method=MULTILEVEL))
    logits_alone = {**MULTILEVEL, "latent_weight": 0.0, "embedding_weight": 0.0, "attention_weight": 0.0}
    check_inputs(distill(tmp_path, "out", student=student, method=logits_alone))


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
        check_inputs(distill(tmp_path, "out", init="teacher", student=given, method=MULTILEVEL))


def test_a_list_of_layers_and_a_choice_among_them_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`layers` is a list"):
        distill(tmp_path, "out", student={"kind": "pruned", "layers": [0], "criterion": "wer"})


def test_a_student_that_learns_from_tokens_alone_is_fine_tuned(tmp_path: Path, data: Artifact) -> None:
    write_teacher(tmp_path / "teacher")
    job = distill(tmp_path, "out", method={**MULTILEVEL, "ce_weight": 1.0})
    problem = problem_of(job)
    assert isinstance(problem.teacher, AbsentTeacher)
    assert problem.lineage.method == "fine_tune"
    assert problem.lineage.distilled_at is None


def test_ranks_have_the_same_student_and_other_random_numbers(tmp_path: Path, data: Artifact) -> None:
    write_teacher(tmp_path / "teacher")
    job = distill(tmp_path, "out", method={"guidance_scales": [1.0, 1.5, 2.0, 3.0]})
    first, second = (build_problem(job, rank=r, world_size=2, device=CPU, dtype=torch.float32) for r in range(2))
    for a, b in zip(first.objective.parameters(), second.objective.parameters(), strict=True):
        assert torch.equal(a, b)
    batch = first.stream.batch(0)
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


def test_a_run_survives_the_way_to_the_worker(tmp_path: Path) -> None:
    from retort.orchestration.train.worker import Assignment

    for job in (pretrain(tmp_path, "a"), distill(tmp_path, "b", method={"guidance_scales": [1.0, 2.0]})):
        tree = json.loads(json.dumps(Assignment(job, {"a": 1}, {"data": "x"}, "run").to_tree()))
        back = Assignment.from_tree(tree)
        assert back.config == validate(job.model_dump(mode="json"), type(job), where="job") == job
        assert (back.recorded_config, back.inputs, back.run) == ({"a": 1}, {"data": "x"}, "run")
