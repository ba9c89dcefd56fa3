"""Artifacts: what a job leaves behind for the next one, with the record of how it was made."""

import json
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, ValidationError

import retort
from retort.config import Config
from retort.errors import DataError, StorageError
from retort.store.commit import commit_folder, is_committed, read_manifest, verify_folder, write_json_atomic
from retort.store.place import behind, pull, push, push_files

ARTIFACT_FILE = "artifact.json"

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]


class ArtifactInfo(Config):
    """The record in ``artifact.json``; an artifact is named ``name@version`` and never changes."""

    schema_version: Literal[1] = 1
    kind: _Name
    """What it is: ``corpus``, ``codec``, ``model``, ``evaluation``, ..."""
    name: _Name
    version: _Name
    inputs: dict[str, str]
    """Name of each input to its fingerprint."""
    config: dict[str, JsonValue]
    """The resolved configuration tree of the job that made it."""
    code_version: str
    git_commit: str | None
    metrics: dict[str, JsonValue]
    created_at: str
    """UTC, ISO 8601."""

    @property
    def reference(self) -> str:
        """``name@version``."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class Artifact:
    """An artifact on disk: its folder, its record, and the fingerprint that its users record as their input."""

    path: Path
    info: ArtifactInfo
    fingerprint: str


def describe_artifact(
    kind: str,
    name: str,
    version: str,
    *,
    inputs: Mapping[str, str],
    config: Mapping[str, Any],
    metrics: Mapping[str, Any] | None = None,
) -> ArtifactInfo:
    """Make the record of an artifact that is written now by this code.

    Raises:
        DataError: a name does not fit for a folder, or the configuration or a metric is not finite JSON data.
    """
    tree = {
        "kind": kind,
        "name": name,
        "version": version,
        "inputs": dict(inputs),
        "config": dict(config),
        "code_version": code_version(),
        "git_commit": git_commit(),
        "metrics": dict(metrics or {}),
        "created_at": datetime.now(UTC).isoformat("T", "seconds"),
    }
    try:
        return ArtifactInfo.model_validate_json(json.dumps(tree, allow_nan=False))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise DataError(
            f"artifact {name}@{version}: {'.'.join(map(str, fault['loc']))} is {fault['input']!r}: {fault['msg']}; "
            "names are letters, digits, '.', '_' and '-'"
        ) from None
    except (TypeError, ValueError) as error:
        raise DataError(
            f"artifact {name}@{version}: its config or metrics are not JSON data ({error}); "
            "write None for a figure that is not a number"
        ) from None


def name_for(output: Path) -> str:
    """The name of what a job leaves in ``output``: its last part, as far as names of artifacts go."""
    legible = re.sub(r"[^A-Za-z0-9._-]+", "_", output.absolute().name)
    return legible.lstrip("._-")[:128] or "output"


def write_artifact(
    folder: Path, info: ArtifactInfo, fill: Callable[[Path], None], *, replace: bool = False
) -> Artifact:
    """Commit a folder that ``fill`` wrote and that holds ``artifact.json``.

    Args:
        folder: where it will be.
        info: its record.
        fill: writes the content into the folder that it is given.
        replace: swap an artifact that is there already.

    Raises:
        StorageError: the folder exists or cannot be written.
        ResourceError: the disk is full; what was there is intact.
    """
    with commit_folder(folder, replace=replace) as temporary:
        fill(temporary)
        if (temporary / ARTIFACT_FILE).exists():
            raise StorageError(f"{folder}: the content holds {ARTIFACT_FILE}, which is written here; name it otherwise")
        write_json_atomic(temporary / ARTIFACT_FILE, info.model_dump(mode="json"))
    if behind(folder) is not None:
        # What lies beside a job's result belongs to it: whoever sees the marker sees all of it.
        push_files(folder.parent)
        push(folder)
    return Artifact(folder, info, read_manifest(folder).fingerprint)


def read_artifact(folder: Path, *, verify: bool = True) -> Artifact:
    """Open an artifact.

    Args:
        folder: where it is.
        verify: check the hash of every file; without it only the marker and the manifest are checked.

    Raises:
        StorageError: not committed, damaged (the first bad file is named), or not an artifact.
    """
    if behind(folder) is not None and not is_committed(folder):
        pull(folder)  # another node wrote it
    manifest = verify_folder(folder) if verify else read_manifest(folder)
    path = folder / ARTIFACT_FILE
    if ARTIFACT_FILE not in {entry.path for entry in manifest.entries}:
        raise StorageError(f"{folder}: committed, but not an artifact ({ARTIFACT_FILE} is missing); check the path")
    try:
        info = ArtifactInfo.model_validate_json(path.read_bytes())
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}; write the artifact again") from error
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise StorageError(
            f"{path}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}; "
            "it is not an artifact of this version, read it with the version that wrote it"
        ) from None
    return Artifact(folder, info, manifest.fingerprint)


def code_version() -> str:
    """Version of the package, with the git commit where it runs from a checkout: ``0.1.0+g0123456789ab``."""
    commit = git_commit()
    return retort.__version__ + (f"+g{commit[:12]}" if commit else "")


def git_commit() -> str | None:
    """Commit of the checkout that holds this package, ``-dirty`` added if the package was edited since, or None.

    An installed package may lie inside somebody else's repository (a virtual environment does), so a repository counts
    only if it tracks the package's own files.
    """
    package = Path(retort.__file__).parent
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git(package, "rev-parse", "HEAD")
    if not commit:
        return None
    return commit + ("-dirty" if _git(package, "status", "--porcelain", "--", ".") else "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
