"""LibriTTS and LibriTTS-R: ``subset/speaker/chapter/id.wav`` with ``id.normalized.txt`` and ``id.original.txt``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from retort.config import Config
from retort.data.rows import Row, read_lines, read_transcript, require_folder
from retort.data.utterance import Reject
from retort.errors import DataError

_LAYOUT = "LibriTTS: subset/speaker/chapter/id.wav, as train-clean-100/19/198/19_198_000000_000002.wav"
_SPLITS = {"train": "train", "dev": "validation", "test": "test"}


class LibriTTSConfig(Config):
    """A folder in the LibriTTS layout; ``subsets`` of None takes all that are there.

    ``skip_list`` is a file, or a folder of ``.txt`` files, that names one recording a line: LibriTTS-R's lists of
    failed restorations.
    """

    kind: Literal["libritts"]
    path: Path
    subsets: tuple[str, ...] | None = None
    text: Literal["normalized", "original"] = "normalized"
    skip_list: Path | None = None


def open_libritts(config: LibriTTSConfig) -> Iterator[Row | Reject]:
    """Check the layout and return the rows; the subset's name gives the split (train, dev, test).

    Raises:
        DataError: the folder, a named subset or the skip list is missing, or no subset is in this layout.
    """
    require_folder(config.path, *(config.subsets or ()), layout=_LAYOUT)
    names = config.subsets or tuple(path.name for path in sorted(config.path.iterdir()) if _is_subset(path))
    if not names:
        raise DataError(f"{config.path}: holds no subset such as train-clean-100; expected {_LAYOUT}")
    for name in names:
        if next((config.path / name).glob("*/*/*.wav"), None) is None:
            raise DataError(f"{config.path / name}: holds no recordings; expected {_LAYOUT}")
    return _rows(config, names, _skipped(config.skip_list))


def _is_subset(path: Path) -> bool:
    return path.is_dir() and path.name.split("-")[0] in _SPLITS


def _skipped(path: Path | None) -> frozenset[str]:
    if path is None:
        return frozenset()
    if not path.exists():
        raise DataError(f"{path}: no such file; correct `skip_list` or leave it out")
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    return frozenset(Path(line.strip()).name.split(".")[0] for file in files for _, line in read_lines(file))


def _rows(config: LibriTTSConfig, subsets: tuple[str, ...], skipped: frozenset[str]) -> Iterator[Row | Reject]:
    for subset in subsets:
        split = _SPLITS.get(subset.split("-")[0])
        for chapter in sorted(path for path in (config.path / subset).glob("*/*") if path.is_dir()):
            files = [path.name for path in chapter.iterdir() if path.name.endswith((".wav", f".{config.text}.txt"))]
            for name in sorted({file.split(".")[0] for file in files}):
                if name in skipped:
                    yield Reject(name, "skip_list", f"named in {config.skip_list}", str(chapter / f"{name}.wav"))
                else:
                    yield _row(config, chapter, name, split)


def _row(config: LibriTTSConfig, chapter: Path, name: str, split: str | None) -> Row | Reject:
    transcript = chapter / f"{name}.{config.text}.txt"
    text = read_transcript(transcript, name)
    if isinstance(text, Reject):
        return text
    return Row(name, text, chapter.parent.name, "en", chapter / f"{name}.wav", f"{transcript}:1", split=split)
