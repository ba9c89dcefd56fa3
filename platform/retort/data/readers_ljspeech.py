"""LJSpeech 1.1 and its many clones: ``metadata.csv`` (``id|text|normalised text``) and ``wavs/id.wav``.

Clones put a speaker where LJSpeech has a text (``id|speaker|text``, as Piper's), and write the path of the file where
it has an id. Which columns there are is seen from the file, and told, or said in ``columns``.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import model_validator

from retort.config import Config
from retort.data.rows import Row, read_lines, require_folder
from retort.data.second_look import SUFFIXES
from retort.data.utterance import Reject
from retort.errors import DataError
from retort.text.normalise import clean, normalise

Column = Literal["id", "text", "normalised", "speaker", "language", "ignore"]
_LAYOUT = "LJSpeech: metadata.csv with id|text|normalised text, and wavs/id.wav"
_SAMPLE = 1000
_OUTSIDE = "copy it there, or set allow_outside_root: true if you trust this corpus"


class LJSpeechConfig(Config):
    """A folder in the LJSpeech layout: one speaker and one language, unless its columns say otherwise.

    ``columns`` names those of ``metadata.csv`` in order; ``ignore`` stands for one that is not used. ``None`` sees it
    from the file. ``allow_outside_root`` takes audio that links lead to outside of the folder.
    """

    kind: Literal["ljspeech"]
    path: Path
    speaker: str = "ljspeech"
    language: str = "en"
    columns: tuple[Column, ...] | None = None
    allow_outside_root: bool = False

    @model_validator(mode="after")
    def _has_what_is_needed(self) -> "LJSpeechConfig":
        named = [name for name in self.columns or ("id", "text") if name != "ignore"]
        if len(set(named)) < len(named) or "id" not in named or not {"text", "normalised"} & set(named):
            raise ValueError("columns hold id and text (or normalised) once each; write ignore for what is not used")
        return self


def open_ljspeech(config: LJSpeechConfig) -> Iterator[Row | Reject]:
    """Check the layout and return the rows.

    Raises:
        DataError: the folder is missing or is not in this layout.
    """
    require_folder(config.path, "metadata.csv", layout=_LAYOUT)
    if not (config.path / "wavs").is_dir() and not _holds_recordings(config.path):
        raise DataError(f"{config.path}: has no wavs and no recordings; expected {_LAYOUT}")
    return _rows(config, columns_of(config))


def _holds_recordings(folder: Path) -> bool:
    return any(path.suffix in SUFFIXES for pattern in ("*", "*/*") for path in folder.glob(pattern))


def columns_of(config: LJSpeechConfig) -> tuple[Column, ...]:
    """The columns of ``metadata.csv``: as configured, or as the first thousand lines look.

    Three columns are an id, a text and its normalised form. They are not where the second holds one word a line that
    the third never says, or where the third holds the same few words for many sentences: those are speakers.
    """
    if config.columns is not None:
        return config.columns
    lines = itertools.islice(read_lines(config.path / "metadata.csv", warns=False), _SAMPLE)
    rows = [line.split("|") for _, line in lines]
    full = [row for row in rows if len(row) == 3 and row[1].strip() and row[2].strip()]
    if full and len(full) == sum(len(row) == 3 for row in rows):
        if all(len(row[1].split()) == 1 and not _says(row[2], row[1]) for row in full):
            return "id", "speaker", "text"
        names = [row[2] for row in full]
        is_few = len(full) > 1 and len(set(names)) <= len(names) // 2
        if is_few and all(len(row[2].split()) == 1 < len(row[1].split()) and not _says(row[1], row[2]) for row in full):
            return "id", "text", "speaker"
    return "id", "text", "normalised"


def _says(text: str, word: str) -> bool:
    """Whether a text holds a word, or any part of how it is said."""
    return not _words(text).isdisjoint(_words(word))


def _words(text: str) -> frozenset[str]:
    return frozenset("".join(char if char.isalnum() else " " for char in f"{clean(text)} {normalise(text)}").split())


def _rows(config: LJSpeechConfig, columns: tuple[Column, ...]) -> Iterator[Row | Reject]:
    metadata, wavs = config.path / "metadata.csv", config.path / "wavs"
    if not wavs.is_dir():
        wavs = config.path
    root = None if config.allow_outside_root else config.path
    for number, line in read_lines(metadata):
        # Quotes are part of the text here: the file was never written by a CSV writer.
        values = line.split("|")
        where = f"{metadata}:{number}"
        # Some clones lack the normalised text, in every line or in a few.
        least = len(columns) - (columns[-1] == "normalised" and "text" in columns)
        if not least <= len(values) <= len(columns):
            detail = f"{len(values)} columns; expected {'|'.join(columns)}; say which there are in `columns`"
            yield Reject("", "bad_row", detail, where)
            continue
        row = dict(zip(columns, (value.strip() for value in values), strict=False))
        name = row["id"]
        yield Row(
            _id_of(name),
            row.get("normalised") or row.get("text", ""),
            row.get("speaker") or config.speaker,
            row.get("language") or config.language,
            wavs / f"{name}.wav",
            where,
            root,
            _OUTSIDE,
        )


def _id_of(name: str) -> str:
    """The id of a recording that is named by its path: ``u01`` of ``wavs/u01.wav``."""
    path = PurePosixPath(name.replace("\\", "/"))
    if not name.endswith(SUFFIXES) and path.parts[:1] != ("wavs",):
        return name
    parts = path.with_suffix("").parts if name.endswith(SUFFIXES) else path.parts
    return "_".join(parts[1:] if parts[:1] == ("wavs",) and len(parts) > 1 else parts)
