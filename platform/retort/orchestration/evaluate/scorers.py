"""The scorers of an evaluation: what is installed of them, and how they are opened."""

from typing import Any

from retort.errors import ConfigError
from retort.evaluation.asr import label_of, open_recogniser
from retort.evaluation.naturalness import open_naturalness
from retort.evaluation.scoring import Scorers
from retort.evaluation.speaker import open_speaker_encoder
from retort.evaluation.wheels import missing
from retort.run_config import EvaluateConfig


def with_installed(config: EvaluateConfig) -> tuple[EvaluateConfig, tuple[str, ...]]:
    """``config`` without the scorers that it takes ``if_installed`` and that are not, and what must be said of them.

    Raises:
        ConfigError: no recogniser is left.
    """
    wanted: tuple[Any, ...] = (*config.listening, *config.naturalness)
    reasons = [missing(scorer.modules) if getattr(scorer, "if_installed", False) else None for scorer in wanted]
    absent = [(scorer, reason) for scorer, reason in zip(wanted, reasons, strict=True) if reason is not None]
    if not absent:
        return config, ()
    gone = [scorer for scorer, _ in absent]
    recognisers = tuple(scorer for scorer in config.listening if scorer not in gone)
    if not recognisers:
        raise ConfigError(f"no recogniser is left: {'; '.join(reason for _, reason in absent)}")
    naturalness = tuple(scorer for scorer in config.naturalness if scorer not in gone)
    changes = {"recogniser": None, "recognisers": recognisers, "naturalness": naturalness}
    if len(recognisers) == 1:
        changes |= _without_label(config, label_of(recognisers[0]))
    left = config.model_copy(update=changes)
    judges = " and ".join(label_of(scorer) for scorer in recognisers)
    return left, tuple(
        f"{scorer.kind} did not judge: {reason}. Words were heard by {judges}." for scorer, reason in absent
    )


def _without_label(config: EvaluateConfig, label: str) -> dict[str, Any]:
    """What is asked of the only recogniser left, whose figures have no label; of the others it stays unanswered."""
    names = {name: name.removesuffix(f"@{label}") for name in config.margins}
    stated = {plain: config.margins[name] for name, plain in names.items() if plain == name or plain not in names}
    asked = [pair.replace(metric=pair.metric and pair.metric.removesuffix(f"@{label}")) for pair in config.comparisons]
    return {"margins": stated, "comparisons": tuple(dict.fromkeys(asked))}


def open_scorers(config: EvaluateConfig, *, device: str) -> Scorers:
    """Load every scorer; nothing is downloaded.

    Raises:
        ConfigError: a folder is missing, incomplete or not what it should be.
        DataError: weights are not those of their SHA-256.
        MissingRequirementError: a library is not installed.
    """
    first, *others = config.listening
    return Scorers(
        open_recogniser(first, device=device),
        None if config.speaker_encoder is None else open_speaker_encoder(config.speaker_encoder),
        config.stability,
        others={label_of(other): open_recogniser(other, device=device) for other in others},
        label=label_of(first),
        naturalness=tuple(open_naturalness(scorer, device=device) for scorer in config.naturalness),
    )
