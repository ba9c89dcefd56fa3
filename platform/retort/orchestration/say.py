"""One sentence, in this process, without a server."""

from pathlib import Path
from typing import Any

from retort.audio.files import write_wav
from retort.errors import ConfigError, QualityGateError
from retort.inference.speech import SpeechEngine, Wish
from retort.inference.synthesizer import Request, Synthesizer
from retort.nn.guidance import NoGuidance, TwoTermGuidance
from retort.orchestration.outputs import result_of

_WHY = {
    "too_long": "did not end it within the length that its text allows",
    "loop": "repeated itself",
    "no_sound": "ended it before its first frame",
}


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

    The number format is the fastest on this machine; a seed that runs away is replaced once by another.

    Raises:
        ConfigError: the speaker is unknown, or the model must not be guided.
        DataError: ``model`` holds no model, or the text has nothing to say.
        QualityGateError: the model did not say the text properly, twice.
    """
    if not text.strip():
        raise ConfigError("the text is empty; give at least one word")
    synthesizer = Synthesizer.open(result_of(model), precision="fastest")
    scales = synthesizer.loaded.model.config.guidance_scales
    guidance = (NoGuidance() if scales or guidance_scale == 1.0 else TwoTermGuidance(scale=guidance_scale)).build()
    who = speaker or min(synthesizer.voices)
    engine = SpeechEngine(synthesizer, max_slots=1, max_conditions=len(guidance.conditions))
    wish = Wish(
        Request(text, who, seed), guidance, scale_input=guidance_scale if scales else None, is_streamed=False
    )  # fmt: skip
    engine.add(wish)
    sounds = []
    while engine.num_active:
        sounds += engine.step()
    last = sounds[-1]
    if last.outcome != "said":
        raise QualityGateError(f"the model {_WHY[last.outcome or 'no_sound']}: {text!r}; try another --seed")
    rate = synthesizer.codec.sample_rate
    write_wav(output, last.samples_N, rate)
    return {
        "output": str(output),
        "seconds": last.samples_N.numel() / rate,
        "speaker": who,
        "attempts": last.attempt + 1,
        "model": synthesizer.loaded.fingerprint,
    }
