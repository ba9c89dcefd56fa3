import json
import shutil
from collections import Counter

import pyarrow.parquet as pq
import pytest
import ray
import torch
import yaml

from retort.config import validate
from retort.data.batches import CodebookLayout, conditions_for, lay_out
from retort.data.logit_cache import decode_top_k
from retort.data.prompts import PromptsById, crop_prompt
from retort.data.stream import BatchConfig, BatchStream
from retort.data.synthetic import SAMPLED, TARGETS, SyntheticDescription, SyntheticSet
from retort.data.tokens import TokenSet, record_to_row
from retort.errors import ConfigError, DataError
from retort.inference.decode import Decoded
from retort.losses.divergence import ForwardKL, legal_log_softmax, token_divergence
from retort.methods.cfg_distill import CachedTeacher
from retort.models.weights import load_codec_lm
from retort.nn.guided_rows import guided_logits
from retort.orchestration.cluster import ray_session
from retort.orchestration.generate import job
from retort.orchestration.generate.job import run_generate
from retort.orchestration.generate.plan import plan_generation
from retort.orchestration.generate.worker import GenerateWorker
from retort.orchestration.outputs import with_results
from retort.run_config import GenerateConfig
from retort.store.artifact import read_artifact
from retort.store.results import result_of
from tests.orchestration.tiny_runs import (
    Lines,
    killing_an_actor_after,
    run_and_kill_the_driver,
    write_teacher,
    write_token_set,
)

GUIDANCE = {"kind": "two_term", "scale": 1.5}
# A teacher with random weights says nonsense of any length.
ANYTHING = {"stability": {"max_s_per_word": 100.0, "min_s_per_word": 0.0, "max_repeat_ratio": 1.0}}

LOOP = Decoded(torch.tensor([[1, 2] * 10, [3, 4] * 10]), has_eos=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A token set and a teacher: the folder that holds both."""
    folder = tmp_path_factory.mktemp("made")
    write_teacher(folder / "teacher", write_token_set(folder / "data"))
    return folder


def _tree(made, output, **changes):
    return {
        "job": "generate", "output": str(output), "teacher": str(made / "teacher"), "data": str(made / "data"),
        "guidance": GUIDANCE, "top_k": 12, "num_sampled": 12, "max_frames": 40, "batch_size": 2, "filters": ANYTHING,
        **changes,
    }  # fmt: skip


def _config(made, output, **changes):
    return validate(_tree(made, output, **changes), GenerateConfig, where="test")


def _worker(made, tmp_path, **changes):
    """A worker as an actor makes it, in this process."""
    tree = _tree(made, tmp_path / "out", **changes)
    tree |= {"teacher": changes.get("teacher", str(result_of(made / "teacher"))), "data": str(result_of(made / "data"))}
    config = validate(tree, GenerateConfig, where="test")
    tokens = TokenSet.open(config.data)
    plan_generation(config, tokens).write(tmp_path / "plan.json")
    model = load_codec_lm(config.teacher)
    description = SyntheticDescription(
        teacher_fingerprint=model.fingerprint, data_fingerprint="d", tokens=tokens.description,
        delays=model.model.config.codebook_delays, guidance=config.guidance,
        coefficients=dict(config.guidance.build().coefficients), temperature=config.temperature, top_k=config.top_k,
        encoding={"prob_bits": 16, "tail_bits": 16, "max_loss_nats": 0.0}, sampler=config.sampler.model_dump(),
        prompt_max_frames=120, precision="fp32", seed=config.seed, code_version="x",
    )  # fmt: skip
    return GenerateWorker(config.model_dump(mode="json"), tmp_path / "plan.json", description.model_dump_json())


def _work(worker, table):
    """Records of one table over all chunks, by id, and the rejects."""
    results = [worker.work(number) for number in range(worker.plan.num_chunks)]
    records = [record for result in results if table in result.tables for record in result.tables[table].to_pylist()]
    assert len({record["id"] for record in records}) == len(records)
    return {record["id"]: record for record in records}, [r for result in results for r in result.rejects]


def _guided_alone(made, rows, prompts, scale=1.5):
    """Guided log-probabilities of each row alone, two separate forward passes, straight from the definition."""
    model = load_codec_lm(result_of(made / "teacher")).model
    layout = CodebookLayout(model.config.codebook_size, model.config.codebook_delays)
    found = []
    for row, prompt in zip(rows, prompts, strict=True):
        inputs, _, _ = lay_out([row.codes_KT], layout)
        given = conditions_for([row.text_ids], [prompt], layout.num_codebooks)
        with torch.no_grad():
            cond, null = model(given, inputs), model(given.dropped(text=True, speaker=True), inputs)
        found.append(null + scale * (cond - null))
    return found


def _prompt_crops(made, records):
    train = TokenSet.open(result_of(made / "data")).split("train")
    by_id = {row.id: row for row in train}
    return [crop_prompt(by_id[r["prompt_id"]].codes_KT, r["prompt_position"], 120) for r in records]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_forced_targets_are_the_guided_distributions_of_each_row_alone(made, tmp_path, temperature):
    records, rejects = _work(_worker(made, tmp_path, num_sampled=0, temperature=temperature), TARGETS)
    train = {row.id: row for row in TokenSet.open(result_of(made / "data")).split("train")}
    assert set(records) == set(train)
    assert rejects == []
    rows = list(train.values())
    for row, logits in zip(
        rows, _guided_alone(made, rows, _prompt_crops(made, [records[row.id] for row in rows])), strict=True
    ):
        top, log_p = decode_top_k(records[row.id]["top_k"]), legal_log_softmax(logits, temperature=temperature)[0]
        assert top.ids.shape == (row.num_frames + 1, 2, 12)
        mask = lay_out([row.codes_KT], CodebookLayout(16, (0, 1)))[2][0].T
        assert torch.allclose(top.log_probs.exp()[mask], log_p.gather(-1, top.ids).exp()[mask], atol=2e-4)


def test_the_stream_by_id_gives_the_student_the_prompt_that_the_target_was_made_with(made, tmp_path):
    records, _ = _work(_worker(made, tmp_path, num_sampled=0), TARGETS)
    train = list(TokenSet.open(result_of(made / "data")).split("train"))
    model = load_codec_lm(result_of(made / "teacher")).model
    layout = CodebookLayout(model.config.codebook_size, model.config.codebook_delays)
    stream = BatchStream(train, layout, BatchConfig(max_utterances=5, max_frames=1000, prompts="by_id"), seed=3)
    lookup = {index: decode_top_k(records[row.id]["top_k"]) for index, row in enumerate(train)}
    cached = CachedTeacher(lookup, layout.num_codebooks)
    for batch in stream.iterate(0, 5):
        with torch.no_grad():
            logits = guided_logits(model, batch.conditions, batch.inputs_BKS, _config(made, tmp_path).guidance.build())
        kl_BSK = token_divergence(ForwardKL(), logits, cached.targets(batch).top_k)
        # The teacher's own guided logits lose nothing against what was cached of them.
        assert float(kl_BSK[batch.mask_BKS.transpose(1, 2)].max()) < 1e-3


def test_sampled_targets_are_those_of_teacher_forcing_the_sampled_tokens(made, tmp_path):
    worker = _worker(made, tmp_path, teacher_forced=False)
    records, rejects = _work(worker, SAMPLED)
    assert len(records) + len(rejects) == 12
    assert len(records) >= 6
    rows = [record_to_row(record) for record in records.values()]
    crops = _prompt_crops(made, records.values())
    for row, record, logits in zip(rows, records.values(), _guided_alone(made, rows, crops), strict=True):
        top = decode_top_k(record["top_k"])
        mask = lay_out([row.codes_KT], CodebookLayout(16, (0, 1)))[2][0].T
        expected = legal_log_softmax(logits)[0].gather(-1, top.ids).exp()
        assert torch.allclose(top.log_probs.exp()[mask], expected[mask], atol=5e-4)
        assert record["split"] == "train"
        assert record["kind"] == "sampled"


def test_on_policy_sequences_are_the_students_and_their_targets_the_guided_teachers(made, tmp_path):
    student = write_teacher(tmp_path / "student", result_of(made / "data"), seed=1)
    changes = {"teacher_forced": False, "sampled_by": str(student)}
    records, rejects = _work(_worker(made, tmp_path, **changes), SAMPLED)
    assert len(records) + len(rejects) == 12
    # What the student says by itself, asked for by the same ids without guidance.
    alone = {"teacher_forced": False, "guidance": {"kind": "none"}, "teacher": str(student)}
    own, _ = _work(_worker(made, tmp_path, **alone), SAMPLED)
    assert {name: record["codes"] for name, record in records.items()} == {n: r["codes"] for n, r in own.items()}
    rows = [record_to_row(record) for record in records.values()]
    for row, record, logits in zip(
        rows, records.values(), _guided_alone(made, rows, _prompt_crops(made, records.values())), strict=True
    ):
        top = decode_top_k(record["top_k"])
        mask = lay_out([row.codes_KT], CodebookLayout(16, (0, 1)))[2][0].T
        expected = legal_log_softmax(logits)[0].gather(-1, top.ids).exp()
        assert torch.allclose(top.log_probs.exp()[mask], expected[mask], atol=5e-4)


def test_the_fingerprint_of_who_is_sampled_is_part_of_what_was_made(made, tmp_path):
    keys = set()
    for seed in (1, 2):
        student = write_teacher(tmp_path / "student", result_of(made / "data"), seed=seed)
        config = with_results(_config(made, tmp_path / "out", sampled_by=str(tmp_path / "student")))
        teacher, tokens = load_codec_lm(config.teacher), TokenSet.open(config.data)
        description = job._describe(config, teacher, tokens)
        assert description.sampler["sampled_by"] == load_codec_lm(student).fingerprint
        keys.add(job._key(config, description))
        shutil.rmtree(tmp_path / "student")
    plain = with_results(_config(made, tmp_path / "out"))
    keys.add(job._key(plain, job._describe(plain, load_codec_lm(plain.teacher), TokenSet.open(plain.data))))
    assert len(keys) == 3


@pytest.mark.ray
def test_on_policy_data_name_their_student(made, tmp_path):
    student = write_teacher(tmp_path / "student", result_of(made / "data"), seed=1)
    with ray_session(num_cpus=2):
        run_generate(
            _config(made, tmp_path / "out", teacher_forced=False, sampled_by=str(tmp_path / "student")), Lines()
        )
    inputs = read_artifact(result_of(tmp_path / "out")).info.inputs
    assert inputs["sampled_by"] == load_codec_lm(student).fingerprint
    assert set(inputs) == {"teacher", "data", "sampled_by"}


def test_a_student_that_cannot_be_sampled_from_is_refused(made, tmp_path):
    student = write_teacher(tmp_path / "student", result_of(made / "data"), seed=1)
    with pytest.raises(ConfigError, match="sampled_by samples sequences, and num_sampled is 0"):
        run_generate(_config(made, tmp_path / "out", sampled_by=str(student), num_sampled=0), Lines())
    other = write_teacher(tmp_path / "other", result_of(made / "data"), codec_fingerprint="other-1")
    with pytest.raises(DataError, match=r"sampled_by .*other-1.*mel_rvq-"):
        run_generate(_config(made, tmp_path / "out", sampled_by=str(other)), Lines())
    assert not ray.is_initialized()


def test_a_sequence_depends_on_its_id_and_the_seed_not_on_its_batch(made, tmp_path):
    first, _ = _work(_worker(made, tmp_path, teacher_forced=False), SAMPLED)
    second, _ = _work(_worker(made, tmp_path, teacher_forced=False, batch_size=5), SAMPLED)
    other, _ = _work(_worker(made, tmp_path, teacher_forced=False, seed=1), SAMPLED)
    assert {name: r["codes"] for name, r in first.items()} == {name: r["codes"] for name, r in second.items()}
    assert {r["codes"] for r in first.values()} != {r["codes"] for r in other.values()}


def test_targets_at_another_temperature_are_those_of_the_same_sequences(made, tmp_path):
    warm, _ = _work(_worker(made, tmp_path, teacher_forced=False, temperature=2.0), SAMPLED)
    plain, _ = _work(_worker(made, tmp_path, teacher_forced=False), SAMPLED)
    assert {n: r["codes"] for n, r in warm.items()} == {n: r["codes"] for n, r in plain.items()}
    name = min(warm)
    # The guided scores of the same tokens, tempered: log-probability differences halve.
    a, b = decode_top_k(plain[name]["top_k"]), decode_top_k(warm[name]["top_k"])
    places = (a.ids[0, 0, 0], a.ids[0, 0, 1])
    pair = [dict(zip(t.ids[0, 0].tolist(), t.log_probs[0, 0].tolist(), strict=True)) for t in (a, b)]
    gaps = [p[int(places[0])] - p[int(places[1])] for p in pair]
    assert gaps[1] == pytest.approx(gaps[0] / 2, abs=0.02)


def test_bf16_targets_are_close_and_said_to_be_bf16(made, tmp_path):
    worker = _worker(made, tmp_path, num_sampled=0, precision="bf16")
    assert worker.work(0).numbers["precision/bfloat16"] == 1.0
    half, _ = _work(worker, TARGETS)
    full, _ = _work(_worker(made, tmp_path, num_sampled=0), TARGETS)
    name = min(half)
    a, b = decode_top_k(half[name]["top_k"]), decode_top_k(full[name]["top_k"])
    assert (a.ids[..., 0] == b.ids[..., 0]).float().mean() > 0.7


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"max_frames": 1}, "no_eos"),
        ({"filters": {"stability": {"min_s_per_word": 50.0, "max_s_per_word": 100.0}}}, "too_short"),
        ({"filters": {"stability": {"max_s_per_word": 0.001, "min_s_per_word": 0.0, "pause_s": 0.0}}}, "too_long"),
        (
            {"filters": {**ANYTHING, "max_wer": 0.0, "recogniser": {"kind": "pocketsphinx", "words": ["zero"]}}},
            "wer",
        ),
    ],
)
def test_what_breaks_a_rule_is_dropped_with_the_rules_name(made, tmp_path, changes, code):
    texts = tmp_path / "texts.txt"
    texts.write_text("nine nine\n")
    given = {"texts": {"kind": "file", "path": str(texts)}, "num_sampled": 4, "teacher_forced": False, **changes}
    records, rejects = _work(_worker(made, tmp_path, **given), SAMPLED)
    assert Counter(reject.code for reject in rejects)[code] >= 3
    assert len(records) + len(rejects) == 4


def test_loops_and_unspeakable_texts_are_dropped(made, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("🎉\none two\n")
    worker = _worker(
        made, tmp_path, texts={"kind": "file", "path": str(texts)}, num_sampled=4, teacher_forced=False,
        sampler={"temperature": 0.0}, filters={"stability": {**ANYTHING["stability"], "max_repeat_ratio": 0.1,
        "min_repeat_copies": 2}},
    )  # fmt: skip
    _, rejects = _work(worker, SAMPLED)
    codes = Counter(reject.code for reject in rejects)
    assert codes["unspeakable_text"] == 2
    assert set(codes) <= {"unspeakable_text", "repeat", "no_eos"}
    assert worker.sampler.filter.fault("one two", LOOP) == ("repeat", "20 of 20 frames repeat with period 2")


@pytest.mark.parametrize(
    ("lineage", "changes", "error", "message"),
    [
        ({"codec_fingerprint": "other-1"}, {}, DataError, "other-1.*mel_rvq-"),
        ({"text_fingerprint": "t-9"}, {}, DataError, "t-9"),
        ({"trained_drops": ()}, {}, ConfigError, "guidance against null"),
        ({}, {"teacher_forced": False, "num_sampled": 0}, ConfigError, "nothing to generate"),
    ],
)
def test_what_does_not_belong_together_is_refused_before_ray_starts(made, tmp_path, lineage, changes, error, message):
    write_teacher(tmp_path / "teacher", result_of(made / "data"), **lineage)
    with pytest.raises(error, match=message):
        run_generate(_config(made, tmp_path / "out", teacher=str(tmp_path / "teacher"), **changes), Lines())
    assert not ray.is_initialized()


@pytest.mark.ray
def test_killed_actor_and_killed_driver_leave_each_id_exactly_once_and_change_nothing(made, tmp_path):
    changes = {"num_sampled": 40, "batch_size": 1}
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(_tree(made, tmp_path / "driver", **changes)))
    done = run_and_kill_the_driver("generate", file, tmp_path / "driver" / "work", records=3)
    assert not (tmp_path / "driver" / "result").exists()
    lines = Lines()
    with ray_session(num_cpus=4):
        summary = run_generate(_config(made, tmp_path / "driver", **changes), lines)
        with killing_an_actor_after(2, tmp_path / "actor" / "work") as killed:
            run_generate(_config(made, tmp_path / "actor", **changes), Lines())
    assert len(killed) == 1
    before = int(lines.lines[0].split(": ")[1].split()[0])
    assert before >= done
    synthetic, expected = SyntheticSet.open(result_of(tmp_path / "driver")), summary["sampled_kept"]
    train = TokenSet.open(result_of(made / "data")).split("train")
    assert sorted(synthetic.teacher_forced) == train.column("id")
    rejects = (result_of(tmp_path / "driver") / "rejects.jsonl").read_text().splitlines()
    names = [row.id for row in synthetic.sampled] + [json.loads(line)["id"] for line in rejects]
    assert sorted(names) == [f"sampled-{i:07d}" for i in range(40)]
    assert len(synthetic.sampled) == expected > 20
    _check_provenance(made, tmp_path / "driver", synthetic)
    assert _shards(tmp_path / "driver") == _shards(tmp_path / "actor")
    assert not (tmp_path / "driver" / "work").exists()


def _shards(output):
    """All rows, but for the version of the code: the checkout may move on between two runs."""
    result = result_of(output)
    tables = {str(path.relative_to(result)): pq.read_table(path) for path in result.rglob("*.parquet")}
    return {name: table.drop_columns(["code_version"]).to_pylist() for name, table in tables.items()}


def _check_provenance(made, output, synthetic):
    teacher = load_codec_lm(result_of(made / "teacher"))
    law = _law(made)
    assert synthetic.description.precision == "float32"
    assert synthetic.description.teacher_fingerprint == teacher.fingerprint
    for part, kind in ((TARGETS, "teacher_forced"), (SAMPLED, "sampled")):
        for record in pq.read_table(result_of(output) / part).to_pylist():
            assert record["kind"] == kind
            assert record["teacher_fingerprint"] == teacher.fingerprint
            assert json.loads(record["guidance"]) == {"full": 1.5, "null": -0.5}
            assert json.loads(record["sampler"])["temperature"] == 1.0
            assert (
                record["prompt_id"] == law.choose(record["id"], record.get("speaker") or law.speaker(record["id"])).id
            )


def _law(made):
    train = TokenSet.open(result_of(made / "data")).split("train")
    ids, speakers = train.column("id"), train.column("speaker")
    law = PromptsById(ids, speakers)
    law.speaker = dict(zip(ids, speakers, strict=True)).__getitem__
    return law
