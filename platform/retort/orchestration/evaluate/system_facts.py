"""What an evaluation knows of its systems before they speak, from their lineage and their records."""

from collections.abc import Sequence
from pathlib import Path

from retort.errors import DataError
from retort.evaluation.items import ItemResult
from retort.evaluation.judge import TestStrings
from retort.evaluation.results import Role, SystemInfo
from retort.inference.opening import open_speaker
from retort.models.weights import Lineage
from retort.run_config import EvaluateConfig, SystemConfig
from retort.store.artifact import ARTIFACT_FILE, read_artifact


def describe_system(system: SystemConfig, config: EvaluateConfig, strings: TestStrings) -> SystemInfo:
    """What is known of a system before it speaks; refuses a foreign codec or text front-end, and bad decoding."""
    if system.model is None:
        return SystemInfo(name=system.name, method=system.kind, role="reference")
    speaker = open_speaker(system.model)
    facts, decoding = speaker.facts, speaker.decoding(system.decoding)
    lineage = facts.lineage
    for what, ours, theirs in (
        ("codec", lineage.codec_fingerprint, strings.description.codec_fingerprint),
        ("text front-end", lineage.text_fingerprint, strings.description.text_fingerprint),
    ):
        if ours != theirs:
            raise DataError(f"system {system.name} was trained with {what} {ours}, {config.data} has {theirs}")
    return SystemInfo(
        name=system.name,
        method=lineage.method,
        family=facts.family,
        role=_role(system.name, lineage),
        parameters=facts.parameters,
        num_layers=facts.num_layers,
        training_tokens=_training_tokens(system.model, lineage),
        guidance_scale=decoding.guidance_scale,
    )


def _role(name: str, lineage: Lineage) -> Role:
    """Who was trained without a teacher, or not at all, is there to be beaten."""
    match lineage.method:
        case "pretrain" | "import":
            return "teacher"
        case "layer_pruning" | "fine_tune":
            return "control"
        case "cfg_distill" | "multilevel_distill":
            return "control" if name.startswith("control") else "student"


def _training_tokens(folder: Path, lineage: Lineage) -> int | None:
    """Tokens that the model's own training saw; None where its record does not say."""
    if lineage.method == "layer_pruning":
        return 0
    if not (folder / ARTIFACT_FILE).is_file():
        return None
    tokens = read_artifact(folder, verify=False).info.metrics.get("training_tokens")
    return tokens if isinstance(tokens, int) else None


def note_of(config: EvaluateConfig, items: Sequence[ItemResult]) -> str | None:
    """What must be said beside the figures: weak judges, and judges that already chose the layers."""
    notes = []
    if config.split == "train":
        notes.append(
            "The strings were seen in training: good for choosing between candidates that saw them, for nothing else."
        )
    if config.recogniser.kind == "pocketsphinx" or getattr(config.speaker_encoder, "kind", "") == "resemblyzer":
        notes.append(
            "Mini-scale, smoke tier: small models, scored by the embedded recogniser and speaker encoder; "
            "not comparable with published numbers."
        )
    judges = {item.recogniser for item in items} - {None}
    models = {system.name: system.model for system in config.systems if system.model is not None}
    lineages = {name: open_speaker(model).facts.lineage for name, model in models.items()}
    fitted = [name for name, lineage in lineages.items() if lineage.selected_by in judges]
    if fitted:
        notes.append(
            f"The layers of {', '.join(fitted)} were chosen by the recogniser that scores here, on other strings: "
            "a choice may be fitted to its judge."
        )
    return " ".join(notes) or None
