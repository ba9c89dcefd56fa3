"""That speech says it was made by a machine: a signed statement beside the sound, a mark in it, a notice before it.

What is asked for and cannot be done is an error when the service starts, never speech without its mark.
"""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from retort.audio.audioseal import AudioSeal
from retort.audio.files import read_audio, resample
from retort.audio.signatures import Signer, Statement, Verifier, read_public_key
from retort.audio.watermark import SAMPLE_RATE, Detection, MarkStream, Samples, SpreadSpectrum, Watermark
from retort.config import Config
from retort.errors import ConfigError

COMMENT = "Synthetic speech. retort-provenance:"
"""Before the token, in a file's comment."""
_MIN_KEY_BYTES = 16
_NOTICE_HZ, _NOTICE_S, _NOTICE_LEVEL, _FADE_S = (880.0, 1318.5), 0.12, 0.2, 0.01

Whole = np.ndarray[Any, Any]


class SignatureConfig(Config):
    """A signed statement of who made the speech, in the file, or in a header where the format has no place for it."""

    key_file: Path
    """Ed25519, PEM, no password."""
    public_keys: tuple[Path, ...] = ()
    """More keys that a detector believes: those in use before, those of others."""


class SpreadSpectrumConfig(Config):
    """The watermark that needs no weights, and is weak."""

    kind: Literal["spread_spectrum"]
    key_file: Path
    """At least 16 secret bytes; whoever has them can find, forge and remove the mark."""
    level_db: float = Field(default=-22.0, ge=-40.0, le=-12.0)
    """Of the mark against the sound. Each 6 dB less need four times the length to be found."""


class AudioSealConfig(Config):
    """AudioSeal; streams begin a second later with it."""

    kind: Literal["audioseal"]
    folder: Path
    message: int = Field(default=0, ge=0, le=0xFFFF)


class TonesNotice(Config):
    """Two short tones before the speech."""

    kind: Literal["tones"]


class RecordedNotice(Config):
    """A recording before the speech, such as "this voice is artificial"."""

    kind: Literal["recording"]
    path: Path


WatermarkConfig = Annotated[SpreadSpectrumConfig | AudioSealConfig, Field(discriminator="kind")]
NoticeConfig = Annotated[TonesNotice | RecordedNotice, Field(discriminator="kind")]


class ProvenanceConfig(Config):
    """How speech is marked; each part is off unless it is given."""

    signature: SignatureConfig | None = None
    watermark: WatermarkConfig | None = None
    notice: NoticeConfig | None = None
    detect_max_bytes: int = Field(default=16 * 2**20, ge=1024)
    """Largest file that is searched for marks."""
    detect_max_seconds: float = Field(default=300.0, gt=0)

    @model_validator(mode="after")
    def _asks_for_something(self) -> "ProvenanceConfig":
        if self.signature is None and self.watermark is None:
            raise ValueError("provenance asks for nothing; give signature, watermark or both, or leave it out")
        return self

    def absolute(self) -> "ProvenanceConfig":
        """The same with absolute paths, for processes that run in another folder."""
        tree = self.model_dump()
        for part in ("signature", "watermark", "notice"):
            for name, value in (tree[part] or {}).items():
                if isinstance(value, Path):
                    tree[part][name] = value.absolute()
                elif name == "public_keys":
                    tree[part][name] = tuple(path.absolute() for path in value)
        return type(self).model_validate(tree)


@dataclass(frozen=True)
class Findings:
    """What a recording says of itself.

    Attributes:
        statement: what was signed, or None.
        is_intact: whether the samples are those that were signed; None where that was not signed, as of streams.
        watermark: of the kind that was searched for, or None.
        watermark_kind: which.
    """

    statement: Statement | None
    is_intact: bool | None
    watermark: Detection | None
    watermark_kind: str | None

    @property
    def is_marked(self) -> bool:
        """Whether the recording is proved to be marked. Where it is not, nothing is proved: marks can be lost."""
        signed = self.statement is not None and self.statement.is_valid is True and self.is_intact is not False
        return signed or (self.watermark is not None and self.watermark.is_marked)

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        told, mark = self.statement, self.watermark
        signature = None if told is None else {
            "valid": told.is_valid, "key_id": told.key_id, "intact": self.is_intact, "claims": dict(told.claims)
        }  # fmt: skip
        watermark = None if mark is None else {
            "kind": self.watermark_kind, "score": round(mark.score, 3), "threshold": mark.threshold,
            "found": mark.is_marked, "is_weak": self.watermark_kind == "spread_spectrum",
        }  # fmt: skip
        return {"marked": self.is_marked, "signature": signature, "watermark": watermark}

    def line(self) -> str:
        """For a person."""
        told, mark = self.statement, self.watermark
        said = "no signed statement"
        if told is not None:
            known = {True: "signed by", False: "a forged statement in the name of", None: "signed by the unknown key"}
            whole = {True: "unaltered", False: "but of other sound", None: "not bound to its samples"}
            said = f"{known[told.is_valid]} {told.key_id}, {whole[self.is_intact]}: {dict(told.claims)}"
        found = "no watermark was looked for"
        if mark is not None:
            is_there = "found" if mark.is_marked else "not found"
            found = f"watermark {self.watermark_kind} {is_there} (score {mark.score:.2f}, from {mark.threshold:g})"
        verdict = "marked as synthetic" if self.is_marked else "nothing is proved: marks can be lost and taken out"
        return f"{verdict}; {said}; {found}"


class Provenance:
    """What marks speech and finds the marks.

    Args:
        config: what is asked for.

    Raises:
        ConfigError: a key is no key.
        DataError: weights or the notice are missing or damaged.
        MissingRequirementError: a library is missing.
    """

    def __init__(self, config: ProvenanceConfig) -> None:
        self.config = config
        self._signer = None if config.signature is None else Signer(config.signature.key_file)
        believed = () if config.signature is None else config.signature.public_keys
        keys = [read_public_key(path) for path in believed]
        self._verifier = Verifier([*keys, *([] if self._signer is None else [self._signer.public_key])])
        self._watermark = None if config.watermark is None else open_watermark(config.watermark)
        self._notice_N = _notice(config.notice)

    def begin(self, **facts: str) -> "Marking":
        """For one utterance; ``facts`` go into the statement."""
        claims: dict[str, Any] = {"iss": "retort", "synthetic": True, "iat": int(time.time()), **facts}
        if self.config.watermark is not None:
            claims["watermark"] = self.config.watermark.kind
        stream = None if self._watermark is None else self._watermark.stream()
        return Marking(claims, self._signer, stream, self._notice_N)

    def examine(self, comment: str, samples_N: Samples) -> Findings:
        """Look for the marks.

        Args:
            comment: of the file, or the token of a header.
            samples_N: at ``SAMPLE_RATE``.
        """
        watermark = None if self._watermark is None else self._watermark.detect(samples_N)
        statement = self._verifier.read(token_in(comment))
        kind = None if self.config.watermark is None else self.config.watermark.kind
        return Findings(statement, is_intact(statement, samples_N), watermark, kind)


@dataclass
class Marking:
    """One utterance that is being marked. Every sample of it passes :meth:`push`, in order, at ``SAMPLE_RATE``."""

    claims: Mapping[str, Any]
    signer: Signer | None
    mark: MarkStream | None
    notice_N: Samples
    _digest: Any = field(default_factory=hashlib.sha256)
    _has_begun: bool = False

    def push(self, samples_N: Whole, *, is_last: bool) -> Whole:
        """16-bit samples, marked: those that are final now; the last call gives all that are left."""
        sound = samples_N.astype(np.float32) / 32767.0
        if not self._has_begun and len(sound):
            sound, self._has_begun = np.concatenate([self.notice_N, sound]), True
        if self.mark is not None:
            sound = self.mark.push(sound)
            if is_last:
                sound = np.concatenate([sound, self.mark.finish()])
        marked: Whole = np.clip(np.rint(sound * 32767.0), -32768, 32767).astype(np.int16)
        self._digest.update(marked.astype("<i2").tobytes())
        return marked

    def token(self, *, is_whole: bool = False) -> str:
        """The signed statement; of all that was said, once it ``is_whole``, and else of what it will be.

        Without a signature it is no statement, only the watermark's name.
        """
        if self.signer is None:
            return f"watermark={self.claims['watermark']}"
        bound = {"audio_sha256": self._digest.hexdigest()} if is_whole else {}
        return self.signer.sign({**self.claims, **bound})

    def comment(self, *, is_whole: bool = False) -> str:
        """The token in words for a file's comment."""
        return COMMENT + self.token(is_whole=is_whole)


def open_watermark(config: WatermarkConfig) -> Watermark:
    """The watermark of a configuration; see :class:`Provenance` for the errors."""
    match config:
        case SpreadSpectrumConfig():
            return SpreadSpectrum(_secret(config.key_file), level_db=config.level_db)
        case AudioSealConfig():
            return AudioSeal(config.folder, message=config.message)


def token_in(comment: str) -> str:
    """The token of a comment; what stands there alone is taken for one."""
    return comment.rpartition(COMMENT)[2].strip()


def is_intact(statement: Statement | None, samples_N: Samples) -> bool | None:
    """Whether these samples are the ones that a statement is about; None where it does not say."""
    signed = None if statement is None else statement.claims.get("audio_sha256")
    if signed is None:
        return None
    whole = np.clip(np.rint(samples_N * 32768.0), -32768, 32767).astype("<i2")
    return bool(signed == hashlib.sha256(whole.tobytes()).hexdigest())


def _secret(path: Path) -> bytes:
    try:
        secret = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(
            f"{path}: the key cannot be read: {error.strerror}; make one: openssl rand -hex 32"
        ) from error
    if len(secret) < _MIN_KEY_BYTES:
        raise ConfigError(f"{path}: {len(secret)} bytes; a key has {_MIN_KEY_BYTES} or more: openssl rand -hex 32")
    return secret


def _notice(config: NoticeConfig | None) -> Samples:
    match config:
        case None:
            return np.zeros(0, np.float32)
        case RecordedNotice():
            audio = read_audio(config.path)
            return np.asarray(resample(audio.samples_N, audio.sample_rate, SAMPLE_RATE).numpy())
        case TonesNotice():
            time_N = torch.arange(int(_NOTICE_S * SAMPLE_RATE)) / SAMPLE_RATE
            fade_N = (torch.minimum(time_N, _NOTICE_S - time_N) / _FADE_S).clamp(max=1.0)
            tones = [_NOTICE_LEVEL * fade_N * torch.sin(2 * torch.pi * hz * time_N) for hz in _NOTICE_HZ]
            return torch.cat([*tones, torch.zeros(int(_NOTICE_S * SAMPLE_RATE))]).numpy()
