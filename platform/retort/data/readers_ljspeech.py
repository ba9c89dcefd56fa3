"""LJSpeech 1.1 and its many clones: ``metadata.csv`` (``id|text|normalised text``) and ``wavs/id.wav``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from retort.config import Config
from retort.data.rows import Row, read_lines, require_folder
from retort.data.utterance import Reject


class LJSpeechConfig(Config):
    """A folder in the LJSpeech layout: one speaker, one language."""

    kind: Literal["ljspeech"]
    path: Path
    speaker: str = "ljspeech"
    language: str = "en"


def open_ljspeech(config: LJSpeechConfig) -> Iterator[Row | Reject]:
    """Check the layout and return the rows.

    Raises:
        DataError: the folder is missing or is not in this layout.
    """
    require_folder(
        config.path,
        "metadata.csv",
        "wavs",
        layout="LJSpeech: metadata.csv with id|text|normalised text, and wavs/id.wav",
    )
    return _rows(config)


def _rows(config: LJSpeechConfig) -> Iterator[Row | Reject]:
    metadata, wavs = config.path / "metadata.csv", config.path / "wavs"
    for number, line in read_lines(metadata):
        # Quotes are part of the text here: the file was never written by a CSV writer.
        columns = line.split("|")
        where = f"{metadata}:{number}"
        if len(columns) not in (2, 3):
            yield Reject("", "bad_row", f"{len(columns)} columns; expected id|text or id|text|normalised text", where)
            continue
        name = columns[0].strip()
        # Some clones lack the normalised text, in every line or in a few.
        text = columns[2] if len(columns) == 3 and columns[2].strip() else columns[1]
        yield Row(name, text, config.speaker, config.language, wavs / f"{name}.wav", where, root=wavs)
