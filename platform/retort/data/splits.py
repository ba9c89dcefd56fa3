"""Splits that do not move when the corpus grows."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Literal, Self

from pydantic import Field, model_validator

from retort.config import Config
from retort.data.utterance import Utterance


class SplitConfig(Config):
    """How utterances are divided where the corpus does not say: by what, and which shares are held out.

    ``by`` keeps together what must not be split: nothing (``utterance``), a ``speaker``, or equal ``text``. Where the
    corpus itself puts into several splits what ``by`` keeps together, it is refused (:mod:`retort.data.leaks`).
    """

    by: Literal["utterance", "speaker", "text"] = "utterance"
    test_fraction: float = Field(default=0.05, ge=0, lt=1)
    validation_fraction: float = Field(default=0.02, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)
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
    keys = {"utterance": lambda row: row.id, "speaker": lambda row: f"speaker:{row.speaker}", "text": text_key}
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
