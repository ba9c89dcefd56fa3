"""The English voices of the package ``hibari-tts`` (Apache-2.0): 7.9 MB each, one of them in its wheel."""

import hashlib
import random
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, JsonValue, model_validator

from retort.audio.files import Audio
from retort.config import Config
from retort.errors import ConfigError, MissingRequirementError, StorageError
from retort.inference.black_box.teacher import Line, TeacherFacts, Unspoken

_WEIGHTS: Mapping[str, str] = {
    "hibari.onnx": "5f70741d4e900f4e85d0037498736cc1b3e1b9a63a13546a5da1e63abf4fccd8",
    "oov.onnx": "d3cfd8122c5f172a98c8de38268bf1213ee09f2c2ae4df6e055fc6532590fe76",
    "oov_gb.onnx": "0997e3219543247de5646078d770f8ca77011d8fd0abb29fe48d12c60f53e9e1",
    "tagger.json.gz": "d2da7502284bbbe45d49e0b7ce3ce67bdab82254150f4317f1b8559b4d38d0eb",
}
"""SHA-256 of what was learned, in the wheel of 0.2.1, whoever carries it."""
_IN_THE_WHEEL = "heart"
_LICENCE = (
    "hibari-tts: Apache-2.0, and so is Kokoro-82M, from whose speech its author distilled it; "
    "neither restricts what is made of their speech"
)
_INSTALL = "pip install 'retort[english]'"

Speed = Annotated[float, Field(ge=0.5, le=2.0)]


class HibariConfig(Config):
    """A voice of hibari. Nothing is downloaded: voices beside ``heart`` are files that somebody fetched."""

    kind: Literal["hibari"]
    voices: tuple[str, ...] = Field(default=(_IN_THE_WHEEL,), min_length=1)
    """``heart`` is in the wheel. Each line is said by one of them."""
    folder: Path | None = None
    """Holds the files of the other voices, named as https://huggingface.co/maureesewilliams/hibari names them."""
    speed: Speed | tuple[Speed, Speed] = 1.0
    """1.0 is the voice's own; of a pair, each line draws one between them, so that a corpus has several tempos."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if isinstance(self.speed, tuple) and self.speed[0] > self.speed[1]:
            raise ValueError(f"speed {list(self.speed)}: the slower one comes first")
        return self


def hibari_facts(config: HibariConfig) -> TeacherFacts:
    """What it is; its files are looked at, and nothing is loaded.

    Raises:
        ConfigError: a voice is unknown, or its file is not given or not the voice's.
        MissingRequirementError: ``hibari-tts`` is not installed.
        StorageError: what was learned is not what it should be.
    """
    digests = {voice: _sha256(path) for voice, path in _files(config).items()}
    for voice, digest in digests.items():
        _check_voice(voice, digest)
    identity = hashlib.sha256(repr((sorted(digests.items()), config.speed)).encode()).hexdigest()[:16]
    name = f"hibari-tts {metadata.version('hibari-tts')}"
    return TeacherFacts(name, identity, _LICENCE, config.voices, "en")


class Hibari:
    """Says lines in this process, on one thread; the same line gives the same samples.

    Args:
        config: see there.

    Raises:
        ConfigError: see :func:`hibari_facts`.
        MissingRequirementError: the same.
        StorageError: the same.
    """

    def __init__(self, config: HibariConfig) -> None:
        hibari_facts(config)
        import hibari

        self.config, self._speakers = config, dict[str, Any]()
        for voice, path in _files(config).items():
            self._speakers[voice] = hibari.Hibari(voice=voice, model=str(path))

    def speak(self, line: Line) -> Audio:
        """See :class:`BlackBox`."""
        speaker = self._speakers[line.voice]
        samples_N = speaker(line.text, speed=self._speed(line), seed=line.seed)
        if len(samples_N) == 0:
            raise Unspoken("unspeakable_text", f"hibari makes no sound of {line.text[:80]!r}")
        return Audio(torch.from_numpy(samples_N).float().clamp(-1.0, 1.0), int(speaker.sample_rate))

    def settings(self, line: Line) -> Mapping[str, JsonValue]:
        """See :class:`BlackBox`."""
        return {"speed": self._speed(line), "seed": line.seed}

    def _speed(self, line: Line) -> float:
        match self.config.speed:
            case (slowest, fastest):
                return round(random.Random(f"speed {line.seed}").uniform(slowest, fastest), 3)
            case float(speed):
                return speed
        raise AssertionError(self.config.speed)


def _files(config: HibariConfig) -> Mapping[str, Path]:
    """The weights of each voice; what all voices share is checked.

    Raises:
        ConfigError: a voice has no file.
        MissingRequirementError: the package is not installed.
        StorageError: a file of the package is damaged.
    """
    try:
        import hibari.voices as known
    except ImportError:
        raise MissingRequirementError(f"the English voice hibari is not installed; run: {_INSTALL}") from None
    assets = Path(known.ASSETS)
    for name, expected in _WEIGHTS.items():
        found = _sha256(assets / name)
        if found != expected:
            raise StorageError(
                f"{assets / name}: SHA-256 {found[:16]}…, not {expected[:16]}…; it is damaged or of another version "
                "than 0.2.1: install hibari-tts==0.2.1 again"
            )
    files = {}
    for voice in config.voices:
        if voice not in known.VOICES:
            raise ConfigError(f"voices: hibari has no {voice!r}, only {', '.join(known.VOICES)}")
        name = known.VOICES[voice]["file"]
        if voice != _IN_THE_WHEEL and config.folder is None:
            raise ConfigError(
                f"voices: {voice!r} is not in the wheel, and nothing is downloaded; fetch {name} "
                "from https://huggingface.co/maureesewilliams/hibari, and name its folder in `folder`"
            )
        files[voice] = assets / name if voice == _IN_THE_WHEEL else (config.folder or assets) / name
    return files


def _check_voice(voice: str, digest: str) -> None:
    import hibari.voices as known

    expected = known.VOICES[voice]["sha256"]
    if digest != expected:
        raise ConfigError(
            f"voices: the file of {voice!r} has SHA-256 {digest[:16]}…, not {expected[:16]}…; fetch it again"
        )


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; correct the path") from error
