"""One way into every corpus: :func:`read_corpus` streams utterances, and a reject with its reason for each bad row."""

from collections.abc import Collection, Iterator
from typing import Annotated, assert_never

from pydantic import Field

from retort.data.digits import DigitsConfig, read_digits, with_voices_here, with_voices_of
from retort.data.fsdd import FSDDConfig, open_fsdd
from retort.data.readers_libritts import LibriTTSConfig, open_libritts
from retort.data.readers_ljspeech import LJSpeechConfig, columns_of, open_ljspeech
from retort.data.readers_manifest import ManifestConfig, manifest_columns, open_manifest
from retort.data.readers_parquet import ParquetConfig, open_parquet, parquet_columns
from retort.data.readers_vctk import VCTKConfig, open_vctk
from retort.data.rows import Row, check_row
from retort.data.utterance import Reject, Utterance

CorpusConfig = Annotated[
    LJSpeechConfig | LibriTTSConfig | VCTKConfig | ManifestConfig | ParquetConfig | DigitsConfig | FSDDConfig,
    Field(discriminator="kind"),
]


def read_corpus(config: CorpusConfig) -> Iterator[Utterance | Reject]:
    """Stream a corpus in a fixed order; a bad row becomes a :class:`Reject` and never stops the stream.

    No audio is decoded. Of rows with one id the first good one is kept. Codes: bad_row (does not parse), bad_value,
    missing_field, missing_text, empty_text, control_characters, missing_file, outside_root, duplicate_id, skip_list,
    unreadable.

    Raises:
        DataError: at the call, where the corpus is missing or is not in its layout; it names the path and the cure.
    """
    return _checked(_rows(config))


def understood(config: CorpusConfig) -> str | None:
    """What was understood of a corpus' columns, in words; None where its layout leaves nothing to understand.

    Raises:
        DataError: see :func:`read_corpus`.
    """
    match config:
        case LJSpeechConfig():
            return f"metadata.csv is {'|'.join(columns_of(config))}"
        case ManifestConfig():
            return manifest_columns(config)
        case ParquetConfig():
            return parquet_columns(config)
        case LibriTTSConfig() | VCTKConfig() | FSDDConfig() | DigitsConfig():
            return None
        case _:
            assert_never(config)


def corpus_here(config: CorpusConfig) -> tuple[CorpusConfig, str | None]:
    """The corpus as this machine has it, and what must be said of that.

    Raises:
        MissingRequirementError: it needs what is not installed.
    """
    return with_voices_here(config) if isinstance(config, DigitsConfig) else (config, None)


def corpus_of(config: CorpusConfig, speakers: Collection[str]) -> CorpusConfig:
    """The corpus as it was where a token set of these speakers was made of it."""
    return with_voices_of(config, speakers) if isinstance(config, DigitsConfig) else config


def _rows(config: CorpusConfig) -> Iterator[Row | Utterance | Reject]:
    match config:
        case LJSpeechConfig():
            return open_ljspeech(config)
        case LibriTTSConfig():
            return open_libritts(config)
        case VCTKConfig():
            return open_vctk(config)
        case ManifestConfig():
            return open_manifest(config)
        case ParquetConfig():
            return open_parquet(config)
        case FSDDConfig():
            return open_fsdd(config)
        case DigitsConfig():
            return read_digits(config)
        case _:
            assert_never(config)


def _checked(rows: Iterator[Row | Utterance | Reject]) -> Iterator[Utterance | Reject]:
    seen: set[str] = set()
    for row in rows:
        result = check_row(row) if isinstance(row, Row) else row
        if isinstance(result, Utterance):
            if result.id in seen:
                where = row.where if isinstance(row, Row) else ""
                result = Reject(result.id, "duplicate_id", "an earlier row has this id; ids must differ", where)
            else:
                seen.add(result.id)
        yield result
