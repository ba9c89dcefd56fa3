"""What a committed folder holds: every file with its size and SHA-256.

The text form is one comment line with the size and one line that ``sha256sum -c MANIFEST.sha256`` understands for each
file, sorted by path, so that equal contents give equal bytes and the manifest's own hash is a fingerprint.
"""

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from retort.errors import StorageError

MANIFEST_NAME = "MANIFEST.sha256"
MARKER_NAME = "COMMITTED"
RESERVED_NAMES = frozenset({MANIFEST_NAME, MARKER_NAME})

_HEADER = "# retort manifest 1"
_SIZE = re.compile(r"# size (0|[1-9][0-9]*)")
_HASH = re.compile(r"([0-9a-f]{64})  (.+)")
_MAX_KEY_BYTES = 1024  # S3's limit for a key


@dataclass(frozen=True)
class ManifestEntry:
    """One file: POSIX path relative to the folder, size in bytes, SHA-256 in hexadecimal."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The files of a folder, sorted by path."""

    entries: tuple[ManifestEntry, ...]

    @property
    def total_bytes(self) -> int:
        """Bytes of all files together, without the manifest and the marker."""
        return sum(entry.size for entry in self.entries)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the text form: equal exactly when paths, sizes and contents are equal."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """The text form as stored in ``MANIFEST.sha256``."""
        lines = [_HEADER]
        for entry in self.entries:
            lines += [f"# size {entry.size}", f"{entry.sha256}  {entry.path}"]
        return ("\n".join(lines) + "\n").encode("utf-8")


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content in hexadecimal, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def safe_key(key: str) -> str:
    """Return ``key`` if it names something strictly below a root; used for store keys and for paths in manifests.

    Raises:
        StorageError: empty, absolute, longer than 1,024 bytes, or with ``.``, ``..`` or empty parts, backslashes,
            control characters or characters that are not UTF-8.
    """
    reason = _key_fault(key)
    if reason is not None:
        raise StorageError(
            f"unsafe key {key!r}: {reason}; use letters, digits, '.', '_', '-', '@' and single '/'; rename or delete "
            "what is called so already"
        )
    return key


def _key_fault(key: str) -> str | None:
    if not key:
        return "it is empty"
    try:
        if len(key.encode("utf-8")) > _MAX_KEY_BYTES:
            return f"it is longer than {_MAX_KEY_BYTES} bytes"
    except UnicodeEncodeError:
        return "it is not valid UTF-8"
    if "\\" in key or any(ord(char) < 32 or ord(char) == 127 for char in key):
        return "it holds a backslash or a control character"
    if any(part in ("", ".", "..") for part in key.split("/")):
        return "it is absolute or has an empty, '.' or '..' part"
    return None


def list_files(folder: Path) -> list[str]:
    """Sorted POSIX paths of the regular files below ``folder``, without the manifest and the marker at its top.

    Raises:
        StorageError: a symbolic link, a special file or an unsafe name lies in the folder.
    """
    return sorted(path for path in _walk(folder, "") if path not in RESERVED_NAMES)


def _walk(folder: Path, prefix: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            path = prefix + entry.name
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                yield from _walk(folder / entry.name, path + "/")
            elif stat.S_ISREG(mode):
                yield safe_key(path)
            else:
                raise StorageError(
                    f"{folder / entry.name}: neither a plain file nor a folder (a link or a special file); "
                    "store the content itself"
                )


def build_manifest(folder: Path) -> Manifest:
    """Hash every file of ``folder``; raises StorageError as :func:`list_files` does."""
    return Manifest(
        tuple(
            ManifestEntry(path, (folder / path).stat().st_size, sha256_file(folder / path))
            for path in list_files(folder)
        )
    )


def parse_manifest(content: bytes, *, where: str) -> Manifest:
    """Read the text form back; its paths are checked, for a manifest may come from an untrusted store.

    Raises:
        StorageError: not a manifest of this form, or an unsafe, reserved or repeated path in it.
    """
    entries: list[ManifestEntry] = []
    try:
        header, *lines = content.decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError:
        raise StorageError(f"{where}: the manifest is not UTF-8 text; it is damaged") from None
    if header != _HEADER or len(lines) % 2:
        raise StorageError(f"{where}: not a manifest of a version that this program knows; it is damaged or newer")
    for size_line, hash_line in zip(lines[::2], lines[1::2], strict=True):
        size, hashed = _SIZE.fullmatch(size_line), _HASH.fullmatch(hash_line)
        if size is None or hashed is None:
            raise StorageError(f"{where}: the manifest is damaged at {hash_line[:100]!r}")
        if hashed[2] in RESERVED_NAMES:
            raise StorageError(f"{where}: the manifest lists the reserved name {hashed[2]}")
        entries.append(ManifestEntry(safe_key(hashed[2]), int(size[1]), hashed[1]))
    paths = [entry.path for entry in entries]
    if paths != sorted(set(paths)):
        raise StorageError(f"{where}: the manifest's paths are not sorted and unique; it is damaged")
    return Manifest(tuple(entries))
