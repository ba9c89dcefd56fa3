"""From a run file's student to the model: its shape, which of the teacher's layers it holds, and its first weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from retort.data.batches import CodebookLayout
from retort.data.stream import BatchStream
from retort.data.tokens import TokenRow, TokenSetDescription, refuse_mismatch
from retort.errors import ConfigError, DataError
from retort.methods.cfg_distill import CFGDistillConfig
from retort.methods.layer_pruning import LayerChoice
from retort.models.activations import measure_activations
from retort.models.codec_lm import CodecLM, CodecLMConfig
from retort.models.initialise import check_compatible, check_kept, kept_layers, student_from
from retort.models.presets import preset
from retort.models.weights import LoadedModel
from retort.run_config import DistillConfig, ModelShape, ModelSize, PrunedTeacher, SameAsTeacher
from retort.store.results import result_of

LAYERS_FILE = "layers.json"
_CALIBRATION_BATCHES = 8
_FOLLOWED = ("delays", "rope_theta", "rope_scaling", "norm_eps", "head_dim", "speaker_prompt")
"""What a student of a shape of its own takes from its teacher."""


@dataclass(frozen=True)
class Kept:
    """The teacher's layers that a student holds, and the recogniser that chose them, if one did."""

    layers: tuple[int, ...]
    selected_by: str | None = None


def with_absolute_layers(config: DistillConfig) -> DistillConfig:
    """``config`` with its pruning's committed folder, for workers that run in another folder."""
    student = config.student
    if not isinstance(student, PrunedTeacher) or not isinstance(student.layers, Path):
        return config
    return config.replace(student=student.replace(layers=result_of(student.layers)))


def read_choice(folder: Path) -> LayerChoice:
    """The choice of layers that `retort prune` wrote.

    Raises:
        DataError: the folder holds none.
    """
    path = result_of(folder) / LAYERS_FILE
    if not path.is_file():
        raise DataError(f"{folder} has no {LAYERS_FILE}: not the output of `retort prune`; correct student.layers")
    return LayerChoice.model_validate_json(path.read_bytes())


def kept_of(config: DistillConfig, teacher: LoadedModel) -> Kept:
    """Which of the teacher's layers the student starts from: all, evenly spaced ones, or those that were chosen.

    Raises:
        ConfigError: there are no such layers.
        DataError: they were chosen for another teacher.
    """
    size, num_layers = config.student, teacher.model.config.num_layers
    if isinstance(size, SameAsTeacher):
        return Kept(tuple(range(num_layers)))
    if not isinstance(size, PrunedTeacher):
        wanted = min(num_layers, model_of(size, vocabularies_of(teacher.model.config)).num_layers)
        return Kept(tuple(kept_layers(num_layers, wanted)))
    if not isinstance(size.layers, Path):
        check_kept(size.layers, num_layers)
        return Kept(size.layers)
    choice = read_choice(size.layers)
    cure = "run `retort prune` with this teacher"
    refuse_mismatch(
        str(size.layers), choice.teacher_fingerprint, f"the teacher {config.teacher} is", teacher.fingerprint, cure
    )
    by_wer = (size.criterion or choice.criterion) == "wer"
    return Kept(choice.layers(size.criterion, size.num_layers), choice.recogniser if by_wer else None)


def student_config(
    config: DistillConfig, kept: Kept, teacher: CodecLMConfig, vocabularies: tuple[int, int, int]
) -> CodecLMConfig:
    """The student's shape; what logits depend on beside it (delays, positions, norms, prompt) follows the teacher.

    Raises:
        ConfigError: the numbers do not make a model, or not one that the teacher can teach in this way.
    """
    size, method = config.student, config.method
    scales = list(method.guidance_scales) if isinstance(method, CFGDistillConfig) else []
    if isinstance(size, SameAsTeacher):
        shape = teacher
    elif isinstance(size, PrunedTeacher):
        shape = _pruned(size, kept, teacher)
    else:
        shape = model_of(size, vocabularies).replace(**{name: getattr(teacher, name) for name in _FOLLOWED})
    check_compatible(teacher, shape)
    if not isinstance(method, CFGDistillConfig):
        method.check_shapes(teacher, shape)
    return shape.replace(guidance_scales=scales)


def model_of(size: ModelSize, vocabularies: tuple[int, int, int]) -> CodecLMConfig:
    """The model of a size that a run file spells out or names.

    Raises:
        ConfigError: the numbers do not make a model.
    """
    try:
        if not isinstance(size, ModelShape):
            return preset(size.name)(vocabularies)
        text, num_codebooks, codebook_size = vocabularies
        return CodecLMConfig(
            text_vocabulary_size=text,
            num_codebooks=num_codebooks,
            codebook_size=codebook_size,
            num_kv_heads=size.num_kv_heads or size.num_heads,
            **size.model_dump(exclude={"kind", "num_kv_heads"}),
        )
    except ValueError as error:
        raise ConfigError(f"the model's size does not work: {error}") from None


def _pruned(size: PrunedTeacher, kept: Kept, teacher: CodecLMConfig) -> CodecLMConfig:
    heads = size.num_heads or teacher.num_heads
    changes = {
        "num_layers": len(kept.layers),
        "dim": size.dim or teacher.dim,
        "num_heads": heads,
        "num_kv_heads": size.num_kv_heads or max(1, heads * teacher.num_kv_heads // teacher.num_heads),
        "ffn_dim": size.ffn_dim or teacher.ffn_dim,
    }
    try:
        return teacher.replace(**changes)
    except ValueError as error:
        raise ConfigError(f"the student's size does not work: {error}") from None


def build_student(config: DistillConfig, teacher: CodecLM, kept: Kept, rows: Sequence[TokenRow]) -> CodecLM:
    """The student with its first weights; the same on every rank.

    Args:
        config: the run.
        teacher: whose weights it starts from.
        kept: the teacher's layers that it holds.
        rows: real rows, for the activations that ``init: activations`` ranks by.
    """
    shape = student_config(config, kept, teacher.config, vocabularies_of(teacher.config))
    activations = None
    if config.init == "activations":
        layout = CodebookLayout(teacher.config.codebook_size, teacher.config.codebook_delays)
        stream = BatchStream(rows, layout, config.training.batch, seed=config.training.seed)
        batches = stream.iterate(0, _CALIBRATION_BATCHES)
        activations = measure_activations(teacher.eval(), ((b.conditions, b.inputs_BKS, b.mask_BKS) for b in batches))
    return student_from(teacher, shape, init=config.init, layers=kept.layers, activations=activations)


def vocabularies_of(tokens: TokenSetDescription | CodecLMConfig) -> tuple[int, int, int]:
    """Text vocabulary, number of codebooks and their size, of a token set or a model."""
    return tokens.text_vocabulary_size, tokens.num_codebooks, tokens.codebook_size
