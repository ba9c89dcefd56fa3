"""What a training run is made of: checked inputs, and each rank's student, objective, teacher and batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from retort.audio.codec import outside_codec
from retort.data.batches import CodebookLayout, LMBatch
from retort.data.stream import BatchConfig, BatchStream
from retort.data.synthetic import SyntheticSet
from retort.data.tokens import TokenRow, TokenSet, TokenSetDescription, refuse_mismatch
from retort.errors import ConfigError, DataError
from retort.methods.cfg_distill import (
    CachedTeacher,
    CFGDistillConfig,
    CFGDistillObjective,
    GuidedTargets,
    LiveTeacher,
)
from retort.methods.multilevel_distill import MultilevelDistillConfig, MultilevelObjective, TracedTeacher
from retort.methods.pretrain import CrossEntropyObjective
from retort.models.codec_lm import CodecLM, CodecLMConfig
from retort.models.weights import Lineage, LoadedModel, load_model
from retort.orchestration.train.student_setup import (
    Kept,
    build_student,
    kept_of,
    model_of,
    student_config,
    vocabularies_of,
)
from retort.run_config import DistillConfig, Method, PretrainConfig, PrunedTeacher
from retort.store.artifact import read_artifact
from retort.store.results import result_of
from retort.training.seam import NoTeacher, Teacher

TrainJob = PretrainConfig | DistillConfig


@dataclass(frozen=True)
class Problem:
    """One rank's part of a run.

    Attributes:
        objective: holds the student; its parameters are what is trained.
        teacher: makes the targets; never wrapped, optimised or saved.
        stream: the batches of this rank.
        lineage: what the student's weights will stand for.
    """

    objective: nn.Module
    teacher: Teacher[Any, Any]
    stream: BatchStream
    lineage: Lineage


class AbsentTeacher:
    """Of a distillation by cross-entropy alone: no teacher runs."""

    def targets(self, batch: LMBatch) -> GuidedTargets:
        """No targets beside the batch's own tokens."""
        del batch
        return GuidedTargets()

    def update(self, student: nn.Module) -> None:
        """Nothing."""
        del student


def check_inputs(config: TrainJob) -> dict[str, str]:
    """Verify and match everything that the run reads, before anything is started; returns its fingerprints by name.

    Raises:
        ConfigError: the student does not fit its teacher, or the guidance is not valid for it.
        DataError: an input is missing, or two inputs were made with different codecs, text front-ends or teachers.
        StorageError: an input is damaged.
    """
    data = read_artifact(result_of(config.data))
    tokens = TokenSet.open(data.path)
    parts = ("text",) if outside_codec(tokens.description.codec_fingerprint) else ("codec", "text")
    lacking = [part for part in parts if not (data.path / part).is_dir()]
    if lacking:
        raise DataError(f"{config.data} lacks its {' and '.join(lacking)} folder; run `retort prepare` again")
    if not tokens.split("train"):
        raise DataError(f"{config.data}: the train split is empty; check `splits` in the run file of `retort prepare`")
    fingerprints = {"data": data.fingerprint}
    match config:
        case PretrainConfig():
            model_of(config.model, vocabularies_of(tokens.description))
        case DistillConfig():
            read_artifact(result_of(config.teacher))
            teacher = load_model(result_of(config.teacher))
            check_teacher(config, teacher, tokens.description)
            fingerprints["teacher"] = teacher.fingerprint
            if isinstance(config.student, PrunedTeacher) and isinstance(config.student.layers, Path):
                fingerprints["layers"] = read_artifact(result_of(config.student.layers)).fingerprint
            if config.synthetic is not None:
                fingerprints["synthetic"] = read_artifact(result_of(config.synthetic)).fingerprint
                open_synthetic(config, teacher, tokens.description, data.fingerprint)
    return fingerprints


def check_teacher(config: DistillConfig, teacher: LoadedModel, tokens: TokenSetDescription) -> None:
    """Refuse a teacher of other tokens, guidance that it was not trained for, and a student that does not fit it.

    Raises:
        ConfigError: the guidance or the student's shape.
        DataError: the codec or the text front-end; both fingerprints are shown.
    """
    cure = "prepare the data with the teacher's codec and text front-end, or train a teacher on these data"
    where, lineage = f"the teacher {config.teacher}", teacher.lineage
    refuse_mismatch(where, lineage.codec_fingerprint, str(config.data), tokens.codec_fingerprint, cure)
    refuse_mismatch(where, lineage.text_fingerprint, str(config.data), tokens.text_fingerprint, cure)
    if config.method.needs_teacher:
        teacher.check_guidance(config.method.guidance.build())
    elif isinstance(config.method, CFGDistillConfig) and config.method.guidance_scales:
        raise ConfigError("method.guidance_scales need method.kl_weight above 0; without it no guidance is learned")
    if (
        isinstance(config.method, CFGDistillConfig)
        and config.method.guidance_scales
        and teacher.model.config.speaker_prompt == "none"
    ):
        raise ConfigError(
            f"method.guidance_scales {config.method.guidance_scales}: a model without a prompt column takes no scale "
            "as an input; leave them empty and distil at one guidance"
        )
    student_config(config, kept_of(config, teacher), teacher.model.config, vocabularies_of(tokens))


def open_synthetic(
    config: DistillConfig, teacher: LoadedModel, tokens: TokenSetDescription, data_fingerprint: str
) -> SyntheticSet:
    """The synthetic set of a distillation, if it was made by this teacher for these data.

    Raises:
        DataError: another teacher, codec, text front-end, token set, guidance or temperature made it.
    """
    assert config.synthetic is not None
    synthetic = SyntheticSet.open(result_of(config.synthetic))
    made, where = synthetic.description, str(config.synthetic)
    cure = "run `retort generate` with this teacher and these data"
    refuse_mismatch(where, made.teacher_fingerprint, f"the teacher {config.teacher} is", teacher.fingerprint, cure)
    refuse_mismatch(where, made.tokens.codec_fingerprint, str(config.data), tokens.codec_fingerprint, cure)
    refuse_mismatch(where, made.tokens.text_fingerprint, str(config.data), tokens.text_fingerprint, cure)
    if isinstance(config.method, CFGDistillConfig) and config.is_cached and config.method.needs_teacher:
        synthetic.refuse_unfit(
            data_fingerprint=data_fingerprint,
            guidance=config.method.guidance,
            temperature=config.method.temperature,
            prompt_max_frames=config.training.batch.prompt_max_frames,
        )
    if config.sampled_fraction and not synthetic.sampled:
        raise DataError(f"{where} holds no sampled sequences; set sampled_fraction: 0, or generate with num_sampled")
    return synthetic


def build_problem(config: TrainJob, *, rank: int, world_size: int, device: torch.device, dtype: torch.dtype) -> Problem:
    """Build one rank's part; ranks differ in their batches and in the teacher's random numbers, in nothing else."""
    data = result_of(config.data)
    tokens = TokenSet.open(data)
    torch.manual_seed(config.training.seed)  # the same first weights on every rank
    if isinstance(config, PretrainConfig):
        return _pretrain(config, tokens, rank, world_size)
    teacher = load_model(result_of(config.teacher))
    kept = kept_of(config, teacher)
    rows, prompt_rows, synthetic = _distillation_rows(
        config, tokens, teacher, read_artifact(data, verify=False).fingerprint
    )
    student = build_student(config, teacher.model, kept, prompt_rows)
    cached = config.is_cached and config.method.needs_teacher
    batch = config.training.batch.replace(prompts="by_id") if cached else config.training.batch
    guide: Teacher[Any, Any]
    if not config.method.needs_teacher:
        guide = AbsentTeacher()
    elif cached:
        assert synthetic is not None
        guide = CachedTeacher(synthetic.lookup(rows), student.config.num_codebooks)
    else:
        seed = (config.training.seed << 16) + rank
        guide = _live_teacher(in_precision(teacher.model, dtype).to(device), config.method, seed)
    stream = _stream(config, rows, student.config, batch, (rank, world_size), prompt_rows)
    objective = _objective(student, kept, teacher.model.config.num_layers, config.method)
    return Problem(objective, guide, stream, _lineage(config, tokens, teacher, kept))


def _live_teacher(model: CodecLM, method: Method, seed: int) -> Teacher[Any, Any]:
    match method:
        case CFGDistillConfig():
            return LiveTeacher(model, method, seed=seed)
        case MultilevelDistillConfig():
            return TracedTeacher(model, method)


def _objective(student: CodecLM, kept: Kept, num_teacher_layers: int, method: Method) -> nn.Module:
    match method:
        case CFGDistillConfig():
            return CFGDistillObjective(student, method)
        case MultilevelDistillConfig():
            return MultilevelObjective(student, kept.layers, num_teacher_layers, method)


def _lineage(config: DistillConfig, tokens: TokenSet, teacher: LoadedModel, kept: Kept) -> Lineage:
    guided = config.method.needs_teacher and config.method.guidance.build().is_guided
    is_choice = config.method.kind == "multilevel_distill" or isinstance(config.student, PrunedTeacher)
    return Lineage(
        method=config.method.kind if config.method.needs_teacher else "fine_tune",
        codec_fingerprint=tokens.description.codec_fingerprint,
        text_fingerprint=tokens.description.text_fingerprint,
        teacher_fingerprint=teacher.fingerprint,
        distilled_at=config.method.guidance if guided else None,
        kept_layers=kept.layers if is_choice else None,
        selected_by=kept.selected_by,
    )


def in_precision(teacher: CodecLM, dtype: torch.dtype) -> CodecLM:
    """The teacher computing in ``dtype`` up to its last layer, and that one in fp32.

    Guidance multiplies differences of logits, which a last layer in bf16 would round away (METHODS.md, trap 5).
    """
    if dtype == torch.float32:
        return teacher
    teacher.to(dtype)
    teacher.heads.float()

    def widen(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        del module
        return tuple(x.float() for x in inputs)

    teacher.heads.register_forward_pre_hook(widen)
    return teacher


def mixed_rows(real: Sequence[TokenRow], sampled: Sequence[TokenRow], fraction: float, *, seed: int) -> list[TokenRow]:
    """As many rows as possible of which the given share is sampled; what does not fit in is left out at random."""
    if fraction == 0.0:
        return list(real)
    if fraction == 1.0:
        return list(sampled)
    total = min(len(real) / (1.0 - fraction), len(sampled) / fraction)
    num_sampled = min(len(sampled), max(1, round(total * fraction)))
    num_real = min(len(real), max(1, round(total * (1.0 - fraction))))
    generator = torch.Generator().manual_seed(seed)
    parts = ((real, num_real), (sampled, num_sampled))
    return [rows[i] for rows, n in parts for i in sorted(torch.randperm(len(rows), generator=generator)[:n].tolist())]


def _pretrain(config: PretrainConfig, tokens: TokenSet, rank: int, world_size: int) -> Problem:
    student = CodecLM(model_of(config.model, vocabularies_of(tokens.description)))
    batch = config.training.batch
    drops: tuple[tuple[Literal["no_text", "no_speaker", "null"], float], ...] = (
        ("no_text", batch.drop_text),
        ("no_speaker", batch.drop_speaker),
        ("null", batch.drop_both),
    )
    lineage = Lineage(
        method="pretrain",
        codec_fingerprint=tokens.description.codec_fingerprint,
        text_fingerprint=tokens.description.text_fingerprint,
        trained_drops=tuple(name for name, probability in drops if probability > 0),
    )
    rows = list(tokens.split("train"))
    stream = _stream(config, rows, student.config, batch, (rank, world_size), None)
    return Problem(CrossEntropyObjective(student), NoTeacher(), stream, lineage)


def _distillation_rows(
    config: DistillConfig, tokens: TokenSet, teacher: LoadedModel, data_fingerprint: str
) -> tuple[list[TokenRow], list[TokenRow], SyntheticSet | None]:
    """The rows to train on, the real rows that prompts come from, and the synthetic set if there is one."""
    real = list(tokens.split("train"))
    if config.synthetic is None:
        return real, real, None
    synthetic = open_synthetic(config, teacher, tokens.description, data_fingerprint)
    rows = mixed_rows(real, synthetic.sampled, config.sampled_fraction, seed=config.training.seed)
    return rows, real, synthetic


def _stream(
    config: TrainJob,
    rows: Sequence[TokenRow],
    model: CodecLMConfig,
    batch: BatchConfig,
    place: tuple[int, int],
    prompt_rows: Sequence[TokenRow] | None,
) -> BatchStream:
    layout = CodebookLayout(model.codebook_size, model.codebook_delays)
    rank, world_size = place
    seed = config.training.seed
    return BatchStream(rows, layout, batch, seed=seed, rank=rank, world_size=world_size, prompt_rows=prompt_rows)
