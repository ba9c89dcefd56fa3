"""``POST`` and ``DELETE /v1/audio/voices``: voices from samples that clients send as bytes, never as addresses."""

import asyncio
import hashlib
import unicodedata
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse

from retort.audio.files import Audio
from retort.errors import DataError
from retort.inference.voices import Voice
from retort.serving.backends import Backend, Description
from retort.serving.bodies import read_body
from retort.serving.decode_sample import SAMPLE_RATE, decode_sample
from retort.serving.errors import ApiError
from retort.serving.forms import OVERHEAD_BYTES, read_form
from retort.serving.requests import ignored_fields
from retort.serving.settings import ServeConfig, VoiceUploads
from retort.serving.voices import AddedVoice, VoiceStore

FIELDS = ("name", "consent", "audio_sample")
_MAX_NAME = 64
REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": list(FIELDS),
                "additionalProperties": False,
                "properties": {
                    "name": {"type": "string", "maxLength": _MAX_NAME},
                    "consent": {"type": "string", "description": "The server's statement, word for word."},
                    "audio_sample": {"type": "string", "format": "binary"},
                },
            }
        }
    },
}
STATUSES = {
    400: "A field is wrong; `error.param` names it.",
    403: "Uploads are off, or the consent is missing.",
    408: "The body did not arrive in time.",
    409: "The name is taken, or there are too many voices.",
    413: "The body is too large.",
    415: "The body is not multipart/form-data.",
    422: "The sample cannot be used.",
}


@dataclass(frozen=True)
class _Form:
    name: str
    consent: str
    sample: bytes
    ignored: tuple[str, ...]


class Uploads:
    """The handlers, and the voices that they keep.

    Args:
        config: of the application.
        backends: by model name; each one makes a voice of a sample in its space.
        describe: a model's description.
    """

    def __init__(
        self,
        config: ServeConfig,
        backends: Mapping[str, Backend],
        describe: Callable[[str], Awaitable[Description]],
    ) -> None:
        self._limits, self._backends, self._describe = config.limits, backends, describe
        self._lenient = config.lenient
        self._config = settings = config.voice_uploads
        self._store = None if settings is None else VoiceStore(settings.folder, max_voices=settings.max_voices)

    def list(self) -> list[AddedVoice]:
        """Voices that were added."""
        return [] if self._store is None else self._store.list()

    @property
    def terms(self) -> dict[str, Any] | None:
        """What a voice that is added takes, for pages that ask for one; None where none may be."""
        if self._config is None:
            return None
        return self._config.model_dump(include={"consent_statement", "max_bytes", "min_seconds", "max_seconds"})

    def id_of(self, name: str) -> str | None:
        """Id of the voice that was added under an id or a name; None where there is none."""
        return None if self._store is None else self._store.id_of(name)

    def voice(self, voice_id: str, description: Description) -> Voice | None:
        """A voice that was added, for a model; None where there is none that it can speak in."""
        if self._store is None or not description.takes_voices:
            return None
        return self._store.voices(voice_id).get(description.voice_space)

    def no_voice(self, name: str, description: Description) -> ApiError:
        """Why a model has no such voice: it is unknown, or was added for models of other spaces."""
        voice_id = self.id_of(name)
        spaces = {} if self._store is None or voice_id is None else self._store.voices(voice_id)
        if spaces and not description.takes_voices:
            return ApiError(400, f"{description.name} speaks in its own voices only", param="voice", code="own_voices")
        if spaces:
            told = f"this voice was added in the space {', '.join(sorted(spaces))}, {description.name} needs "
            cure = f"{description.voice_space}; add it again"
            return ApiError(400, told + cure, param="voice", code="voice_of_another_space")
        known = ", ".join(description.voices)
        return ApiError(400, f"no such voice; {description.name} has {known}", param="voice", code="voice_not_found")

    async def create(self, request: Request) -> JSONResponse:
        """Add a voice."""
        store, settings = self._opened()
        body = await read_body(
            request,
            max_bytes=settings.max_bytes + OVERHEAD_BYTES,
            timeout_s=self._limits.body_timeout_s,
            content_type="multipart/form-data",
        )
        form = await _parse(request, body, settings, lenient=self._lenient)
        digest = hashlib.sha256(form.sample).hexdigest()
        if _words(form.consent) != _words(settings.consent_statement):
            await asyncio.to_thread(store.note, "refused_without_consent", sample_sha256=digest)
            message = f"the speaker must agree; send consent word for word: {settings.consent_statement!r}"
            raise ApiError(403, message, param="consent", code="consent_required")
        samples_N = await decode_sample(
            form.sample, min_seconds=settings.min_seconds, max_seconds=settings.max_seconds
        )  # fmt: skip
        voices = await self._voices_of(Audio(samples_N, SAMPLE_RATE))
        if not voices:
            raise ApiError(403, "the models of this server speak in their own voices only", code="own_voices")
        added = await asyncio.to_thread(
            lambda: store.add(form.name, consent=form.consent, sample_sha256=digest, voices=list(voices.values()))
        )
        tree = {"object": "voice", "id": added.id, "name": added.name, "created_at": added.created}
        return JSONResponse(tree, headers=ignored_fields(form.ignored))

    async def _voices_of(self, sample: Audio) -> dict[str, Voice]:
        """A sample's voice in the space of each model that takes any."""
        voices: dict[str, Voice] = {}
        for name, backend in self._backends.items():
            description = await self._describe(name)
            if description.takes_voices and description.voice_space not in voices:
                try:
                    voices[description.voice_space] = await backend.voice_of(sample)
                except DataError:
                    message = "no voice is heard in the sample; send somebody's speech"
                    raise ApiError(422, message, param="audio_sample", code="no_voice") from None
        return voices

    async def delete(self, voice: str) -> JSONResponse:
        """Remove a voice, by id or name; what is being said in it is said to its end."""
        store, _ = self._opened()
        voice_id = store.id_of(voice)
        if voice_id is None or not await asyncio.to_thread(store.delete, voice_id):
            raise ApiError(404, "no such voice was added", param="voice", code="voice_not_found")
        return JSONResponse({"object": "voice.deleted", "id": voice_id, "deleted": True})

    def _opened(self) -> tuple[VoiceStore, VoiceUploads]:
        if self._store is None or self._config is None:
            raise ApiError(403, "this server takes no voices", code="voice_uploads_off")
        return self._store, self._config


async def _parse(request: Request, body: bytes, settings: VoiceUploads, *, lenient: bool) -> _Form:
    file_field, *others = reversed(FIELDS)
    form = await read_form(
        request, body, file_field=file_field, others=others, max_bytes=settings.max_bytes, lenient=lenient
    )
    if "name" not in form.texts:
        raise ApiError(400, "the field name is missing", param="name")
    return _Form(_clean_name(form.texts["name"]), form.texts.get("consent", ""), form.file, form.ignored)


def _clean_name(name: str) -> str:
    cleaned = " ".join(unicodedata.normalize("NFC", name).split())
    if not 1 <= len(cleaned) <= _MAX_NAME or not cleaned.isprintable():
        raise ApiError(400, f"a name has 1 to {_MAX_NAME} printable characters", param="name")
    return cleaned


def _words(text: str) -> list[str]:
    return text.casefold().split()
