"""What an evaluation knows of its systems before they speak, from their lineage and their records."""

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from retort.errors import ConfigError
from retort.evaluation.asr import recogniser_name
from retort.evaluation.judge import TestStrings
from retort.evaluation.results import SystemInfo
from retort.evaluation.speaker import encoder_name
from retort.inference.black_box.callable import CallableConfig
from retort.inference.black_box.command import CommandConfig
from retort.inference.black_box.hibari import HibariConfig
from retort.inference.black_box.opening import facts_of
from retort.inference.decoding import CodecLMDecoding, MelDiffusionDecoding
from retort.inference.opening import open_speaker
from retort.methods.codec_lm_data import check_made_with
from retort.models.weights import Lineage, SavedMelDiffusion, read_saved
from retort.models.zero_shot_lineage import ZeroShotLineage
from retort.orchestration.api_key import api_key_of
from retort.orchestration.evaluate.listeners import listeners_of
from retort.run_config import EvaluateConfig, SystemConfig
from retort.store.artifact import ARTIFACT_FILE, code_version, git_commit, read_artifact


def describe_system(system: SystemConfig, config: EvaluateConfig, strings: TestStrings) -> SystemInfo:
    """What is known of a system before it speaks; refuses a foreign codec or text front-end, and bad decoding."""
    if system.endpoint is not None:
        api_key_of(system.endpoint)  # a missing key is told before anything starts
    if system.teacher is not None:
        facts_of(system.teacher)  # and so is one that is not installed
    if system.model is None:
        return SystemInfo(name=system.name, method=system.kind, role=system.role)
    speaker = open_speaker(system.model)
    facts, decoding = speaker.facts, speaker.decoding(system.decoding)
    check_made_with(facts.lineage, strings.description, who=f"system {system.name}", data=config.data)
    return SystemInfo(
        name=system.name,
        method=facts.lineage.method,
        family=facts.family,
        role=system.role,
        facts={
            "parameters": facts.parameters,
            "frozen_parameters": facts.frozen_parameters or None,
            "vocoder_parameters": facts.vocoder_parameters or None,
            "num_layers": facts.num_layers,
            "training_tokens": _training_tokens(system.model, facts.lineage),
            "guidance_scale": decoding.guidance_scale,
            "temperature": decoding.temperature,
            **decoding.guidance_apart,
        },
        listeners=listeners_of(system.model, facts.lineage),
        timbre_encoder=facts.lineage.timbre_encoder if isinstance(facts.lineage, ZeroShotLineage) else None,
    )


def check_shared_codes(config: EvaluateConfig) -> None:
    """Refuse a ``mel_reference`` that cannot have the codes of the denoisers that are compared with it.

    Raises:
        ConfigError: it is no denoiser, or another denoiser speaks through another codec LM or decodes it differently.
    """
    if config.mel_reference is None:
        return
    writers = {system.name: found for system in config.systems if (found := _writer(system)) is not None}
    if config.mel_reference not in writers:
        raise ConfigError(f"mel_reference {config.mel_reference!r} makes no mels; name a denoiser of mels")
    wanted = writers[config.mel_reference]
    for name, writer in writers.items():
        if writer != wanted:
            raise ConfigError(
                f"system {name} and mel_reference {config.mel_reference} do not share codes: their codec LMs are "
                f"{writer[0]} decoded by {writer[1]}, and {wanted[0]} decoded by {wanted[1]}"
            )


def _writer(system: SystemConfig) -> tuple[str, CodecLMDecoding] | None:
    """The codec LM of a denoiser, and how it is decoded; None of what is no denoiser."""
    saved = None if system.model is None else read_saved(system.model)
    match saved, system.decoding:
        case SavedMelDiffusion(), MelDiffusionDecoding(lm=lm):
            return saved.lineage.lm_fingerprint, lm
        case SavedMelDiffusion(), _:
            return saved.lineage.lm_fingerprint, CodecLMDecoding()
        case _:
            return None


def _training_tokens(folder: Path, lineage: Lineage) -> int | None:
    """Tokens that the model's own training saw; None where its record does not say."""
    if lineage.method == "layer_pruning":
        return 0
    if not (folder / ARTIFACT_FILE).is_file():
        return None
    tokens = read_artifact(folder, verify=False).info.metrics.get("training_tokens")
    return tokens if isinstance(tokens, int) else None


def note_of(config: EvaluateConfig, infos: Sequence[SystemInfo], absent: Sequence[str] = ()) -> str | None:
    """What must be said beside the figures: weak judges, judges that are not here, and judges with a part in it."""
    notes = list(absent)
    if config.split == "train":
        notes.append(
            "The strings were seen in training: good for choosing between candidates that saw them, for nothing else."
        )
    kinds = {recogniser.kind for recogniser in config.listening}
    embedded = ["recogniser"] * ("pocketsphinx" in kinds)
    embedded += ["speaker encoder"] * (getattr(config.speaker_encoder, "kind", "") == "resemblyzer")
    if embedded:
        notes.append(
            f"Mini-scale, smoke tier: small models, scored by the embedded {' and '.join(embedded)}; "
            "not comparable with published numbers."
        )
    judges = {recogniser_name(recogniser) for recogniser in config.listening}
    parts = {info.name: sorted(judges & set(info.listeners)) for info in infos if judges & set(info.listeners)}
    if parts:
        told = "; ".join(
            f"{name} {info.listeners[name]} of {info.name}" for info in infos for name in parts.get(info.name, ())
        )
        alone = all(judges <= set(names) for names in parts.values())
        cure = " No other recogniser listened: add one to `recognisers`." if alone else ""
        notes.append(
            f"Judges had a part in what they judge, on other strings ({told}): it may be fitted to them.{cure}"
        )
    voices_by = None if config.speaker_encoder is None else encoder_name(config.speaker_encoder)
    taught = [info.name for info in infos if voices_by is not None and info.timbre_encoder == voices_by]
    if taught:
        notes.append(
            f"{voices_by} judges voices, and {', '.join(taught)} learned from it: their likeness by it is no proof. "
            "Give another `speaker_encoder`."
        )
    if config.naturalness:
        notes.append(
            f"{' and '.join(scorer.kind for scorer in config.naturalness)}: guesses of models, not MOS; nobody voted."
        )
    return " ".join(notes) or None


def environment_of(config: EvaluateConfig, strings: TestStrings) -> dict[str, Any]:
    """Versions, hardware and fingerprints."""
    return {
        "retort": code_version(),
        "git_commit": git_commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": _processor(),
        "precision": config.precision,
        "threads": config.speed.threads if config.speed else config.pool.threads_per_worker,
        "codec": strings.description.codec_fingerprint,
        "text": strings.description.text_fingerprint,
        "seed": config.seed,
        "endpoints": {s.name: s.endpoint.asked for s in config.systems if s.endpoint is not None},
        "teachers": {s.name: _teacher_of(s.teacher) for s in config.systems if s.teacher is not None},
        "decodings": {s.name: s.decoding.model_dump(mode="json") for s in config.systems if s.decoding is not None},
    }


def _teacher_of(config: HibariConfig | CommandConfig | CallableConfig) -> str:
    facts = facts_of(config)
    return f"{facts.name} {facts.fingerprint}"


def _processor() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
