"""Manifests: JSON lines (NeMo's among them) and CSV, with the column names that people use."""

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import Field as Setting

from retort.config import Config
from retort.data.rows import Row, read_lines
from retort.data.utterance import Reject
from retort.errors import DataError

Field = Literal[
    "id", "audio", "text", "speaker", "language", "split", "sample_rate", "duration", "start", "end"
]  # fmt: skip
Names = Mapping[Field, tuple[str, ...]]

# The first name that is there and not empty wins.
COLUMNS: Mapping[Field, tuple[str, ...]] = {
    "id": ("id", "utt_id", "utterance_id"),
    "audio": ("audio", "audio_filepath", "audio_path", "path", "wav", "file_name", "audio_file"),
    "text": ("normalized_text", "text", "sentence", "transcription", "transcript"),
    "speaker": ("speaker", "speaker_id", "client_id"),
    "language": ("language", "lang", "locale"),
    "split": ("split",),
    "sample_rate": ("sample_rate", "sampling_rate"),
    "duration": ("duration", "duration_s"),
    "start": ("offset", "start_s", "start"),
    "end": ("end_s", "end"),
}
_OUTSIDE = "set root to the folder that holds the audio, or allow_outside_root: true if you trust this corpus"
_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".ndjson")


class ManifestConfig(Config):
    """A CSV, TSV or JSON-lines file, told apart by its suffix.

    Audio paths are relative to ``root``, which is the manifest's folder unless given; a path that leaves it is
    rejected unless ``allow_outside_root``. ``speaker`` and ``language`` stand in where the manifest names none.
    ``columns`` says where something is found that goes by another name there, as ``{text: prompt}``; ``ignore`` names
    columns that are not what they are called.
    """

    kind: Literal["manifest"]
    path: Path
    root: Path | None = None
    allow_outside_root: bool = False
    speaker: str = "unknown"
    language: str = "en"
    columns: dict[Field, str] = Setting(default_factory=dict)
    ignore: tuple[str, ...] = ()


def names_of(columns: Mapping[Field, str], ignore: Sequence[str]) -> Names:
    """The names under which each field is looked for: the given one alone, or those of :data:`COLUMNS`."""
    return {
        # No column has an empty name: a field whose every name is ignored is not there.
        field: (columns[field],) if field in columns else tuple(n for n in names if n not in ignore) or ("",)
        for field, names in COLUMNS.items()
    }


def told_columns(names: Names, there: Sequence[str]) -> str:
    """Which column of those that are ``there`` each field comes from, and which are not used, in words."""
    found = {field: name for field, candidates in names.items() for name in candidates[::-1] if name in there}
    unused = [name for name in there if not any(name in candidates for candidates in names.values())]
    told = ", ".join(field if field == name else f"{field} from {name}" for field, name in found.items())
    return told + (f"; not used: {', '.join(unused)}" if unused else "")


def manifest_columns(config: ManifestConfig) -> str:
    """What was understood of the columns of a manifest, from its header or its first record."""
    if config.path.suffix in (".csv", ".tsv"):
        _, header = next(read_lines(config.path, warns=False), (0, ""))
        there = _split(header, _delimiter(header))
    else:
        first = next(_json_records(config.path), ("", {}))[1]
        there = list(first) if isinstance(first, dict) else []
    return told_columns(names_of(config.columns, config.ignore), there)


def open_manifest(config: ManifestConfig) -> Iterator[Row | Reject]:
    """Check the file and return the rows.

    Raises:
        DataError: the manifest or its root is missing, the suffix is not known, or a CSV lacks a text or audio column.
    """
    if not config.path.is_file():
        raise DataError(f"{config.path}: no such file; correct `path` of the manifest")
    if config.path.suffix not in _SUFFIXES:
        raise DataError(f"{config.path}: suffix {config.path.suffix!r}; a manifest is one of {', '.join(_SUFFIXES)}")
    if config.root is not None and not config.root.is_dir():
        raise DataError(f"{config.root}: no such folder; correct `root` of the manifest")
    if config.path.suffix in (".csv", ".tsv"):
        _check_header(config)
        return _rows(config, _csv_records(config.path))
    return _rows(config, _json_records(config.path))


def _rows(config: ManifestConfig, records: Iterator[tuple[str, dict[str, Any] | str]]) -> Iterator[Row | Reject]:
    names = names_of(config.columns, config.ignore)
    for where, record in records:
        if isinstance(record, str):
            yield Reject("", "bad_row", record, where)
            continue
        try:
            yield row_of(record, config, where, names, outside=_OUTSIDE)
        except ValueError as error:
            name = first_of(record, names["id"])
            yield Reject(str(name or ""), "bad_value", str(error), where)


def row_of(record: Mapping[str, Any], config: ManifestConfig, where: str, names: Names, *, outside: str) -> Row:
    """Read one record by the ``names`` of its columns; ``outside`` is the cure of :class:`Row`.

    Raises:
        ValueError: a value has a type that its column cannot have.
    """

    def string(field: Field) -> str:
        return _string(first_of(record, names[field]), field)

    name = string("audio")
    if not name:
        raise ValueError(f"no audio path; name it in a column {names['audio'][0]!r}")
    root = config.path.parent if config.root is None else config.root
    start_s, end_s, duration_s, rate = (
        _number(first_of(record, names[field]), field) for field in ("start", "end", "duration", "sample_rate")
    )
    if start_s is not None and end_s is None and duration_s is not None:
        end_s = start_s + duration_s  # NeMo cuts segments by offset and duration
    return Row(
        id=string("id") or _id_from_path(name, start_s),
        text=string("text"),
        speaker=string("speaker") or config.speaker,
        language=string("language") or config.language,
        audio=root / name,
        where=where,
        root=None if config.allow_outside_root else root,
        outside=outside,
        split=string("split") or None,
        sample_rate=_whole(rate, "sample_rate"),
        duration_s=duration_s,
        start_s=start_s,
        end_s=end_s,
    )


def first_of(record: Mapping[str, Any], names: Sequence[str]) -> Any:
    """Return the first value of ``record`` under ``names`` that is neither missing nor empty."""
    return next((record[name] for name in names if record.get(name) not in (None, "")), None)


def _string(value: Any, field: Field) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int) or (field == "text" and not isinstance(value, str)):
        raise ValueError(f"{field} is a {type(value).__name__}; expected a string")
    return str(value)


def _number(value: Any, field: Field) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{field} is a {type(value).__name__}; expected a number")
    try:
        return float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{field} is {str(value)[:40]!r}; expected a number") from None


def _whole(value: float | None, field: Field) -> int | None:
    if value is None:
        return None
    if not (math.isfinite(value) and value == int(value) and 0 < value < 1 << 31):
        raise ValueError(f"{field} is {value}; expected a positive whole number")
    return int(value)


def _id_from_path(name: str, start_s: float | None) -> str:
    # The whole path, since files of several speakers share their names; the offset, since segments share a file.
    path = PurePosixPath(name.replace("\\", "/"))
    parts = [part for part in path.with_suffix("").parts if part not in ("/", "..")] if path.name else [name]
    return "_".join(parts) + ("" if start_s is None else f"@{start_s:.3f}")


def _json_records(path: Path) -> Iterator[tuple[str, dict[str, Any] | str]]:
    for number, line in read_lines(path):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            record = f"not JSON: {str(error)[:100]}"
        else:
            record = record if isinstance(record, dict) else "the line is JSON, but not an object"
        yield f"{path}:{number}", record


def _check_header(config: ManifestConfig) -> None:
    path, wanted = config.path, names_of(config.columns, config.ignore)
    _, header = next(read_lines(path), (0, ""))
    columns = _split(header, _delimiter(header))
    missing: tuple[Field, ...] = ("text", "audio")
    for field in missing:
        if not set(wanted[field]) & set(columns):
            raise DataError(
                f"{path}:1: no column for the {field}, only {', '.join(columns) or 'nothing'}; "
                f"name one of them {' or '.join(wanted[field])}, or say which it is in `columns`, as {{{field}: NAME}}"
            )


def _csv_records(path: Path) -> Iterator[tuple[str, dict[str, Any] | str]]:
    lines = read_lines(path)
    _, header = next(lines)
    delimiter = _delimiter(header)
    columns = _split(header, delimiter)
    for number, line in lines:
        where = f"{path}:{number}"
        try:
            values = _split(line, delimiter)
        except csv.Error as error:
            # Line by line, so that a stray quote costs one row and not all that follow it.
            yield where, f"not CSV: {error}; a quote inside a field is written twice"
            continue
        if len(values) == len(columns):
            yield where, dict(zip(columns, values, strict=True))
        else:
            yield where, f"{len(values)} fields under {len(columns)} columns"


def _delimiter(header: str) -> str:
    return max("\t|,", key=header.count)


def _split(line: str, delimiter: str) -> list[str]:
    # Quotes mean something only between commas; files with tabs or bars were not written by a CSV writer.
    if delimiter == ",":
        return [value.strip() for value in next(csv.reader([line], strict=True, skipinitialspace=True))]
    return [value.strip() for value in line.split(delimiter)]
