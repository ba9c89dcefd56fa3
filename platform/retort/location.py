"""Where a run file says that something lies: a local path, or ``s3://bucket/key`` in a store.

A place in a store is a :class:`RemotePath`. It composes like any path (``/``, ``name``, ``parent``), and it refuses
every use as a local file: what was forgotten on the way to it fails by name, and never makes a folder called ``s3:``.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PosixPath
from typing import Annotated, Any, Self, get_args, get_origin

from retort.errors import StorageError

SCHEME = "s3"
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):(?:/(?P<rest>.*)|$)", re.DOTALL)
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


class RemotePath(PosixPath):
    """``s3://bucket/key``.

    Made by :func:`parse_location`. Its first part is ``s3:``; ``str`` writes the url.
    """

    def __str__(self) -> str:
        """The url."""
        return f"{SCHEME}://" + "/".join(self.parts[1:])

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __fspath__(self) -> str:
        """What the operating system would be asked for.

        Raises:
            StorageError: always; it is not a local file.
        """
        raise StorageError(
            f"{self}: lies in a store, and was used as a local file; give a local path here, and report this as a fault"
        )

    def absolute(self) -> Self:
        """Itself: a url does not depend on the current folder."""
        return self

    def resolve(self, strict: bool = False) -> Self:
        """Itself: there are no links in a store."""
        del strict
        return self

    def relative_to(self, *other: Any, **options: Any) -> Path:  # type: ignore[override]
        """What is left below ``other``: no place in a store any more."""
        return Path(*super().relative_to(*other, **options).parts)

    @property
    def bucket(self) -> str:
        """Name of the bucket."""
        return self.parts[1]

    @property
    def key(self) -> str:
        """What comes after the bucket; empty for the bucket itself."""
        return "/".join(self.parts[2:])


def parse_location(text: str | Path) -> Path:
    """The place that a person wrote: ``s3://bucket/key``, or else a local path. A path stays what it is.

    Raises:
        ValueError: another scheme, or a broken url; with the cure.
    """
    if isinstance(text, Path):
        return text
    found = _URL.fullmatch(text)
    if found is None:
        return Path(text)
    if found["scheme"].lower() != SCHEME:
        raise ValueError(f"{text}: {found['scheme']} is no kind of store; give a local path or s3://bucket/key")
    bucket, *parts = (found["rest"] or "").strip("/").split("/")
    if not text.startswith(f"{SCHEME}://") or not _BUCKET.fullmatch(bucket):
        raise ValueError(f"{text}: not a url of a store; expected s3://bucket/key")
    if any(part in ("", ".", "..") for part in parts) or re.search(r"[\x00-\x1f\x7f\\?#]", text):
        raise ValueError(f"{text}: the key has an empty, '.' or '..' part, or a character that keys do not have here")
    return RemotePath(f"{SCHEME}:", bucket, *parts)


def is_url(text: str) -> bool:
    """Whether a text is, or was before its slashes were joined, a url."""
    return _URL.fullmatch(text) is not None


def as_url(path: Path) -> str:
    """The url that became this path: paths keep one of its two slashes."""
    scheme, _, rest = str(path).partition(":")
    return f"{scheme}://{rest.lstrip('/')}"


def _read(value: Any, handler: Callable[[Any], Path]) -> Path:
    if isinstance(value, RemotePath):
        return value
    if isinstance(value, str | Path) and is_url(str(value)):
        return parse_location(str(value))
    return handler(value)


class _Reader:
    """How pydantic reads a :data:`Location`. The command line uses this module, and must start without pydantic."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_wrap_validator_function(_read, handler(source))


_READER = _Reader()
Location = Annotated[Path, _READER]
"""A field of a configuration that may lie in a store; a plain ``Path`` is local."""


def local_only(annotation: Any, marks: Sequence[Any] = ()) -> bool:
    """Whether a field of this type, with these marks beside it, holds paths, and none of them may lie in a store."""
    kinds = [*_parts(annotation), *marks]
    return Path in kinds and _READER not in kinds


def _parts(annotation: Any) -> Iterator[Any]:
    """Everything that a type is made of, the marks of :data:`Location` included."""
    yield annotation
    if get_origin(annotation) is Annotated:
        yield from (mark for mark in annotation.__metadata__ if mark is _READER)
        yield from _parts(annotation.__origin__)
        return
    for part in get_args(annotation):
        yield from _parts(part)
