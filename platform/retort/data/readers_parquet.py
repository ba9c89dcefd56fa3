"""Parquet corpora: Hugging Face's layout (``audio: {bytes, path}``), a column of bytes or paths, and our own files."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field as Setting

from retort.config import Config
from retort.data.readers_manifest import Field, ManifestConfig, Names, names_of, row_of, told_columns
from retort.data.rows import Row
from retort.data.splits import known_split
from retort.data.utterance import Reject
from retort.errors import DataError

# Few rows at a time: each holds a whole recording.
_ROWS_AT_ONCE = 32
_MOST_BYTES, _MOST_GROWTH = 64 * 2**20, 100
"""From where on a row group must not be so many times as large in memory as its file."""
_BYTES = "audio_bytes"
_OUTSIDE = "put it under that folder, or set allow_outside_root: true if you trust this corpus"


class ParquetConfig(Config):
    """A parquet file, or a folder of them; audio that is a path lies under that folder.

    ``columns`` and ``ignore`` are as those of manifests. Where the names of the files tell several splits apart, as
    ``test-00000-of-00001.parquet`` does, they are the splits of rows that name none.
    """

    kind: Literal["parquet"]
    path: Path
    allow_outside_root: bool = False
    speaker: str = "unknown"
    language: str = "en"
    columns: dict[Field, str] = Setting(default_factory=dict)
    ignore: tuple[str, ...] = ()


def parquet_columns(config: ParquetConfig) -> str:
    """What was understood of the columns, and of the names of the files."""
    import pyarrow.parquet as pq

    files = _files(config)
    there = ["audio" if name == _BYTES else name for name in pq.read_schema(files[0]).names]
    told = told_columns(names_of(config.columns, config.ignore), there)
    splits = _splits_of(config, files)
    return told + (f"; splits by the names of files: {', '.join(sorted(set(splits.values())))}" if splits else "")


def _files(config: ParquetConfig) -> list[Path]:
    return sorted(config.path.rglob("*.parquet")) if config.path.is_dir() else [config.path]


def _splits_of(config: ParquetConfig, files: Sequence[Path]) -> Mapping[Path, str]:
    """The splits that files are of by their names or those of their folders; none where they do not tell any apart."""
    found: dict[Path, str] = {}
    for file in files:
        names = [file.stem, *file.relative_to(config.path).parts[-2::-1]] if config.path.is_dir() else []
        split = next((split for split in map(known_split, names) if split), None)
        if split is not None:
            found[file] = split
    return found if len(set(found.values())) > 1 else {}


def open_parquet(config: ParquetConfig) -> Iterator[Row | Reject]:
    """Check the files and return the rows.

    Raises:
        DataError: there is no parquet file, one cannot be read, or one lacks a text or audio column.
    """
    files = _files(config)
    if not files or not files[0].is_file():
        raise DataError(f"{config.path}: no parquet file there; correct `path`")
    for file in files:
        _check_place(file, config)
        _check_columns(file, names_of(config.columns, config.ignore))
        _check_size(file)
    return _rows(config, files)


def _check_place(path: Path, config: ParquetConfig) -> None:
    """A corpus that somebody sent must not read what lies elsewhere."""
    if (
        config.path.is_dir()
        and not config.allow_outside_root
        and not path.resolve().is_relative_to(config.path.resolve())
    ):
        raise DataError(
            f"{path}: a link that leads out of {config.path}; put the file there, or say allow_outside_root: true"
        )


def _check_size(path: Path) -> None:
    """What the file says it becomes in memory, row group by row group; one that lies is not seen through."""
    import pyarrow.parquet as pq

    metadata, on_disk = pq.read_metadata(path), path.stat().st_size
    for number in range(metadata.num_row_groups):
        size = metadata.row_group(number).total_byte_size
        if size > _MOST_BYTES and size > _MOST_GROWTH * on_disk:
            raise DataError(
                f"{path}: row group {number} would take {size:,} bytes of memory, the file has {on_disk:,}; "
                "write it again in smaller row groups if that is right"
            )


def _check_columns(path: Path, wanted: Names) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns = set(pq.read_schema(path).names)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a parquet file ({error}); fetch it again or remove it") from None
    for field, names in (("text", wanted["text"]), ("audio", (*wanted["audio"], _BYTES))):
        if not columns & set(names):
            raise DataError(
                f"{path}: no column for the {field}, only {', '.join(sorted(columns))}; "
                f"name one of them {' or '.join(names)}, or say which it is in `columns`, as {{{field}: NAME}}"
            )


def _rows(config: ParquetConfig, files: list[Path]) -> Iterator[Row | Reject]:
    import pyarrow.parquet as pq

    folder = config.path if config.path.is_dir() else config.path.parent
    wanted, splits = names_of(config.columns, config.ignore), _splits_of(config, files)
    known = {name for names in wanted.values() for name in names} | {_BYTES}
    prefixes = _prefixes(folder, files)
    for path in files:
        number = 0
        manifest = ManifestConfig(
            kind="manifest",
            path=path,
            root=folder,
            allow_outside_root=config.allow_outside_root,
            speaker=config.speaker,
            language=config.language,
        )
        given = {} if path not in splits else {wanted["split"][0]: splits[path]}
        with pq.ParquetFile(path) as file:
            columns = [name for name in file.schema_arrow.names if name in known]
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns):
                for record in batch.to_pylist():
                    number += 1
                    name = f"{prefixes[path]}-{number:06d}"
                    yield _row({**given, **_without_empty(record)}, manifest, wanted, name, f"{path}:{number}")


def _prefixes(folder: Path, files: Sequence[Path]) -> Mapping[Path, str]:
    """What the ids of rows without one begin with: the file's name, with its folders where another has that name."""
    counts = Counter(file.stem for file in files)
    return {
        file: file.stem if counts[file.stem] == 1 else "_".join(file.relative_to(folder).with_suffix("").parts)
        for file in files
    }


def _row(record: dict[str, Any], config: ManifestConfig, names: Names, name: str, where: str) -> Row | Reject:
    identity, sound = names["id"][0], names["audio"][0]
    if not any(record.get(column) for column in names["id"]):
        record = {**record, identity: name}
    try:
        inline, path = _audio(record, names)
        if inline is None:
            return row_of({**record, sound: path}, config, where, names, outside=_OUTSIDE)
        # The path beside bytes is a label: it names the recording, and nothing is opened there.
        row = row_of({**record, sound: "inline"}, config, where, names, outside=_OUTSIDE)
        return Row(**{**vars(row), "audio": inline, "root": None})
    except ValueError as error:
        return Reject(name, "bad_value", str(error), where)


def _without_empty(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if value not in (None, "")}


def _audio(record: Mapping[str, Any], names: Names) -> tuple[bytes | None, str | None]:
    """Return the bytes or the path of the recording, whichever the layout gives."""
    values = [record.get(name) for name in (_BYTES, *names["audio"])]
    structs = [value for value in values if isinstance(value, dict)]
    values += [struct.get(part) for struct in structs for part in ("bytes", "path")]
    inline = next((value for value in values if isinstance(value, bytes)), None)
    return inline, next((value for value in values if isinstance(value, str) and value), None)
