"""Whether a file carries the marks of speech, without a server."""

from pathlib import Path

from retort.audio.marked_files import raw_samples, read_marked
from retort.audio.provenance import Findings, Provenance, ProvenanceConfig
from retort.errors import DataError

_RAW = ".pcm"


def detect(file: Path, config: ProvenanceConfig, *, statement: str | None = None) -> Findings:
    """Look for the marks of ``config``.

    Args:
        file: what the service sends; raw PCM ends in ``.pcm``.
        config: with its keys.
        statement: the header that came with the sound; it counts before the file's own comment.

    Raises:
        AudioRejected: the file cannot be read as sound.
        ConfigError: a key is none.
        DataError: the file is missing, or too large.
    """
    provenance = Provenance(config)
    try:
        with file.open("rb") as stream:
            encoded = stream.read(config.detect_max_bytes + 1)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    if len(encoded) > config.detect_max_bytes:
        raise DataError(f"{file}: more than {config.detect_max_bytes} bytes; cut it, or raise detect_max_bytes")
    is_raw = file.suffix == _RAW
    marked = raw_samples(encoded) if is_raw else read_marked(encoded, max_seconds=config.detect_max_seconds)
    return provenance.examine(statement or marked.comment, marked.samples_N)
