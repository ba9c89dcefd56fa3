"""The registry: promoted models by name and version. A version never changes, and an older one is never removed.

It is a folder, or a place in a store.

``REGISTRY/NAME/VERSION/`` is a committed artifact, the model's files with its card. ``REGISTRY/NAME/current.json``
names the version in use and is replaced atomically, after the version is there.
"""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from retort.errors import DataError, StorageError
from retort.location import RemotePath
from retort.store.artifact import ARTIFACT_FILE, Artifact, describe_artifact, read_artifact, write_artifact
from retort.store.commit import is_committed, read_manifest, write_json_atomic
from retort.store.manifest import MARKER_NAME
from retort.store.place import content_of, hold, is_finished, local_of, localise, store_of

CARD_FILE, CARD_TEXT_FILE = "card.json", "card.md"
POINTER_FILE = "current.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def check_name(name: str) -> None:
    """Refuse what is no name for a model.

    Raises:
        DataError: it does not fit for a folder.
    """
    if not _NAME.fullmatch(name):
        raise DataError(
            f"{name!r} is no name for a model: names are letters, digits, '.', '_' and '-', at most 128, and begin "
            "with one of the first two"
        )


@dataclass(frozen=True)
class Card:
    """A model card: the tree of ``card.json``, and the same for people to read."""

    tree: Mapping[str, Any]
    text: str


@dataclass(frozen=True)
class Current:
    """The version of a name that is in use."""

    name: str
    version: int
    path: Path
    promoted_at: str
    """UTC, ISO 8601."""


class Registry:
    """Promoted models in a folder or a store.

    Args:
        folder: it need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        """Names with a version in use, sorted."""
        return sorted(name for name, *rest in self._files() if rest == [POINTER_FILE])

    def versions(self, name: str) -> list[int]:
        """Versions of a name, the oldest first."""
        marked = (parts for parts in self._files() if len(parts) == 3 and parts[2] == MARKER_NAME)
        return sorted(int(version) for found, version, _ in marked if found == name and version.isdigit())

    def current(self, name: str) -> Current:
        """The version in use.

        Raises:
            DataError: there is no such name, or its pointer is damaged; what there is, is named.
        """
        found = read_pointer(self.folder / name)
        if found is None:
            there = ", ".join(self.names()) or "nothing"
            raise DataError(f"{self.folder} has no model {name!r}; it has {there}")
        return found

    def card(self, name: str) -> dict[str, Any]:
        """``card.json`` of the version in use."""
        tree: dict[str, Any] = json.loads(content_of(self.current(name).path / CARD_FILE) or b"{}")
        return tree

    def add(self, name: str, source: Artifact, card: Card, *, evaluation: str, system: str) -> Artifact:
        """Add a model as the next version of a name and put it into use.

        The same model as the same system of an evaluation is not added twice: its version is put into use.

        Args:
            name: under which it is served.
            source: the model.
            card: what is known of it.
            evaluation: fingerprint of the evaluation that its card quotes.
            system: what it is called there, which tells how it decodes.

        Raises:
            DataError: the name does not fit for a folder.
            StorageError: another promotion is writing, or the folder cannot be written.
        """
        inputs = {**source.info.inputs, "promoted": source.fingerprint, "evaluation": evaluation, "system": system}
        check_name(name)
        with hold(self.folder / name) as held:
            there = self.versions(name)
            version = next((v for v in there if self._inputs(name, v) == inputs), None)
            if version is None:
                version = max(there, default=0) + 1
                info = describe_artifact(
                    source.info.kind,
                    name,
                    str(version),
                    inputs=inputs,
                    config=source.info.config,
                    metrics=source.info.metrics,
                )
                here = local_of(self.folder / name / str(version))
                if isinstance(self.folder, RemotePath):
                    shutil.rmtree(here, ignore_errors=True)  # what an upload that failed left
                write_artifact(here, info, lambda folder: _fill(folder, source, card))
            held.check()
            self._use(name, version)
        found = self.folder / name / str(version)
        return read_artifact(localise(found) if isinstance(found, RemotePath) else found)

    def _inputs(self, name: str, version: int) -> Mapping[str, str]:
        content = content_of(self.folder / name / str(version) / ARTIFACT_FILE) or b"{}"
        inputs: Mapping[str, str] = json.loads(content).get("inputs", {})
        return inputs

    def _files(self) -> Iterator[list[str]]:
        """Where files lie that matter here, as parts below the registry."""
        if isinstance(self.folder, RemotePath):
            for key in store_of(self.folder.bucket).list(self.folder.key):
                yield key.removeprefix(f"{self.folder.key}/").split("/")
        else:
            for pattern in (f"*/{POINTER_FILE}", f"*/*/{MARKER_NAME}"):
                for path in self.folder.glob(pattern):
                    yield list(path.relative_to(self.folder).parts)

    def _use(self, name: str, version: int) -> None:
        now = datetime.now(UTC).isoformat("T", "microseconds")
        pointer, tree = self.folder / name / POINTER_FILE, {"version": version, "promoted_at": now}
        if isinstance(pointer, RemotePath):
            store_of(pointer.bucket).write_bytes(pointer.key, json.dumps(tree).encode())
        else:
            write_json_atomic(pointer, tree)


def read_pointer(folder: Path) -> Current | None:
    """The version in use of a name's folder; None for a folder that is no name's.

    Raises:
        DataError: the pointer is damaged, or names a version that is not there.
    """
    path = folder / POINTER_FILE
    content = content_of(path)
    if content is None:
        return None
    version, promoted_at = pointed_at(content, str(path))
    found = Current(folder.name, version, folder / str(version), promoted_at)
    if not (is_finished(found.path) if isinstance(found.path, RemotePath) else is_committed(found.path)):
        raise DataError(f"{path} names version {found.version}, which is not there; promote the model again")
    return found


def pointed_at(content: bytes, where: str) -> tuple[int, str]:
    """Version and time of promotion in a pointer file.

    Raises:
        DataError: it is damaged.
    """
    try:
        tree = json.loads(content)
        return int(tree["version"]), str(tree["promoted_at"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where}: damaged ({error}); promote the model again") from error


def _fill(folder: Path, source: Artifact, card: Card) -> None:
    for entry in read_manifest(source.path).entries:
        if entry.path in (ARTIFACT_FILE, CARD_FILE, CARD_TEXT_FILE):
            continue
        target = folder / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(source.path / entry.path, target)
        except OSError as error:
            raise StorageError(f"{source.path / entry.path}: cannot be copied: {error.strerror}") from error
    write_json_atomic(folder / CARD_FILE, dict(card.tree))
    (folder / CARD_TEXT_FILE).write_text(card.text, encoding="utf-8")
