"""A second look at the path of a recording: corpora are moved, converted and written on other systems."""

import itertools
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".webm", ".aac", ".WAV", ".FLAC", ".MP3")
"""Of recordings, in the order in which they are tried where a path has none, or leads to nothing with its own."""
_FOLDERS = ("", "wavs", "wav", "clips", "audio")
_MOST_PARTS = 4


def second_look(audio: Path, root: Path) -> Path | None:
    """The file under ``root`` that a path means which leads to none as it stands, or None.

    Taken are, in this order of doubt: the path with slashes for backslashes and in the other form of Unicode; a suffix
    that is there twice, missing or another; a folder that is there twice (``wavs/wavs/a.wav``) or missing; the last
    parts of a path of another machine. Nothing outside ``root`` is looked at.
    """
    try:
        relative = audio.relative_to(root).as_posix()
    except ValueError:
        relative = audio.as_posix()
    parts = [part for part in PurePosixPath(relative.replace("\\", "/")).parts if part not in ("/", "..", ".")]
    if not parts or ":" in parts[-1]:
        return None
    places = [parts[start:] for start in range(max(0, len(parts) - _MOST_PARTS), len(parts))]
    if parts != places[0]:
        places.insert(0, parts)
    for place, folder in itertools.product(places, _FOLDERS):
        for name in _names(place[-1]):
            path = root.joinpath(folder, *place[:-1], name)
            if path != audio and _is_file_below(path, root):
                return path
    return None


def _is_file_below(path: Path, root: Path) -> bool:
    try:
        return path.is_file() and path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError):  # a loop of links, an impossible name
        return False


def _names(name: str) -> Iterator[str]:
    for form in dict.fromkeys((name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))):
        yield form
        stem = form
        while stem.endswith(SUFFIXES):  # u01.wav.wav
            stem = stem[: stem.rindex(".")]
            yield stem
        yield from (stem + suffix for suffix in SUFFIXES)
