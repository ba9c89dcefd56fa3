"""What every distillation of codec language models reads, and how teacher, data and student are made ready for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from retort.data.batches import CodebookLayout
from retort.data.stream import BatchConfig, BatchStream
from retort.data.synthetic import SyntheticSet
from retort.data.tokens import TokenRow, TokenSet, refuse_mismatch
from retort.errors import DataError
from retort.methods.codec_lm_data import check_fits_tokens, check_tokens
from retort.methods.trained_codec_lm import CodecLMResult
from retort.models.activations import measure_activations
from retort.models.codec_lm import CodecLM, CodecLMConfig
from retort.models.codec_lm_lineage import CodecLMLineage
from retort.models.initialise import Initialisation, check_kept, kept_layers, student_from
from retort.models.layer_choice import read_choice
from retort.models.student_shape import (
    Kept,
    ModelPreset,
    ModelShape,
    PrunedTeacher,
    SameAsTeacher,
    StudentSize,
    model_of,
)
from retort.models.weights import LoadedCodecLM, load_codec_lm
from retort.nn.guidance import GuidanceConfig
from retort.store.artifact import read_artifact
from retort.store.results import result_of

_CALIBRATION_BATCHES = 8


@dataclass(frozen=True)
class Distillation:
    """What a run file says of a distillation beside its method; see ``retort.run_config.DistillConfig``."""

    teacher: Path
    data: Path
    synthetic: Path | None
    sampled_fraction: float
    student: StudentSize
    init: Initialisation
    batch: BatchConfig
    seed: int


@dataclass(frozen=True)
class Opened:
    """The inputs of a distillation, which belong together.

    Attributes:
        given: what the run file says.
        tokens: the token set.
        data_fingerprint: of the token set's artifact.
        teacher: in fp32.
        kept: the teacher's layers that the student starts from.
    """

    given: Distillation
    tokens: TokenSet
    data_fingerprint: str
    teacher: LoadedCodecLM
    kept: Kept

    def result(self, student: CodecLMConfig, lineage: CodecLMLineage) -> CodecLMResult:
        """What the trained weights become."""
        return CodecLMResult(student, lineage, result_of(self.given.data), result_of(self.given.teacher))

    def lineage(
        self,
        method: str,
        *,
        taught_with: GuidanceConfig | None,
        is_choice_of_layers: bool,
    ) -> CodecLMLineage:
        """What the student's weights will stand for.

        Args:
            method: ``kind`` of what teaches it.
            taught_with: guidance of the teacher; None where nothing but its weights was used.
            is_choice_of_layers: whether which layers it holds was decided, rather than spaced evenly.
        """
        made = self.tokens.description
        return CodecLMLineage(
            method="fine_tune" if taught_with is None else method,
            codec_fingerprint=made.codec_fingerprint,
            text_fingerprint=made.text_fingerprint,
            teacher_fingerprint=self.teacher.fingerprint,
            trained_drops=self.given.batch.null_conditions,
            distilled_at=taught_with if taught_with is not None and taught_with.build().is_guided else None,
            kept_layers=self.kept.layers if is_choice_of_layers else None,
            selected_by=self.kept.selected_by,
        )


def check_inputs(given: Distillation) -> tuple[Opened, dict[str, str]]:
    """Verify everything but the synthetic set; returns it opened, and its fingerprints by name.

    Raises:
        ConfigError: the teacher has no such layers as the student should start from.
        DataError: an input is missing, or two inputs were made with different codecs, text front-ends or teachers.
        StorageError: an input is damaged.
    """
    tokens, data_fingerprint = check_tokens(given.data)
    read_artifact(result_of(given.teacher))
    teacher = load_codec_lm(result_of(given.teacher))
    check_fits_tokens(teacher, tokens.description, who=f"the teacher {given.teacher}", data=given.data)
    opened = Opened(given, tokens, data_fingerprint, teacher, kept_of(given, teacher))
    fingerprints = {"data": data_fingerprint, "teacher": teacher.fingerprint}
    if isinstance(given.student, PrunedTeacher) and isinstance(given.student.layers, Path):
        fingerprints["layers"] = read_artifact(result_of(given.student.layers)).fingerprint
    if given.synthetic is not None:
        fingerprints["synthetic"] = read_artifact(result_of(given.synthetic)).fingerprint
    return opened, fingerprints


def open_inputs(given: Distillation) -> Opened:
    """The inputs on a worker, which were verified before it started."""
    data = result_of(given.data)
    tokens = TokenSet.open(data)
    teacher = load_codec_lm(result_of(given.teacher))
    fingerprint = read_artifact(data, verify=False).fingerprint
    return Opened(given, tokens, fingerprint, teacher, kept_of(given, teacher))


def kept_of(given: Distillation, teacher: LoadedCodecLM) -> Kept:
    """Which of the teacher's layers the student starts from: all, evenly spaced ones, or those that were chosen.

    Raises:
        ConfigError: there are no such layers.
        DataError: they were chosen for another teacher.
    """
    size, num_layers = given.student, teacher.model.config.num_layers
    match size:
        case SameAsTeacher():
            return Kept(tuple(range(num_layers)))
        case ModelShape() | ModelPreset():
            wanted = min(num_layers, model_of(size, teacher.model.config.vocabularies).num_layers)
            return Kept(tuple(kept_layers(num_layers, wanted)))
        case PrunedTeacher():
            return _kept_of_choice(size, given, teacher)


def _kept_of_choice(size: PrunedTeacher, given: Distillation, teacher: LoadedCodecLM) -> Kept:
    if not isinstance(size.layers, Path):
        check_kept(size.layers, teacher.model.config.num_layers)
        return Kept(size.layers)
    choice = read_choice(size.layers)
    cure = "run `retort prune` with this teacher"
    refuse_mismatch(
        "teacher",
        str(size.layers),
        choice.teacher_fingerprint,
        f"the teacher {given.teacher} is",
        teacher.fingerprint,
        cure,
    )
    by_wer = (size.criterion or choice.criterion) == "wer"
    return Kept(choice.layers(size.criterion, size.num_layers), choice.recogniser if by_wer else None)


def open_synthetic(opened: Opened) -> SyntheticSet | None:
    """The synthetic set of a distillation, if it has one and it was made by this teacher for these data.

    Raises:
        DataError: another teacher, codec or text front-end made it, or it holds no sampled rows and should.
    """
    given, tokens = opened.given, opened.tokens.description
    if given.synthetic is None:
        return None
    synthetic = SyntheticSet.open(result_of(given.synthetic))
    made, where = synthetic.description, str(given.synthetic)
    cure = "run `retort generate` with this teacher and these data"
    ours = opened.teacher.fingerprint
    refuse_mismatch("teacher", where, made.teacher_fingerprint, f"the teacher {given.teacher} is", ours, cure)
    refuse_mismatch("codec", where, made.tokens.codec_fingerprint, str(given.data), tokens.codec_fingerprint, cure)
    refuse_mismatch(
        "text front-end", where, made.tokens.text_fingerprint, str(given.data), tokens.text_fingerprint, cure
    )
    if given.sampled_fraction and not synthetic.sampled:
        raise DataError(f"{where} holds no sampled sequences; set sampled_fraction: 0, or generate with num_sampled")
    return synthetic


def rows_of(opened: Opened, synthetic: SyntheticSet | None) -> tuple[list[TokenRow], list[TokenRow]]:
    """The rows to train on, and the real rows, which prompts come from."""
    real = list(opened.tokens.split("train"))
    if synthetic is None:
        return real, real
    given = opened.given
    return mixed_rows(real, synthetic.sampled, given.sampled_fraction, seed=given.seed), real


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


def build_student(opened: Opened, shape: CodecLMConfig, rows: Sequence[TokenRow]) -> CodecLM:
    """The student with its first weights; the same on every rank.

    Args:
        opened: with the teacher whose weights it starts from.
        shape: of the student.
        rows: real rows, for the activations that ``init: activations`` ranks by.
    """
    given, teacher = opened.given, opened.teacher.model
    activations = None
    if given.init == "activations":
        layout = CodebookLayout(teacher.config.codebook_size, teacher.config.codebook_delays)
        batches = BatchStream(rows, layout, given.batch, seed=given.seed).iterate(0, _CALIBRATION_BATCHES)
        activations = measure_activations(teacher.eval(), ((b.conditions, b.inputs_BKS, b.mask_BKS) for b in batches))
    return student_from(teacher, shape, init=given.init, layers=opened.kept.layers, activations=activations)


def in_precision(teacher: CodecLM, dtype: torch.dtype) -> CodecLM:
    """The teacher computing in ``dtype`` up to its last layer, and that one in fp32.

    Guidance multiplies differences of logits, which a last layer in bf16 would round away (METHODS.md, trap 5).
    """
    if dtype == torch.float32:
        return teacher
    teacher.to(dtype)
    teacher.heads.float()

    def widen(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        del module
        return tuple(x.float() for x in inputs)

    teacher.heads.register_forward_pre_hook(widen)
    return teacher
