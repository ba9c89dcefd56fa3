"""What a black-box teacher is asked to say: the lines of a run, each with an id, a split and a voice.

The plan depends on the run file and the texts alone, so it is the same in every run and for every pool.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import assert_never

from retort.data.english import EnglishTexts, Text, english_texts
from retort.data.rows import read_lines
from retort.data.splits import Split
from retort.data.utterance import Reject
from retort.errors import ConfigError, DataError
from retort.evaluation.wer import score_text
from retort.nn.random import seed_of
from retort.run_config import TextFiles
from retort.store.commit import write_bytes_atomic


@dataclass(frozen=True)
class PlannedLine:
    """One line of the plan."""

    id: str
    text: str
    split: Split
    voice: str


def plan_lines(
    texts: TextFiles | EnglishTexts, voices: Sequence[str], seed: int, held_out_voices: Sequence[str] = ()
) -> tuple[list[PlannedLine], list[Reject]]:
    """The lines in order, and the texts that may not be used.

    Args:
        texts: where they come from.
        voices: of the teacher; which says a line depends on its id and the seed.
        seed: of the run.
        held_out_voices: those of ``voices`` that say test texts alone.

    Raises:
        ConfigError: a voice that is held out is none of the teacher's, would say nothing, or no other is left.
        DataError: a file is missing, or there is no training text.
    """
    others = _others(voices, held_out_voices)
    match texts:
        case TextFiles():
            found, rejects = _from_files(texts)
        case EnglishTexts():
            found, rejects = english_texts(texts), []
        case _:
            assert_never(texts)
    lines = []
    for number, text in enumerate(found):
        name = f"speech-{number:06d}"
        saying = voices if text.split == "test" else others
        voice = saying[seed_of(seed, f"voice {name}") % len(saying)]
        lines.append(PlannedLine(name, text.text, text.split, voice))
    silent = sorted(set(held_out_voices) - {line.voice for line in lines})
    if silent:
        raise ConfigError(
            f"held_out_voices: {', '.join(silent)} would say nothing: such a voice says test texts alone, of which "
            f"there are {sum(line.split == 'test' for line in lines)}; give more of them, or hold out fewer"
        )
    return lines, rejects


def write_plan(path: Path, lines: Sequence[PlannedLine]) -> None:
    """Write it for the workers."""
    write_bytes_atomic(path, json.dumps([asdict(line) for line in lines]).encode())


def read_plan(path: Path) -> list[PlannedLine]:
    """Read what :func:`write_plan` wrote."""
    return [PlannedLine(**line) for line in json.loads(path.read_bytes())]


def _others(voices: Sequence[str], held_out: Sequence[str]) -> list[str]:
    """Voices that say training texts."""
    unknown = [voice for voice in held_out if voice not in voices]
    if unknown:
        raise ConfigError(f"held_out_voices: the teacher has no voice {unknown[0]!r}; it has {', '.join(voices)}")
    others = [voice for voice in voices if voice not in held_out]
    if not others:
        raise ConfigError("held_out_voices: no voice is left for training texts; hold out fewer, or give more voices")
    return others


def _from_files(files: TextFiles) -> tuple[list[Text], list[Reject]]:
    held_out: list[Text] = []
    for path, split in ((files.validation, "validation"), (files.test, "test")):
        if path is not None:
            held_out += [Text(line, split) for _, line in _lines(path)]  # type: ignore[arg-type]
    keys = {score_text(text.text) for text in held_out}
    train: list[Text] = []
    rejects: list[Reject] = []
    for number, line in _lines(files.train):
        if score_text(line) in keys:
            place = f"{files.train}:{number}"
            rejects.append(Reject(place, "held_out_text", "the same text is held out", place))
        else:
            train.append(Text(line, "train"))
    if not train:
        raise DataError(f"{files.train}: {len(rejects)} texts, all of them held out; give others")
    return [*train, *held_out], rejects


def _lines(path: Path) -> list[tuple[int, str]]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; texts are files with one utterance a line")
    return [(number, line.strip()) for number, line in read_lines(path)]
