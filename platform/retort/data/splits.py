"""Splits that do not move when the corpus grows."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Literal, Self

from pydantic import Field, model_validator

from retort.config import Config
from retort.data.utterance import Utterance

Split = Literal["train", "validation", "test"]
_NAMES: Mapping[str, Split] = {
    "train": "train", "training": "train", "test": "test", "testing": "test", "dev": "validation",
    "development": "validation", "val": "validation", "valid": "validation", "validation": "validation",
}  # fmt: skip


def known_split(name: str, names: Mapping[str, Split] = MappingProxyType({})) -> Split | None:
    """The split that a corpus means by ``name``, such as ``dev`` or ``train.clean.100``; None where nobody knows.

    Args:
        name: as the corpus writes it.
        names: what a person says that names mean; they count first.
    """
    if name in names:
        return names[name]
    word = re.match(r"[a-z]*", name.strip().lower())
    return _NAMES.get(word[0]) if word else None


class SplitConfig(Config):
    """How utterances are divided where the corpus does not say: by what, and which shares are held out.

    ``by`` keeps together what must not be split: nothing (``utterance``), a ``speaker``, equal ``text``, or the
    segments of one ``recording``. Where the corpus itself puts into several splits what ``by`` keeps together, it is
    refused (:mod:`retort.data.leaks`).
    """

    by: Literal["utterance", "speaker", "text", "recording"] = "utterance"
    test_fraction: float = Field(default=0.05, ge=0, lt=1)
    validation_fraction: float = Field(default=0.02, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)
    names: dict[str, Split] = Field(default_factory=dict)
    """What the corpus calls its splits, where that is not understood by itself, as ``{held_out: test}``."""
    allow_speaker_overlap: bool | None = None
    """Whether a speaker may be in several splits. ``None`` refuses it with ``by: speaker``, and where a corpus of
    several speakers names its own splits, but for the digit corpora, where all speakers are everywhere by design."""

    @model_validator(mode="after")
    def _something_to_train_on(self) -> Self:
        if self.test_fraction + self.validation_fraction >= 1:
            raise ValueError("test_fraction and validation_fraction leave nothing to train on; their sum is below 1")
        return self


def assign_split(id: str, *, test_fraction: float, validation_fraction: float, seed: int) -> str:  # noqa: A002
    """Return ``train``, ``validation`` or ``test`` for an id, by its hash: no other row can change it.

    A larger ``test_fraction`` keeps every test id in test.
    """
    digest = hashlib.blake2b(f"{seed}:{id}".encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    if place < test_fraction:
        return "test"
    return "validation" if place < test_fraction + validation_fraction else "train"


def with_splits(utterances: Iterable[Utterance], config: SplitConfig) -> Iterator[Utterance]:
    """Yield the utterances with a split each; a split that the corpus gave is kept."""
    keys = {
        "utterance": lambda row: row.id,
        "speaker": lambda row: f"speaker:{row.speaker}",
        "text": text_key,
        "recording": recording_key,
    }
    for row in utterances:
        if row.split is not None:
            yield row
            continue
        split = assign_split(
            keys[config.by](row),
            test_fraction=config.test_fraction,
            validation_fraction=config.validation_fraction,
            seed=config.seed,
        )
        yield replace(row, split=split)


def text_key(row: Utterance) -> str:
    """Equal for texts that ``by: text`` keeps together: those that differ in case or white space alone."""
    return "text:" + " ".join(row.text.lower().split())


def recording_key(row: Utterance) -> str:
    """Equal for segments of one recording: of one file, or of the same bytes."""
    if isinstance(row.audio, bytes):
        # Rows whose sound is made later hold none, and each is its own.
        return f"recording:{hashlib.sha256(row.audio).hexdigest() if row.audio else row.id}"
    return f"recording:{row.audio}"
