"""Runs of the methods on codec language models, as far as their tests share them."""

from pathlib import Path

import torch

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
from retort.losses.divergence import top_k_of
from retort.methods.trained_codec_lm import CodecLMResult
from retort.models.codec_lm import CodecLM
from retort.models.codec_lm_lineage import CodecLMLineage
from retort.models.layer_choice import LAYERS_FILE, LayerChoice
from retort.models.weights import fingerprint_of
from retort.nn.guided_rows import guided_logits
from retort.orchestration.train.task import TrainJob, task_of
from retort.run_config import DistillConfig
from retort.store.artifact import Artifact, describe_artifact, write_artifact
from retort.training.seam import Place, Problem

MULTILEVEL = {"kind": "multilevel_distill"}


def checked(job: TrainJob) -> dict[str, str]:
    return task_of(job).check()


def problem_of(job: DistillConfig) -> Problem:
    return task_of(job).build(Place())


def lineage_of(problem: Problem) -> CodecLMLineage:
    assert isinstance(problem.trained, CodecLMResult)
    return problem.trained.lineage


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
    guidance = job.method.guidance.build()
    layout = CodebookLayout(16, (0, 1))
    config = job.training.batch.replace(prompts="by_id")
    stream = BatchStream([*real, *sampled], layout, config, seed=0, prompt_rows=real)
    prompts = PromptsById([row.id for row in real], [row.speaker for row in real])

    def record(index: int, row: TokenRow) -> dict[str, object]:
        batch = stream.build([index], torch.Generator())
        logits = guided_logits(teacher.eval(), batch.conditions, batch.inputs_BKS, guidance)
        top = top_k_of(logits, 16, temperature=made.temperature)
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
