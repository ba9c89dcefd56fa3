"""One sentence, in this process, without a server."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retort.audio.files import resample, write_wav
from retort.audio.marked_files import wav_header
from retort.audio.provenance import Marking, Provenance, ProvenanceConfig
from retort.audio.watermark import SAMPLE_RATE
from retort.errors import ConfigError, QualityGateError
from retort.inference.opening import open_speaker
from retort.inference.speaker import Request, Sound, Speaker, Wish, in_parts
from retort.store.commit import write_bytes_atomic
from retort.store.results import result_of
from retort.text.reading import shown

_log = logging.getLogger(__name__)

_PART_CHARACTERS = 240
_WHY = {
    "too_long": "did not end it within the length that its text allows",
    "loop": "repeated itself",
    "no_sound": "ended it before its first frame",
    "not_a_number": "computed something that is not a number; its weights are damaged",
}


def say(
    text: str,
    model: Path,
    output: Path,
    *,
    speaker: str | None = None,
    guidance_scale: float = 1.0,
    seed: int = 0,
    provenance: ProvenanceConfig | None = None,
) -> dict[str, Any]:
    """Synthesise ``text`` with the model of a job's output folder and write a WAV file; long texts part by part.

    The number format is the fastest on this machine; a seed that runs away is replaced once by another. With
    ``provenance`` the file is one that the service would send: marked, with a signed comment, at 24 kHz.

    Raises:
        ConfigError: the speaker is unknown, or the model must not be guided.
        DataError: ``model`` holds no model, or the text has nothing to say.
        QualityGateError: the model did not say the text properly, twice.
    """
    if not text.strip():
        raise ConfigError("the text is empty; give at least one word")
    marks = None if provenance is None else Provenance(provenance)
    talker = open_speaker(result_of(model), precision="fastest")
    decoding = talker.decoding_at(guidance_scale)
    talker.prepare(decoding)
    who = speaker or talker.voices[0]
    wish = Wish(Request(text, who, seed), decoding, is_streamed=False)
    unread = talker.read(text).unread
    if unread:
        _log.warning("the model cannot read these characters, and leaves them out: %s", shown(unread))
    parts = in_parts(wish, _PART_CHARACTERS, lambda part: talker.read(part).says_something)
    said = [_say_part(talker, part) for part in parts]
    samples_N = torch.cat([sound.samples_N for sound in said])
    if marks is None:
        write_wav(output, samples_N, talker.sample_rate)
    else:
        marking = marks.begin(fingerprint=talker.facts.fingerprint, format="wav")
        write_bytes_atomic(output, _marked_wav(samples_N, talker.sample_rate, marking))
    return {
        "output": str(output),
        "seconds": samples_N.numel() / talker.sample_rate,
        "speaker": who,
        "unread": "".join(dict.fromkeys(unread)),
        "attempts": 1 + max(sound.attempt for sound in said),
        "model": talker.facts.fingerprint,
        "is_marked": marks is not None,
    }


def _marked_wav(samples_N: torch.Tensor, sample_rate: int, marking: Marking) -> bytes:
    sound = resample(samples_N, sample_rate, SAMPLE_RATE).numpy()
    whole = np.clip(np.rint(sound * 32768.0), -32768, 32767).astype(np.int16)
    marked = marking.push(whole, is_last=True)
    return wav_header(len(marked), marking.comment(is_whole=True)) + marked.astype("<i2").tobytes()


def _say_part(talker: Speaker, part: Wish) -> Sound:
    talker.add(part)
    sounds: list[Sound] = []
    while talker.num_active:
        sounds += talker.step()
    if sounds[-1].outcome != "said":
        why = _WHY[sounds[-1].outcome or "no_sound"]
        raise QualityGateError(f"the model {why}: {part.request.text!r}; try another --seed")
    return sounds[-1]
