"""Voices that clients upload: one for each space that a model takes, and the consent; files of their own."""

import fcntl
import json
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from retort.inference.voices import CODES, Voice
from retort.serving.errors import ApiError

_ID = re.compile(r"voice_[0-9a-f]{24}")
_AUDIT, _TENSORS = "audit.jsonl", "codes.safetensors"
_SETTLED_NS = 2_000_000_000
"""How long ago a folder must have changed for its time to tell of every change; file systems count coarsely."""


@dataclass(frozen=True)
class AddedVoice:
    """What is kept of a voice beside its tensors.

    Attributes:
        id: made by the server.
        name: given by the client; for people, never a path.
        created: seconds since the epoch.
        consent: the statement that came with the sample, word for word.
        sample_sha256: of the sample's bytes, which are not kept.
    """

    id: str
    name: str
    created: int
    consent: str
    sample_sha256: str


class VoiceStore:
    """A folder of voices, which several front ends may share.

    A voice is a folder that appears whole, by a rename, and goes whole. ``audit.jsonl`` says what happened and when;
    it holds no sound and survives its voices.

    Args:
        folder: made where it is missing.
        max_voices: more are refused.
    """

    def __init__(self, folder: Path, *, max_voices: int) -> None:
        self.folder, self._max_voices = folder, max_voices
        folder.mkdir(parents=True, exist_ok=True)
        self._names: tuple[int, dict[str, str]] = (0, {})
        """When the folder had changed last, and the ids of its voices by their names."""

    def add(self, name: str, *, consent: str, sample_sha256: str, voices: Sequence[Voice]) -> AddedVoice:
        """Keep a voice.

        Args:
            name: must be new.
            consent: the statement.
            sample_sha256: of the sample.
            voices: the same voice in each space.

        Raises:
            ApiError: 409 for a name that is taken or a store that is full.
        """
        from safetensors.torch import save_file

        added = AddedVoice("voice_" + secrets.token_hex(12), name, int(time.time()), consent, sample_sha256)
        with self._alone():
            present = self.list()
            if any(other.name == name for other in present):
                raise ApiError(409, "a voice of this name exists; delete it first", param="name", code="voice_exists")
            if len(present) >= self._max_voices:
                raise ApiError(409, f"there are {len(present)} voices; delete one first", code="too_many_voices")
            partial = self.folder / f".{added.id}.partial"
            partial.mkdir()
            save_file(_flat(voices), partial / _TENSORS)
            (partial / "voice.json").write_text(json.dumps(asdict(added)))
            partial.rename(self.folder / added.id)
            self.note("created", id=added.id, sample_sha256=sample_sha256)
        return added

    def list(self) -> list[AddedVoice]:
        """All voices, the oldest first."""
        found = [voice for path in self.folder.glob("voice_*") if (voice := _read(path)) is not None]
        return sorted(found, key=lambda voice: (voice.created, voice.id))

    def id_of(self, name: str) -> str | None:
        """Id of a voice by id or name; None where there is none."""
        if _ID.fullmatch(name) and (self.folder / name).is_dir():
            return name
        changed_ns = self.folder.stat().st_mtime_ns
        if self._names[0] != changed_ns or time.time_ns() - changed_ns < _SETTLED_NS:
            self._names = (changed_ns, {voice.name: voice.id for voice in self.list()})
        return self._names[1].get(name)

    def voices(self, voice_id: str) -> dict[str, Voice]:
        """A voice by its spaces; nothing where there is none."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if not _ID.fullmatch(voice_id):
            return {}
        try:
            return _by_space(load_file(self.folder / voice_id / _TENSORS))
        except (OSError, SafetensorError):
            return {}  # deleted meanwhile

    def delete(self, voice_id: str) -> bool:
        """Remove a voice with all its files; False where there is none."""
        if not _ID.fullmatch(voice_id):
            return False
        with self._alone():
            folder = self.folder / voice_id
            if not folder.is_dir():
                return False
            # The name goes first: nobody finds half a voice.
            doomed = folder.rename(self.folder / f".{voice_id}.deleted")
            shutil.rmtree(doomed)
            self.note("deleted", id=voice_id)
        return True

    def note(self, event: str, **details: str) -> None:
        """Write a line of the audit log."""
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "event": event, **details}
        with (self.folder / _AUDIT).open("a") as log:
            log.write(json.dumps(line) + "\n")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _flat(voices: Sequence[Voice]) -> dict[str, Tensor]:
    """Tensors by their names in a file: ``SPACE`` for codes, ``SPACE/NAME`` for others."""
    return {
        voice.space if name == CODES else f"{voice.space}/{name}": tensor.contiguous()
        for voice in voices
        for name, tensor in voice.tensors.items()
    }


def _by_space(flat: Mapping[str, Tensor]) -> dict[str, Voice]:
    """What :func:`_flat` wrote."""
    tensors: dict[str, dict[str, Tensor]] = {}
    for key, tensor in flat.items():
        space, _, name = key.partition("/")
        tensors.setdefault(space, {})[name or CODES] = tensor
    return {space: Voice(space, named) for space, named in tensors.items()}


def _read(path: Path) -> AddedVoice | None:
    try:
        tree: dict[str, Any] = json.loads((path / "voice.json").read_text())
        return AddedVoice(**tree)
    except (OSError, ValueError, TypeError):
        return None
