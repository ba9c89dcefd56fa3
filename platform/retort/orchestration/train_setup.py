"""What a training run is made of: checked inputs, and each rank's student, objective, teacher and batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from retort.audio.codec import outside_codec
from retort.data.batches import CodebookLayout, LMBatch
from retort.data.stream import BatchConfig, BatchStream
from retort.data.synthetic import SyntheticSet
from retort.data.tokens import TokenRow, TokenSet, TokenSetDescription, refuse_mismatch
from retort.errors import ConfigError, DataError
from retort.methods.cfg_distill import CachedTeacher, CFGDistillObjective, GuidedTargets, LiveTeacher
from retort.methods.pretrain import CrossEntropyObjective
from retort.models.codec_lm import CodecLM, CodecLMConfig
from retort.models.initialise import check_compatible, student_from
from retort.models.presets import preset
from retort.models.weights import Lineage, LoadedModel, load_model
from retort.orchestration.outputs import result_of
from retort.run_config import DistillConfig, ModelShape, PretrainConfig, SameAsTeacher, StudentSize
from retort.store.artifact import read_artifact
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
            model_config(config.model, _vocabularies(tokens.description), None)
        case DistillConfig():
            read_artifact(result_of(config.teacher))
            teacher = load_model(result_of(config.teacher))
            check_teacher(config, teacher, tokens.description)
            fingerprints["teacher"] = teacher.fingerprint
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
    if config.method.kl_weight:
        teacher.check_guidance(config.method.guidance.build())
    elif config.method.guidance_scales:
        raise ConfigError("method.guidance_scales need method.kl_weight above 0; without it no guidance is learned")
    if config.method.guidance_scales and teacher.model.config.speaker_prompt == "none":
        raise ConfigError(
            f"method.guidance_scales {config.method.guidance_scales}: a model without a prompt column takes no scale "
            "as an input; leave them empty and distil at one guidance"
        )
    student = model_config(config.student, _vocabularies(tokens), teacher.model.config)
    check_compatible(teacher.model.config, student)


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
    if config.method.targets == "cached" and config.method.kl_weight:
        synthetic.refuse_unfit(
            data_fingerprint=data_fingerprint,
            guidance=config.method.guidance,
            temperature=config.method.temperature,
            prompt_max_frames=config.training.batch.prompt_max_frames,
        )
    if config.sampled_fraction and not synthetic.sampled:
        raise DataError(f"{where} holds no sampled sequences; set sampled_fraction: 0, or generate with num_sampled")
    return synthetic


def model_config(size: StudentSize, vocabularies: tuple[int, int, int], teacher: CodecLMConfig | None) -> CodecLMConfig:
    """The model of a run file's size; delays, positions, norms and prompt follow the teacher if there is one.

    Raises:
        ConfigError: the numbers do not make a model.
    """
    if isinstance(size, SameAsTeacher):
        assert teacher is not None
        return teacher.replace(guidance_scales=())
    try:
        if isinstance(size, ModelShape):
            text, num_codebooks, codebook_size = vocabularies
            config = CodecLMConfig(
                text_vocabulary_size=text,
                num_codebooks=num_codebooks,
                codebook_size=codebook_size,
                num_kv_heads=size.num_kv_heads or size.num_heads,
                **size.model_dump(exclude={"kind", "num_kv_heads"}),
            )
        else:
            config = preset(size.name)(vocabularies)
    except ValueError as error:
        raise ConfigError(f"the model's size does not work: {error}") from None
    if teacher is None:
        return config
    followed = ("delays", "rope_theta", "rope_scaling", "norm_eps", "head_dim", "speaker_prompt")
    return config.replace(**{name: getattr(teacher, name) for name in followed})


def build_problem(config: TrainJob, *, rank: int, world_size: int, device: torch.device, dtype: torch.dtype) -> Problem:
    """Build one rank's part; ranks differ in their batches and in the teacher's random numbers, in nothing else."""
    data = result_of(config.data)
    tokens = TokenSet.open(data)
    torch.manual_seed(config.training.seed)  # the same first weights on every rank
    if isinstance(config, PretrainConfig):
        return _pretrain(config, tokens, rank, world_size)
    teacher = load_model(result_of(config.teacher))
    shape = model_config(config.student, _vocabularies(tokens.description), teacher.model.config)
    shape = shape.replace(guidance_scales=list(config.method.guidance_scales))
    student = student_from(teacher.model, shape, init=config.init)
    rows, prompt_rows, synthetic = _distillation_rows(
        config, tokens, teacher, read_artifact(data, verify=False).fingerprint
    )
    cached = config.method.targets == "cached" and config.method.kl_weight > 0
    batch = config.training.batch.replace(prompts="by_id") if cached else config.training.batch
    guide: Teacher[Any, Any]
    if config.method.kl_weight == 0:
        guide = AbsentTeacher()
    elif cached:
        assert synthetic is not None
        guide = CachedTeacher(synthetic.lookup(rows), student.config.num_codebooks)
    else:
        seed = (config.training.seed << 16) + rank
        guide = LiveTeacher(in_precision(teacher.model, dtype).to(device), config.method, seed=seed)
    guided = config.method.kl_weight > 0 and config.method.guidance.build().is_guided
    lineage = Lineage(
        method="cfg_distill",
        codec_fingerprint=tokens.description.codec_fingerprint,
        text_fingerprint=tokens.description.text_fingerprint,
        teacher_fingerprint=teacher.fingerprint,
        distilled_at=config.method.guidance if guided else None,
    )
    stream = _stream(config, rows, student.config, batch, (rank, world_size), prompt_rows)
    return Problem(CFGDistillObjective(student, config.method), guide, stream, lineage)


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
    student = CodecLM(model_config(config.model, _vocabularies(tokens.description), None))
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


def _vocabularies(tokens: TokenSetDescription) -> tuple[int, int, int]:
    return tokens.text_vocabulary_size, tokens.num_codebooks, tokens.codebook_size
