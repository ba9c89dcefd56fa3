"""Speak from a bundle: texts to phones, ONNX graphs to mels, and NumPy to sound; without torch.

``python speak.py "text" --voice NAME -o out.wav`` in the bundle's folder.
"""

import argparse
import json
import math
import sys
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retort.errors import ConfigError, DataError, RetortError
from retort.inference.bundle.runtimes import RUNTIMES, Graph, Runtime, open_graph
from retort.inference.bundle.sound import MEL_FLOOR, Floats, Shape, Source, filtered, griffin_lim, said_outright
from retort.inference.phone_reading import PhoneReader
from retort.text.sentences import split_text

BUNDLE_FILE, ARRAYS_FILE, VOICES_FILE = "bundle.json", "arrays.npz", "voices.npz"
SLOWEST, FASTEST = 0.25, 4.0
"""Tempos, as :class:`retort.inference.decoding.ZeroShotDecoding` has them."""
_PART_CHARACTERS = 240
_PART_STRIDE = 0x2545F4914F6CDD1D
# As in retort.nn.random.
_GOLDEN, _MIX_1, _MIX_2 = (np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


class Bundle:
    """A bundle, opened.

    Args:
        folder: that ``retort export`` wrote.
        threads: of the runtime; with one, the same request gives the same bits on one machine.
        runtime: of its graphs; None takes the one that the export chose.

    Raises:
        ConfigError: the folder holds no bundle.
        DataError: its record is damaged.
        MissingRequirementError: the runtime is not installed.
    """

    def __init__(self, folder: Path, *, threads: int = 1, runtime: Runtime | None = None) -> None:
        if not (folder / BUNDLE_FILE).is_file():
            raise ConfigError(
                f"{folder}: no {BUNDLE_FILE}; give the result folder of a `retort export` of kind: bundle"
            )
        try:
            self.facts: dict[str, Any] = json.loads((folder / BUNDLE_FILE).read_text())
        except ValueError as error:
            raise DataError(f"{folder / BUNDLE_FILE}: damaged: {error}; export the model again") from None
        self.mel = self.facts["mel"]
        self._folder, self._threads = folder, threads
        # Bundles of format 1 without a choice are of ONNX Runtime alone.
        self.runtime: Runtime = runtime or self.facts.get("runtime", "onnxruntime")
        if self.runtime not in RUNTIMES:
            raise DataError(
                f"{folder / BUNDLE_FILE}: no runtime {self.runtime!r}; it is one of {', '.join(RUNTIMES)}: export again"
            )
        self._plan, self._render = self._graph("plan"), self._graph("render")
        self._vocoder = self._graph("vocoder") if self.facts["sound"]["kind"] == "vocoder" else None
        with np.load(folder / ARRAYS_FILE) as arrays:
            self._shape = Shape.of(self.mel, arrays)
        with np.load(folder / VOICES_FILE) as arrays:
            self._voices = {
                name: (arrays[f"mel.{n}"], arrays[f"timbre.{n}"]) for n, name in enumerate(self.facts["voices"])
            }
        self.reader = PhoneReader(self.facts["voice"], self.facts["language"], tuple(self.facts["phones"]))

    @property
    def voices(self) -> tuple[str, ...]:
        """Names of the voices; the first one speaks where none is asked for."""
        return tuple(self._voices)

    def speak(
        self, text: str, voice: str | None = None, *, seed: int = 0, noise_scale: float = 0.667, tempo: float = 1.0
    ) -> Floats:
        """Samples [N] at ``mel["sample_rate"]``; a long text is said part by part.

        Raises:
            ConfigError: there is no such voice.
            DataError: nothing of the text can be said.
        """
        parts = split_text(text, _PART_CHARACTERS)
        said = [part for part in parts if self.reader.read(part).says_something] or [text]
        seeds = [(seed + number * _PART_STRIDE) % 2**63 for number in range(len(said))]
        made = [
            self.say_phones(self.reader.spoken(part).ids, voice, seed=own, noise_scale=noise_scale, tempo=tempo)
            for part, own in zip(said, seeds, strict=True)
        ]
        return np.concatenate([self.sound(mel_TM) for mel_TM, _ in made])

    def say_phones(
        self, phones: Sequence[int], voice: str | None, *, seed: int, noise_scale: float, tempo: float
    ) -> tuple[Floats, NDArray[np.int64]]:
        """Natural-log mel [T, M] and the frames of each phone [P].

        Raises:
            ConfigError: there is no such voice, or no such tempo.
        """
        if not SLOWEST <= tempo <= FASTEST:
            raise ConfigError(f"tempo is {tempo:g}; give a number from {SLOWEST:g} to {FASTEST:g}")
        found = self._voices.get(self.voices[0] if voice is None else voice)
        if found is None:
            raise ConfigError(f"no voice {voice!r}; the bundle has {', '.join(self.voices)}")
        prompt_SM, timbre_E = found
        noise_PC = normal(seed, (len(phones), self.facts["latent_dim"])) * np.float32(noise_scale)
        given = {"phones": np.array(phones), "prompt": prompt_SM, "timbre": timbre_E, "noise": noise_PC}
        adapted, timbre, log_frames_BP = self._plan({name: array[None] for name, array in given.items()})
        frames_BP = np.round(np.expm1(log_frames_BP) / np.float32(tempo)).clip(1, self.facts["longest_phone"])
        frames_BP = frames_BP.astype(np.int64)
        mask_BT = np.ones((1, int(frames_BP.sum())), bool)
        (mel_BTM,) = self._render({"adapted": adapted, "scaled_timbre": timbre, "frames": frames_BP, "mask": mask_BT})
        return mel_BTM[0], frames_BP[0]

    def sound(self, log_mel_TM: Floats) -> Floats:
        """Samples of a mel, a hop for each frame: by the bundle's vocoder, or by Griffin-Lim."""
        how = self.facts["sound"]
        said = self.vocoder_says(log_mel_TM)
        if said is None:
            return griffin_lim(log_mel_TM, self._shape, num_iterations=how["num_iterations"], seed=0)
        if how["source"] == "none":
            return said_outright(said[0], self._shape)
        head_TO, pitch_T, voiced_T = said
        noise_N = np.random.default_rng(0).standard_normal((len(pitch_T) - 1) * self._shape.hop, np.float32)
        return filtered(head_TO, log_mel_TM, Source(pitch_T, voiced_T, noise_N, how["overhang"]), self._shape)

    def vocoder_says(self, log_mel_TM: Floats) -> Sequence[Floats] | None:
        """What the graph of the vocoder says of a mel, without the batch; None where there is no vocoder."""
        if self._vocoder is None:
            return None
        reach = (self.facts["sound"]["reach"],) * 2
        padded_TM = np.pad(log_mel_TM, (reach, (0, 0)), constant_values=math.log(MEL_FLOOR))
        return [array[0] for array in self._vocoder({"mel": np.ascontiguousarray(padded_TM.T)[None]})]

    def _graph(self, name: str) -> Graph:
        return open_graph(self._folder / f"{name}.onnx", self.runtime, self._threads)


def normal(seed: int, shape: tuple[int, int]) -> Floats:
    """Standard normal noise, [*shape]; :func:`retort.nn.random.normal` of counter 0, up to the last bits."""
    with np.errstate(over="ignore"):
        row = _mix(_mix(np.array([seed], np.uint64) * _GOLDEN))
        lanes_N = np.arange(1, 2 * shape[0] * shape[1] + 1, dtype=np.uint64)
        bits_N = _mix(row + lanes_N * _GOLDEN) >> np.uint64(40)
    below_one_N = ((bits_N.astype(np.float32) + np.float32(0.5)) / np.float32(2**24)).clip(None, np.float32(1 - 2**-24))
    radius, turn = below_one_N.reshape(*shape, 2)[..., 0], below_one_N.reshape(*shape, 2)[..., 1]
    noise: Floats = np.sqrt(np.float32(-2) * np.log(radius)) * np.cos(np.float32(2 * math.pi) * turn)
    return noise


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def write_wav(path: Path, samples_N: Floats, sample_rate: int) -> None:
    """16-bit PCM; samples outside [-1, 1] are clipped."""
    with wave.open(str(path), "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(sample_rate)
        writer.writeframes(np.round(samples_N.clip(-1, 1) * 32767).astype("<i2").tobytes())


def main(folder: Path, arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Say a text.")
    parser.add_argument("text")
    parser.add_argument("--voice", help="one of the bundle's; the first one if left out")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the WAV file to write")
    parser.add_argument("--seed", type=int, default=0, help="the same seed says it in the same way")
    parser.add_argument("--noise-scale", type=float, default=0.667, help="0 says the same with every seed")
    parser.add_argument("--tempo", type=float, default=1.0, help="how much faster than the model's own")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runtime", choices=RUNTIMES, help="of the graphs; the one that was faster at the export")
    given = parser.parse_args(arguments)
    try:
        bundle = Bundle(folder, threads=given.threads, runtime=given.runtime)
        samples_N = bundle.speak(
            given.text, given.voice, seed=given.seed, noise_scale=given.noise_scale, tempo=given.tempo
        )
    except RetortError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    write_wav(given.output, samples_N, bundle.mel["sample_rate"])
    return 0
