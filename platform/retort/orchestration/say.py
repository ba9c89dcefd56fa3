"""One sentence, in this process, without a server."""

from pathlib import Path
from typing import Any

from retort.audio.files import write_wav
from retort.errors import ConfigError, QualityGateError
from retort.inference.sampling import SamplerConfig
from retort.inference.synthesizer import Request, Synthesizer
from retort.nn.guidance import NoGuidance, TwoTermGuidance
from retort.orchestration.outputs import result_of

SECONDS_PER_CHARACTER = 0.25
"""Longest plausible speech; above it the utterance has run away."""


def say(
    text: str,
    model: Path,
    output: Path,
    *,
    speaker: str | None = None,
    guidance_scale: float = 1.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Synthesise ``text`` with the model of a job's output folder and write a WAV file.

    Raises:
        ConfigError: the speaker is unknown, or the model must not be guided.
        DataError: ``model`` holds no model, or the text has nothing to say.
        QualityGateError: the model did not end the utterance within the length that its text allows.
    """
    if not text.strip():
        raise ConfigError("the text is empty; give at least one word")
    synthesizer = Synthesizer.open(result_of(model))
    scales = synthesizer.loaded.model.config.guidance_scales
    guidance = NoGuidance() if scales or guidance_scale == 1.0 else TwoTermGuidance(scale=guidance_scale)
    who = speaker or min(synthesizer.voices)
    frames = round((1.0 + SECONDS_PER_CHARACTER * len(text)) * synthesizer.codec.frame_rate)
    spoken = synthesizer.speak(
        [Request(text, who, seed)],
        guidance=guidance.build(),
        sampler=SamplerConfig(),
        max_frames=frames,
        scale_input=guidance_scale if scales else None,
    )[0]
    if not spoken.has_eos or not spoken.samples_N.numel():
        raise QualityGateError(f"the model did not end {text!r} within {frames} frames; try another --seed")
    write_wav(output, spoken.samples_N, spoken.sample_rate)
    return {
        "output": str(output),
        "seconds": spoken.samples_N.numel() / spoken.sample_rate,
        "frames": int(spoken.codes_KT.shape[1]),
        "speaker": who,
        "model": synthesizer.loaded.fingerprint,
    }
