"""Voices that clients upload: a speaker prompt for each codec, and the consent that allows it; files of their own."""

import fcntl
import json
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from retort.serving.errors import ApiError

_ID = re.compile(r"voice_[0-9a-f]{24}")
_AUDIT = "audit.jsonl"


@dataclass(frozen=True)
class Voice:
    """What is kept of a voice beside its codes.

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

    def add(self, name: str, *, consent: str, sample_sha256: str, codes: Mapping[str, Tensor]) -> Voice:
        """Keep a voice.

        Args:
            name: must be new.
            consent: the statement.
            sample_sha256: of the sample.
            codes: speaker prompt [K, P] by the fingerprint of its codec.

        Raises:
            ApiError: 409 for a name that is taken or a store that is full.
        """
        from safetensors.torch import save_file

        voice = Voice("voice_" + secrets.token_hex(12), name, int(time.time()), consent, sample_sha256)
        with self._alone():
            present = self.list()
            if any(other.name == name for other in present):
                raise ApiError(409, "a voice of this name exists; delete it first", param="name", code="voice_exists")
            if len(present) >= self._max_voices:
                raise ApiError(409, f"there are {len(present)} voices; delete one first", code="too_many_voices")
            partial = self.folder / f".{voice.id}.partial"
            partial.mkdir()
            save_file({key: codes_KP.contiguous() for key, codes_KP in codes.items()}, partial / "codes.safetensors")
            (partial / "voice.json").write_text(json.dumps(asdict(voice)))
            partial.rename(self.folder / voice.id)
            self.note("created", id=voice.id, sample_sha256=sample_sha256)
        return voice

    def list(self) -> list[Voice]:
        """All voices, the oldest first."""
        found = [voice for path in self.folder.glob("voice_*") if (voice := _read(path)) is not None]
        return sorted(found, key=lambda voice: (voice.created, voice.id))

    def codes(self, voice_id: str, codec_fingerprint: str) -> Tensor | None:
        """The speaker prompt [K, P] for a codec, or None."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if not _ID.fullmatch(voice_id):
            return None
        try:
            kept: dict[str, Tensor] = load_file(self.folder / voice_id / "codes.safetensors")
        except (OSError, SafetensorError):
            return None  # deleted meanwhile
        return kept.get(codec_fingerprint)

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


def _read(path: Path) -> Voice | None:
    try:
        tree: dict[str, Any] = json.loads((path / "voice.json").read_text())
        return Voice(**tree)
    except (OSError, ValueError, TypeError):
        return None
