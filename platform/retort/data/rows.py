"""What the corpus readers share: a row as the corpus states it, the checks that make it an utterance, text files."""

import logging
import math
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from retort.data.second_look import second_look
from retort.data.utterance import Reject, Utterance
from retort.errors import DataError
from retort.text.normalise import spaced

_log = logging.getLogger(__name__)

# A longer line is read in pieces, which then do not parse: a broken file costs rejects, not memory.
_MAX_LINE_BYTES = 1 << 20
# Embeddings, overrides and isolates reorder what a person sees; the marks U+200E and U+200F are left to right-to-left
# languages, which need them.
_BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_WHITE_CONTROLS = frozenset("\t\n\r")


@dataclass(frozen=True)
class Row:
    """What a corpus says of one recording, not yet checked.

    ``root`` is the folder that the audio must lie in; ``None`` lets it lie anywhere. ``outside`` says what helps
    against audio that does not, in keys of the corpus' own configuration.
    """

    id: str
    text: str
    speaker: str
    language: str
    audio: Path | bytes
    where: str
    root: Path | None = None
    outside: str = ""
    split: str | None = None
    sample_rate: int | None = None
    duration_s: float | None = None
    start_s: float | None = None
    end_s: float | None = None


def check_row(row: Row) -> Utterance | Reject:
    """Turn a row into an utterance, or say why not; the audio is looked for, not opened."""
    row = replace(row, text=spaced(row.text), audio=_found(row))
    fault = _text_fault(row) or _time_fault(row) or _audio_fault(row)
    if fault is not None:
        return Reject(printable(row.id), fault[0], printable(fault[1]), row.where)
    return Utterance(
        id=row.id,
        text=row.text.strip(),
        speaker=row.speaker,
        language=row.language,
        audio=row.audio,
        split=row.split,
        sample_rate=row.sample_rate,
        duration_s=row.duration_s,
        start_s=row.start_s,
        end_s=row.end_s,
    )


def printable(text: str) -> str:
    """Return ``text`` with control characters and lone surrogates escaped, fit for a log and for UTF-8."""
    return "".join(repr(char)[1:-1] if _is_control(char) else char for char in text)


def _text_fault(row: Row) -> tuple[str, str] | None:
    name = row.audio.name if isinstance(row.audio, Path) else ""
    fields = {
        "id": row.id, "text": row.text, "speaker": row.speaker, "language": row.language, "audio": name,
        "split": row.split or "",
    }  # fmt: skip
    for field, value in fields.items():
        control = next((char for char in value if _is_control(char)), None)
        if control is not None:
            return "control_characters", f"{field} holds U+{ord(control):04X}; remove it"
    if not row.text.strip():
        return "empty_text", "the text is empty"
    for field in ("id", "speaker", "language"):
        if not fields[field].strip():
            return "missing_field", f"{field} is empty"
    if ".." in row.id.replace("\\", "/").split("/"):
        return "bad_value", "the id climbs out of a folder, as no id of ours does; leave the .. out"
    return None


def _is_control(char: str) -> bool:
    return char in _BIDI_CONTROLS or (unicodedata.category(char) in ("Cc", "Cs") and char not in _WHITE_CONTROLS)


def _time_fault(row: Row) -> tuple[str, str] | None:
    for field in ("duration_s", "start_s", "end_s"):
        value: float | None = getattr(row, field)
        if value is not None and not (math.isfinite(value) and value >= 0):
            return "bad_value", f"{field} is {value}; times are finite and not negative"
    if row.duration_s == 0:
        return "bad_value", "duration_s is 0"
    if row.end_s is not None and row.end_s <= (row.start_s or 0.0):
        return "bad_value", f"the segment ends at {row.end_s} s, not after its start at {row.start_s or 0.0} s"
    return None


def _audio_fault(row: Row) -> tuple[str, str] | None:
    if isinstance(row.audio, bytes):
        return None if row.audio else ("missing_file", "the row holds no audio bytes")
    try:
        # Resolving comes first: whether a file exists outside the root is not the corpus' business.
        if row.root is not None and not row.audio.resolve().is_relative_to(row.root.resolve()):
            return (
                "outside_root",
                f"{row.audio} is not under {row.root}; {_seen(row)}{row.outside or 'put it there'}",
            )
        found = row.audio.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # a symlink loop, an impossible name
        return "missing_file", f"{row.audio}: {error}"
    return None if found else ("missing_file", f"{row.audio}: no such file")


def _found(row: Row) -> Path | bytes:
    """The audio where the row says it is, or where a second look under its root finds it."""
    if isinstance(row.audio, bytes) or row.root is None:
        return row.audio
    try:
        if row.audio.is_file() or not row.audio.resolve().is_relative_to(row.root.resolve()):
            return row.audio
        return second_look(row.audio, row.root) or row.audio
    except (OSError, RuntimeError, ValueError):
        return row.audio


def _seen(row: Row) -> str:
    """Says so where a file of that name is there; it is not taken, since the path names another one."""
    assert isinstance(row.audio, Path)
    assert row.root is not None
    there = second_look(row.audio, row.root)
    return "" if there is None or there.resolve() == row.audio.resolve() else f"{there} is there: correct the path, or "


def read_lines(path: Path, *, warns: bool = True) -> Iterator[tuple[int, str]]:
    """Yield line numbers (from 1) and lines without their ends; blank lines are skipped.

    Lines end with LF or CRLF only, so that U+2028 and its kin inside a text do not cut it. A byte order mark is
    dropped. A line that is not UTF-8 is read as Windows-1252 or Latin-1, with one warning a file.
    """
    warned = not warns
    with path.open("rb") as file:
        for number, raw in enumerate(iter(lambda: file.readline(_MAX_LINE_BYTES), b""), start=1):
            line, is_utf8 = _decode(raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw)
            if not is_utf8 and not warned:
                _log.warning("%s:%d is not UTF-8; lines like it are read as Windows-1252", path, number)
                warned = True
            line = line.removesuffix("\n").removesuffix("\r")
            if line.strip():
                yield number, line


def _decode(raw: bytes) -> tuple[str, bool]:
    for encoding in ("utf-8", "cp1252"):
        try:
            return raw.decode(encoding), encoding == "utf-8"
        except UnicodeDecodeError:
            continue
    return raw.decode("latin-1"), False


def read_transcript(path: Path, name: str) -> str | Reject:
    """Return the text of a transcript file on one line, or the reason why recording ``name`` has none."""
    try:
        return " ".join(line.strip() for _, line in read_lines(path))
    except FileNotFoundError:
        return Reject(name, "missing_text", f"{path}: no such file", str(path))
    except OSError as error:
        return Reject(name, "unreadable", str(error), str(path))


def require_folder(folder: Path, *parts: str, layout: str) -> None:
    """Check that ``folder`` exists and holds each of ``parts``.

    Raises:
        DataError: naming what is missing, and ``layout``, what was expected.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; unpack the corpus there, or correct `path`")
    for part in parts:
        if not (folder / part).exists():
            raise DataError(f"{folder}: has no {part}; expected {layout}")
