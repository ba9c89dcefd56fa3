"""What the weights of a codec language model stand for, and which guidance they allow.

A student carries the guidance that it was distilled at, and refuses to be guided again.
"""

from pydantic import Field

from retort.config import Config
from retort.errors import ConfigError
from retort.nn.guidance import Guidance, GuidanceConfig, NullCondition


class CodecLMLineage(Config):
    """What a codec language model was made from, and how."""

    method: str = Field(min_length=1)
    """``kind`` of the method that distilled it; or ``pretrain``, ``import``, ``layer_pruning`` (a pruned model that was
    not trained) or ``fine_tune`` (cross-entropy without a teacher)."""
    codec_fingerprint: str
    text_fingerprint: str
    teacher_fingerprint: str | None = None
    """Of the teacher that it was distilled from."""
    distilled_at: GuidanceConfig | None = None
    """The guidance that is baked in; None for a model that may be guided."""
    trained_drops: tuple[NullCondition, ...] = ()
    """Null conditions that were seen in training, without which guidance against them is not valid."""
    kept_layers: tuple[int, ...] | None = None
    """The teacher's layers that it was copied from, where a choice among them was made."""
    selected_by: str | None = None
    """Name of the recogniser that the choice of layers was made with, which should not be the one that judges it."""

    def check_guidance(self, guidance: Guidance) -> None:
        """Refuse guidance that is not valid for this model.

        Raises:
            ConfigError: a distilled student would be guided twice, or a null condition was never trained.
        """
        if not guidance.is_guided:
            return
        if self.distilled_at is not None:
            baked = self.distilled_at.model_dump_json()
            raise ConfigError(f"this student has guidance baked in ({baked}); guiding it again would guide twice")
        untrained = [c for c in guidance.conditions if c != "full" and c not in self.trained_drops]
        if untrained:
            raise ConfigError(
                f"guidance against {', '.join(untrained)} needs a model trained with those drops; "
                f"this one saw {', '.join(self.trained_drops) or 'none'} (data.drop_* in its run file)"
            )
