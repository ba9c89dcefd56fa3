"""Teacher → which of its layers matter, and the pruned model."""

from typing import Literal

from pydantic import Field

from retort.config import Config
from retort.evaluation.asr import RecogniserConfig
from retort.evaluation.stability import StabilityConfig
from retort.inference.decoding import CodecLMDecoding
from retort.location import Location
from retort.methods.layer_pruning import LayerPruningConfig
from retort.run_config.machines import PoolConfig
from retort.run_config.output import Output


class PruneConfig(Config):
    """Teacher → importance.json, layers.json and the pruned, untrained model."""

    job: Literal["prune"] = "prune"
    output: Output
    teacher: Location
    data: Location
    split: Literal["validation", "train"] = "validation"
    """Where the selection strings come from; never the test split, on which the students are judged."""
    num_strings: int = Field(default=100, ge=1)
    method: LayerPruningConfig = LayerPruningConfig()
    decoding: CodecLMDecoding | None = None
    """How the teacher, whole or without a layer, says the strings; ``None`` is the plain way."""
    recogniser: RecogniserConfig
    """Should differ from the one of the evaluation, or the choice of layers is fitted to the judge."""
    stability: StabilityConfig = StabilityConfig()
    max_frames: int = Field(default=400, ge=1)
    """Longest utterance in codec frames; a model without one of its layers may never end."""
    batch_size: int = Field(default=50, ge=1)
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    num_resamples: int = Field(default=2000, ge=100)
    pool: PoolConfig = PoolConfig()
    seed: int = Field(default=0, ge=0)
