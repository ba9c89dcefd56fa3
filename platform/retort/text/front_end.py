"""The text front-end: a normaliser, perhaps a phonemizer, and a tokenizer, saved with the model that was trained on it.

Training and serving open the same saved object, and its fingerprint is written into every shard and checkpoint, so
they cannot differ.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from retort.config import Config, validate
from retort.errors import ConfigError, DataError
from retort.text import espeak
from retort.text.hf_tokenizer import TOKENIZER_FILE, HFTokenizer, HFTokenizerConfig
from retort.text.normalise import NORMALISER_VERSION, normaliser, visible
from retort.text.reading import Reading, count_letters, spelled_letters
from retort.text.tokenizer import ENGLISH_CHARACTERS, IPA_CHARACTERS, CharacterTokenizer

FRONT_END_FILE = "text_front_end.json"
_MARKS = frozenset('.,;:!?"()-')


class CharactersConfig(Config):
    """Characters of the written text. Numbers are written out in English; other languages keep what they write."""

    kind: Literal["characters"]
    language: str = "en"
    normalise: bool = True
    alphabet: str = Field(default=ENGLISH_CHARACTERS, min_length=1)


class PhonemesConfig(Config):
    """IPA by espeak-ng, punctuation kept; ``voice`` names the language to espeak-ng, as ``en-us`` or ``de``."""

    kind: Literal["phonemes"]
    language: str = "en"
    normalise: bool = True
    voice: str = "en-us"


AnyTextConfig = CharactersConfig | PhonemesConfig | HFTokenizerConfig
"""What a saved front-end may be; an outside tokenizer comes by `retort import` alone."""


class TextFrontEnd:
    """Text to ids; made by :func:`build_text_front_end`, :func:`hf_front_end` or :func:`open_text_front_end`."""

    def __init__(
        self,
        config: AnyTextConfig,
        tokenizer: CharacterTokenizer | HFTokenizer,
        phonemizer: str = "",
        *,
        normaliser_version: int = NORMALISER_VERSION,
    ) -> None:
        """Join the parts.

        Args:
            config: what it is built from.
            tokenizer: gives the ids.
            phonemizer: the program with its version, on which the ids depend, or empty.
            normaliser_version: what models were trained with stays as it was; new ones take the newest.
        """
        self._normaliser_version = normaliser_version
        self._config = config
        self._tokenizer = tokenizer
        self._phonemizer = phonemizer

    @property
    def config(self) -> AnyTextConfig:
        """What it was built from."""
        return self._config

    @property
    def vocabulary_size(self) -> int:
        """Number of ids: 0 pads, 1 is the null text, 2 is unknown, the rest are the tokenizer's."""
        return self._tokenizer.vocabulary_size

    def prepare(self, text: str) -> str:
        """Return what is spoken: the normalised text, or its phonemes."""
        written = self.written(text)
        return _phonemes(written, self._config.voice) if isinstance(self._config, PhonemesConfig) else written

    def written(self, text: str) -> str:
        """Return the normalised text: what :meth:`prepare` returns, or makes phonemes of."""
        if not self._config.normalise:
            return visible(text)
        return normaliser(self._config.language, self._normaliser_version)(text)

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``.

        Raises:
            DataError: see :meth:`spoken`.
        """
        return list(self.spoken(text).ids)

    def spoken(self, text: str) -> Reading:
        """What :meth:`read` gives of a text that can be said, if only a part of it.

        Raises:
            DataError: there is nothing to speak in it, or nothing that can be read.
        """
        reading = self.read(text)
        # Punctuation has ids, yet alone it says nothing.
        if not reading.num_letters:
            raise DataError(f"there is nothing to speak in {text[:80]!r}; give it a letter or a digit")
        if not reading.says_something:
            raise DataError(
                f"none of the letters of {text[:80]!r} can be read by this text front-end ({self._named()}); write it "
                "in that language, or take a model that was trained on the language of the text"
            )
        return reading

    def read(self, text: str) -> Reading:
        """Return the ids of ``text`` with what cannot be read of it, even if that is all of it."""
        written = self.written(text)
        config = self._config
        if not isinstance(config, PhonemesConfig):
            unread = self._tokenizer.unknown(written)
            return Reading(
                tuple(self._tokenizer.encode(written)), count_letters(written), count_letters(unread), unread
            )
        # Foreign letters become phonemes, too, but those of their names: espeak-ng says "Chinese letter".
        spelled = "".join(spelled_letters(written, config.voice))
        phonemes = _phonemes(written, config.voice)
        letters = count_letters(written) if count_letters(phonemes) else 0
        unread = spelled + self._tokenizer.unknown(phonemes)
        return Reading(tuple(self._tokenizer.encode(phonemes)), letters, len(spelled), unread)

    def _named(self) -> str:
        match self._config:
            case CharactersConfig(language=language, alphabet=alphabet):
                return f"language {language}, alphabet {alphabet.strip()[:60]!r}"
            case PhonemesConfig(language=language, voice=voice):
                return f"language {language}, voice {voice}"
            case HFTokenizerConfig(language=language):
                return f"language {language}, the vocabulary of {TOKENIZER_FILE}"

    def decode(self, ids: list[int]) -> str:
        """Return the prepared text of ``ids``, in its template if any; see :meth:`CharacterTokenizer.decode`."""
        return self._tokenizer.decode(ids)

    def fingerprint(self) -> str:
        """Return a hash of everything that decides the ids: configuration, alphabet or tokenizer file, versions."""
        return hashlib.sha256(json.dumps(self._tree(), sort_keys=True).encode()).hexdigest()[:16]

    def _tree(self) -> dict[str, object]:
        return {
            "config": self._config.model_dump(mode="json"),
            "normaliser_version": self._normaliser_version,
            "phonemizer": self._phonemizer,
            "tokenizer": json.loads(self._tokenizer.to_json()),
        }

    def save(self, folder: Path) -> None:
        """Write the front-end into ``folder``, beside the weights."""
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**self._tree(), "fingerprint": self.fingerprint()}, indent=2, ensure_ascii=False)
        if isinstance(self._tokenizer, HFTokenizer):
            self._tokenizer.save(folder)
        (folder / FRONT_END_FILE).write_text(text + "\n", encoding="utf-8")


def build_text_front_end(config: CharactersConfig | PhonemesConfig) -> TextFrontEnd:
    """Build a front-end.

    Raises:
        ConfigError: espeak-ng has no such voice.
        MissingRequirementError: phonemes are asked for and espeak-ng is not installed.
    """
    match config:
        case CharactersConfig():
            return TextFrontEnd(config, CharacterTokenizer(config.alphabet))
        case PhonemesConfig():
            espeak.phonemes("a", voice=config.voice)  # a wrong voice is named here, not at the first utterance
            return TextFrontEnd(config, CharacterTokenizer(IPA_CHARACTERS), espeak.version())


def hf_front_end(content: str, config: HFTokenizerConfig) -> TextFrontEnd:
    """A front-end around the content of an outside model's ``tokenizer.json``; see :class:`HFTokenizer` for errors."""
    return TextFrontEnd(config, HFTokenizer(content, config))


def open_text_front_end(folder: Path) -> TextFrontEnd:
    """Open what :meth:`TextFrontEnd.save` wrote, and check that it would still give the same ids.

    Raises:
        DataError: the file is missing or damaged, or this installation would give other ids: both sides are shown.
    """
    path = folder / FRONT_END_FILE
    kind: Any = Annotated[AnyTextConfig, Field(discriminator="kind")]  # which no type argument describes
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        config: AnyTextConfig = validate(tree["config"], kind, where=str(path))
        tokenizer: CharacterTokenizer | HFTokenizer
        if isinstance(config, HFTokenizerConfig):
            tokenizer = HFTokenizer((folder / TOKENIZER_FILE).read_bytes().decode(), config)
        else:
            tokenizer = CharacterTokenizer.from_json(json.dumps(tree["tokenizer"]))
        stored, version = tree["fingerprint"], tree["normaliser_version"]
    except FileNotFoundError as error:
        raise DataError(f"{error.filename}: no such file; a model folder holds its text front-end") from None
    except (ValueError, KeyError, TypeError, ConfigError) as error:
        raise DataError(f"{path}: not a text front-end: {error}") from None
    phonemizer = espeak.version() if isinstance(config, PhonemesConfig) else ""
    if version not in range(1, NORMALISER_VERSION + 1):
        raise DataError(
            f"{path}: saved with version {version} of the normaliser, this installation has 1 to {NORMALISER_VERSION}; "
            "install the version of Retort that it was saved with, or a newer one"
        )
    front_end = TextFrontEnd(config, tokenizer, phonemizer, normaliser_version=version)
    if front_end.fingerprint() != stored:
        raise DataError(
            f"{path}: the text front-end was saved with fingerprint {stored} (phonemizer {tree.get('phonemizer')!r}), "
            f"but this installation gives {front_end.fingerprint()} (phonemizer {phonemizer!r}); install the versions "
            "it was saved with"
        )
    return front_end


def _phonemes(text: str, voice: str) -> str:
    """Phonemize the stretches between punctuation marks, which espeak-ng would drop; spaces stay where they were."""
    pieces = list(_stretches(text))
    spoken = iter(
        espeak.phonemes_of_all([piece for piece in pieces if piece.strip() and piece not in _MARKS], voice=voice)
    )
    joined = "".join(
        _spaced(piece, next(spoken)) if piece.strip() and piece not in _MARKS else piece for piece in pieces
    )
    return " ".join(joined.split())


def _spaced(stretch: str, phonemes: str) -> str:
    return " " * stretch.startswith(" ") + phonemes + " " * stretch.endswith(" ")


def _stretches(text: str) -> Iterator[str]:
    stretch: list[str] = []
    for char in text:
        if char in _MARKS:
            yield "".join(stretch)
            yield char
            stretch = []
        else:
            stretch.append(char)
    yield "".join(stretch)
