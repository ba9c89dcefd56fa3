"""Splits that do not move when the corpus grows, and the check that nothing leaks between them."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from retort.config import Config
from retort.data.utterance import Utterance


class SplitConfig(Config):
    """How utterances are divided where the corpus does not say: by what, and which shares are held out.

    ``by`` keeps together what must not be split: nothing (``utterance``), a ``speaker``, or equal ``text``.
    """

    by: Literal["utterance", "speaker", "text"] = "utterance"
    test_fraction: float = Field(default=0.05, ge=0, lt=1)
    validation_fraction: float = Field(default=0.02, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)

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


def assign_split_by_speaker(speaker: str, *, test_fraction: float, validation_fraction: float, seed: int) -> str:
    """Return the split of all utterances of a speaker; the fractions then count speakers, not utterances."""
    return assign_split(
        f"speaker:{speaker}", test_fraction=test_fraction, validation_fraction=validation_fraction, seed=seed
    )


def with_splits(utterances: Iterable[Utterance], config: SplitConfig) -> Iterator[Utterance]:
    """Yield the utterances with a split each; a split that the corpus gave is kept."""
    keys = {"utterance": lambda row: row.id, "speaker": lambda row: f"speaker:{row.speaker}", "text": _text_key}
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


def _text_key(row: Utterance) -> str:
    return "text:" + " ".join(row.text.lower().split())


@dataclass(frozen=True)
class Leak:
    """Two utterances of different splits that share what they should not."""

    kind: Literal["text_and_speaker", "audio", "speaker"]
    first_id: str
    first_split: str
    second_id: str
    second_split: str


def check_leaks(
    utterances: Iterable[Utterance], *, allow_speaker_overlap: bool = True, hash_files: bool = True
) -> list[Leak]:
    """Find what two splits share: text and speaker, audio, and, unless allowed, a speaker (once for each pair).

    Audio is compared by the hash of its encoded bytes; without ``hash_files``, files are compared by their path.
    Utterances without a split are passed over. Each is compared with the first of its kind in every other split.
    """
    seen: dict[tuple[str, str], dict[str, str]] = {}
    speaker_pairs: set[tuple[str, frozenset[str]]] = set()
    leaks: list[Leak] = []
    for row in utterances:
        if row.split is None:
            continue
        for kind, key in _keys(row, hash_files=hash_files, speakers=not allow_speaker_overlap):
            firsts = seen.setdefault((kind, key), {})
            for split, first_id in firsts.items():
                if split == row.split:
                    continue
                pair = (key, frozenset((split, row.split)))
                if kind != "speaker" or pair not in speaker_pairs:
                    leaks.append(Leak(kind, first_id, split, row.id, row.split))
                    speaker_pairs.update({pair} if kind == "speaker" else ())
            firsts.setdefault(row.split, row.id)
    return leaks


def _keys(
    row: Utterance, *, hash_files: bool, speakers: bool
) -> Iterator[tuple[Literal["text_and_speaker", "audio", "speaker"], str]]:
    yield "text_and_speaker", f"{row.speaker}\n{_text_key(row)}"
    yield "audio", f"{_audio_key(row.audio, hash_files)} {row.start_s} {row.end_s}"
    if speakers:
        yield "speaker", row.speaker


def _audio_key(audio: Path | bytes, hash_files: bool) -> str:
    if isinstance(audio, bytes):
        return hashlib.sha256(audio).hexdigest()
    if not hash_files:
        return str(audio.resolve())
    with audio.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
