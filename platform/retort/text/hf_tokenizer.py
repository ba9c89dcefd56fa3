"""The tokenizer of an outside language model: its own ``tokenizer.json``, and the template that it was trained with.

Text ids here are the outside ids plus the reserved ones, without the outside ids of audio: those are codes, which text
can never be. Only the Rust library ``tokenizers`` reads the file; no code that comes with a checkpoint is ever run.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from retort.config import Config
from retort.errors import ConfigError, DataError
from retort.text.tokenizer import NUM_RESERVED, UNK

TOKENIZER_FILE = "tokenizer.json"
_SPECIAL = re.compile(r"<\|[^|<>]*\|>")


class AudioTokens(Config):
    """Which ids of an outside vocabulary are speech: ``count`` codes from ``first`` on, and the end of speech."""

    first: int = Field(ge=0)
    count: int = Field(ge=2)
    eos: int = Field(ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> "AudioTokens":
        if self.eos in self.codes:
            raise ValueError(f"eos {self.eos} is one of the codes {self.first} to {self.first + self.count - 1}")
        return self

    @property
    def codes(self) -> range:
        """Outside ids of the codes."""
        return range(self.first, self.first + self.count)

    def text_id(self, outside: int) -> int:
        """The text id of an outside id that is no code."""
        return NUM_RESERVED + (outside if outside < self.first else outside - self.count)

    def outside_id(self, text_id: int) -> int:
        """Inverse of :meth:`text_id`."""
        index = text_id - NUM_RESERVED
        return index if index < self.first else index + self.count


class HFTokenizerConfig(Config):
    """An outside tokenizer with its template; ids are outside ids.

    A sequence is ``before``, the text, ``after``, ``start``, then the codes; ``start`` is the model's input at the
    first step, so it is no part of what :meth:`HFTokenizer.encode` gives.
    """

    kind: Literal["hf_tokenizer"] = "hf_tokenizer"
    language: str = "en"
    normalise: bool = False
    """Write numbers and abbreviations out, as the other front-ends do; outside models mostly learned raw text."""
    before: tuple[int, ...]
    after: tuple[int, ...]
    start: int
    vocabulary_size: int = Field(ge=1)
    """Rows of the outside embedding, audio included."""
    audio: AudioTokens

    @model_validator(mode="after")
    def _consistent(self) -> "HFTokenizerConfig":
        around = (*self.before, *self.after)
        outside = [i for i in (*around, self.start, self.audio.eos) if not 0 <= i < self.vocabulary_size]
        if outside:
            raise ValueError(f"id {outside[0]} is not in the vocabulary of {self.vocabulary_size}")
        if self.audio.codes.stop > self.vocabulary_size:
            raise ValueError(
                f"the codes {self.audio.first} to {self.audio.codes.stop - 1} reach beyond the vocabulary of "
                f"{self.vocabulary_size}; correct audio.first or audio.count"
            )
        codes = [i for i in (*around, self.start) if i in self.audio.codes]
        if codes:
            raise ValueError(f"the template holds {codes[0]}, which is one of the codes")
        # Each of them has a row of its own in the model, for which the outside table has one row only.
        if self.start == self.audio.eos or {self.start, self.audio.eos} & set(around):
            raise ValueError(
                f"the last token of the template ({self.start}) and the end of speech ({self.audio.eos}) "
                "must differ, and must not stand elsewhere in the template"
            )
        return self


class HFTokenizer:
    """Text to ids by ``tokenizer.json``, inside the template."""

    def __init__(self, content: str, config: HFTokenizerConfig) -> None:
        """Read the tokenizer.

        Raises:
            DataError: it is damaged, or has ids beyond the model's vocabulary.
        """
        self._content, self._config = content, config
        self._tokenizer = read_tokenizer(content)
        # What a person writes is text, even where it looks like a control token; the template is added as ids.
        self._tokenizer.encode_special_tokens = True
        largest = max(self._tokenizer.get_vocab().values(), default=0)
        if largest >= config.vocabulary_size:
            raise DataError(
                f"{TOKENIZER_FILE} has ids up to {largest}, the model's vocabulary is {config.vocabulary_size}; "
                "is it another model's tokenizer?"
            )

    @property
    def vocabulary_size(self) -> int:
        """Number of text ids, the reserved ones included."""
        return NUM_RESERVED + self._config.vocabulary_size - self._config.audio.count

    def encode(self, text: str) -> list[int]:
        """Text ids of the template with ``text`` in it, up to and without its last token.

        Raises:
            DataError: the text is written so that it becomes a speech token.
        """
        config = self._config
        inner = self._tokenizer.encode(text, add_special_tokens=False).ids
        forbidden = [i for i in inner if i in config.audio.codes or i in (config.start, config.audio.eos)]
        if forbidden:
            token = self._tokenizer.id_to_token(forbidden[0])
            raise DataError(f"the text {text[:80]!r} holds the speech token {token!r}; take it out")
        return [config.audio.text_id(i) for i in (*config.before, *inner, *config.after)]

    def unknown(self, text: str) -> str:
        """The stretches of ``text`` that become the unknown token, if the vocabulary has one; bytes know everything."""
        if self._unknown_id is None:
            return ""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        pairs = zip(encoding.ids, encoding.offsets, strict=True)
        return "".join(text[start:stop] for i, (start, stop) in pairs if i == self._unknown_id)

    @cached_property
    def _unknown_id(self) -> int | None:
        model = json.loads(self._content)["model"]
        if model.get("unk_token") is not None:
            return self._tokenizer.token_to_id(model["unk_token"])  # type: ignore[no-any-return]
        return model.get("unk_id")  # type: ignore[no-any-return]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens; unknown is U+FFFD.

        Raises:
            DataError: an id is outside the vocabulary.
        """
        wrong = [i for i in ids if not 0 <= i < self.vocabulary_size]
        if wrong:
            raise DataError(f"id {wrong[0]} is outside the vocabulary of {self.vocabulary_size}")
        inner = [self._config.audio.outside_id(i) for i in ids if i >= NUM_RESERVED]
        text: str = self._tokenizer.decode(inner, skip_special_tokens=True)
        return text + "\ufffd" * sum(i == UNK for i in ids)

    def to_json(self) -> str:
        """What decides the ids, beside the configuration: a hash of the file's content."""
        return json.dumps({"kind": "hf_tokenizer", "sha256": hashlib.sha256(self._content.encode()).hexdigest()})

    def save(self, folder: Path) -> None:
        """Write ``tokenizer.json`` as it was read."""
        (folder / TOKENIZER_FILE).write_bytes(self._content.encode())


def read_tokenizer(content: str) -> Any:
    """A ``tokenizers.Tokenizer``.

    Raises:
        DataError: the content is no tokenizer.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(content)
    except Exception as error:  # noqa: BLE001 (the library raises plain Exception)
        raise DataError(f"{TOKENIZER_FILE} is not a tokenizer: {error}; copy it again from where it came") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def named_tokens(content: str) -> tuple[dict[int, str], frozenset[str]]:
    """The token of each id, and those that were added to the vocabulary as a whole."""
    tokenizer = read_tokenizer(content)
    tokens = {i: token for token, i in tokenizer.get_vocab().items()}
    return tokens, frozenset(token.content for token in tokenizer.get_added_tokens_decoder().values())


def ids_of(tokenizer: Any, piece: str | Sequence[int], *, where: str) -> tuple[int, ...]:
    """Outside ids of a piece of a template: special tokens written in it count as such.

    Raises:
        ConfigError: a token that looks like a special one is not in the vocabulary.
    """
    if not isinstance(piece, str):
        return tuple(piece)
    unknown = [token for token in _SPECIAL.findall(piece) if tokenizer.token_to_id(token) is None]
    if unknown:
        raise ConfigError(f"{where}: {unknown[0]!r} is no token of {TOKENIZER_FILE}; correct it, or give ids")
    return tuple(tokenizer.encode(piece, add_special_tokens=False).ids)


def id_of(tokenizer: Any, token: str | int, *, where: str) -> int:
    """The outside id of one token, given as text or as an id.

    Raises:
        ConfigError: the vocabulary has no such token.
    """
    if isinstance(token, int):
        return token
    found: int | None = tokenizer.token_to_id(token)
    if found is None:
        raise ConfigError(f"{where}: {token!r} is no token of {TOKENIZER_FILE}; correct it, or give its id")
    return found
