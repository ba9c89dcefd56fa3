"""The English voices of the package ``hibari-tts`` (Apache-2.0), an extra: 7.9 MB each, one of them in its wheel.

A voice speaks on one thread of a CPU at some .01 of real time. :meth:`Voices.speak` can shift it, pitch and formants
together as a head of another size would: it speaks at another speed, and the samples are played at another rate, so
that the tempo stays, but for what the voice rounds its phones to. By ear of the scorers (docs/log.md, 2026-11-29), two
and four semitones down sound as natural as the voice itself, and a speaker encoder takes them for two other people.
"""

import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retort.audio.files import Audio, resample
from retort.errors import ConfigError, MissingRequirementError, StorageError

IN_THE_WHEEL = "heart"
INSTALL = "pip install 'retort[english]'"
SLOWEST, FASTEST = 0.5, 2.0
LARGEST_SHIFT = 6.0
_WEIGHTS: Mapping[str, str] = {
    "hibari.onnx": "5f70741d4e900f4e85d0037498736cc1b3e1b9a63a13546a5da1e63abf4fccd8",
    "oov.onnx": "d3cfd8122c5f172a98c8de38268bf1213ee09f2c2ae4df6e055fc6532590fe76",
    "oov_gb.onnx": "0997e3219543247de5646078d770f8ca77011d8fd0abb29fe48d12c60f53e9e1",
    "tagger.json.gz": "d2da7502284bbbe45d49e0b7ce3ce67bdab82254150f4317f1b8559b4d38d0eb",
}
"""SHA-256 of what was learned, in the wheel of 0.2.1, whoever carries it."""


def is_installed() -> bool:
    """Whether the package is there; it is not imported."""
    return importlib.util.find_spec("hibari") is not None


class Voices:
    """Some voices, opened.

    Args:
        names: ``heart`` is in the wheel; nothing is downloaded.
        folder: holds the files of the others, named as https://huggingface.co/maureesewilliams/hibari names them.

    Raises:
        ConfigError: a voice is unknown, or its file is not given or not the voice's.
        MissingRequirementError: the package is not installed.
        StorageError: a file of the package is damaged.
    """

    def __init__(self, names: Sequence[str] = (IN_THE_WHEEL,), folder: Path | None = None) -> None:
        check_voices(names, folder)
        import hibari

        files = _files(names, folder)
        self._speakers: dict[str, Any] = {
            name: hibari.Hibari(voice=name, model=str(path)) for name, path in files.items()
        }

    def speak(self, text: str, voice: str, *, speed: float = 1.0, shift: float = 0.0, seed: int = 0) -> Audio | None:
        """Say a text; the same arguments give the same samples. None if nothing sounds.

        Args:
            text: English.
            voice: one of the names.
            speed: 1.0 is the voice's own.
            shift: of pitch and formants, in semitones.
            seed: of the voice's noise.
        """
        speaker, ratio = self._speakers[voice], 2.0 ** (shift / 12.0)
        found = speaker(text, speed=speed / ratio, seed=seed)
        if len(found) == 0:
            return None
        samples_N: Tensor = torch.from_numpy(found).float()
        rate = int(speaker.sample_rate)
        if shift:
            samples_N = resample(samples_N, round(rate * ratio), rate)
        return Audio(samples_N.clamp(-1.0, 1.0), rate)


def shifted(voice: str) -> tuple[str, float]:
    """A voice's name and its shift, of ``NAME`` or ``NAME@SEMITONES``.

    Raises:
        ConfigError: what follows the mark is no number of semitones that a voice can be shifted by.
    """
    name, mark, number = voice.partition("@")
    try:
        shift = float(number) if mark else 0.0
    except ValueError:
        shift = float("nan")
    if not abs(shift) <= LARGEST_SHIFT:
        raise ConfigError(
            f"voice {voice!r}: the shift after @ is a number of semitones from {-LARGEST_SHIFT:g} to {LARGEST_SHIFT:g}"
        )
    return name, shift


def check_voices(names: Sequence[str], folder: Path | None = None) -> Mapping[str, str]:
    """Look whether the voices are there and whole, without loading them; gives the SHA-256 of each.

    Raises:
        ConfigError: a voice is unknown, or its file is not given or not the voice's.
        MissingRequirementError: the package is not installed.
        StorageError: a file of the package is damaged.
    """
    digests = {name: _sha256(path) for name, path in _files(names, folder).items()}
    import hibari.voices as known

    for name, digest in digests.items():
        expected = known.VOICES[name]["sha256"]
        if digest != expected:
            raise ConfigError(
                f"voices: the file of {name!r} has SHA-256 {digest[:16]}…, not {expected[:16]}…; fetch it again"
            )
    return digests


def _files(names: Sequence[str], folder: Path | None) -> Mapping[str, Path]:
    """The weights of each voice; what all voices share is checked."""
    try:
        import hibari.voices as known
    except ImportError:
        raise MissingRequirementError(f"the English voice hibari is not installed; run: {INSTALL}") from None
    assets = Path(known.ASSETS)
    for name, expected in _WEIGHTS.items():
        found = _sha256(assets / name) if (assets / name).is_file() else "nothing"
        if found != expected:
            raise StorageError(
                f"{assets / name}: SHA-256 {found[:16]}…, not {expected[:16]}…; it is damaged or of another version "
                "than 0.2.1: install hibari-tts==0.2.1 again"
            )
    files = {}
    for voice in names:
        if voice not in known.VOICES:
            raise ConfigError(f"voices: hibari has no {voice!r}, only {', '.join(known.VOICES)}")
        name = known.VOICES[voice]["file"]
        if voice != IN_THE_WHEEL and folder is None:
            raise ConfigError(
                f"voices: {voice!r} is not in the wheel, and nothing is downloaded; fetch {name} "
                "from https://huggingface.co/maureesewilliams/hibari, and name its folder in `folder`"
            )
        files[voice] = assets / name if voice == IN_THE_WHEEL else (folder or assets) / name
    return files


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; correct the path") from error
