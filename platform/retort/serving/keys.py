"""API keys: a file of them, read again when it changes, compared in constant time."""

import hashlib
import hmac
from dataclasses import dataclass, field
from pathlib import Path

from retort.errors import ConfigError

MIN_KEY_LENGTH = 16


@dataclass
class ApiKeys:
    """The keys of a file: one a line; empty lines and lines that begin with ``#`` do not count.

    Keys are rotated without a restart: write the new file beside the old one and rename it. A file that cannot be read,
    or holds no key, leaves the keys as they were: a mistake must not open the door, nor lock everybody out.
    """

    path: Path
    _digests: frozenset[bytes] = frozenset()
    _seen: tuple[int, int] = field(default=(0, 0))

    def __post_init__(self) -> None:
        digests = _read(self.path)
        if not digests:
            raise ConfigError(
                f"{self.path} holds no API key; write one a line, at least {MIN_KEY_LENGTH} characters each"
            )
        self._digests, self._seen = digests, _stamp(self.path)

    def accepts(self, authorization: str | None) -> bool:
        """Whether a header ``Authorization: Bearer KEY`` carries one of the keys."""
        self._refresh()
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip())
        # Every key is compared, so that the time says nothing about which one came close.
        found = [hmac.compare_digest(given, known) for known in self._digests]
        return scheme.lower() == "bearer" and any(found)

    def _refresh(self) -> None:
        try:
            stamp = _stamp(self.path)
            if stamp == self._seen:
                return
            digests = _read(self.path)
        except (OSError, ConfigError):
            return
        if digests:
            self._digests, self._seen = digests, stamp


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_ino


def _read(path: Path) -> frozenset[bytes]:
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the file of API keys cannot be read: {error}") from error
    keys = [line for line in lines if line and not line.startswith("#")]
    short = next((index for index, key in enumerate(keys, 1) if len(key) < MIN_KEY_LENGTH), None)
    if short is not None:
        raise ConfigError(f"{path}: key {short} has fewer than {MIN_KEY_LENGTH} characters")
    return frozenset(map(_digest, keys))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
