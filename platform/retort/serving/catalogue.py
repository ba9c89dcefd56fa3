"""What there is to speak with: models and voices, by their names, by OpenAI's, and by aliases of the serving file."""

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi.responses import JSONResponse

from retort.inference.voices import Voice
from retort.serving.backends import Backend, Description
from retort.serving.errors import ApiError
from retort.serving.settings import ServeConfig
from retort.serving.uploads import Uploads

OPENAI_VOICES = (
    "alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova", "onyx", "sage", "shimmer", "verse",
)  # fmt: skip
_OPENAI_MODEL = re.compile(r"(openai/)?(tts|gpt)-[\w.:\-]+", re.ASCII | re.IGNORECASE)
"""Names that clients send unasked; they are dated, and there are new ones every year."""
_KNOWN_S = 1.0
"""How long a voice that a model did not have is believed to be missing."""


@dataclass(frozen=True)
class Chosen:
    """What a request is spoken with.

    Attributes:
        description: of the model.
        voice: of the model's own, or the id of one that was added.
        uploaded: the voice, if it is one that was added.
    """

    description: Description
    voice: str
    uploaded: Voice | None


def openai_voices(voices: tuple[str, ...]) -> dict[str, str]:
    """Whose voices OpenAI's names stand for: a model's own in the order of the alphabet, again and again."""
    own = sorted(voices)
    return {name: own[index % len(own)] for index, name in enumerate(OPENAI_VOICES)} if own else {}


class Catalogue:
    """Models and voices.

    Args:
        config: names, limits.
        backends: by model name.
    """

    def __init__(self, config: ServeConfig, backends: Mapping[str, Backend]) -> None:
        self._config, self._backends = config, backends
        self._described: dict[str, tuple[Description, float]] = {}
        """What each model is, and when it said so."""
        self.uploads = Uploads(config, backends, self.description)

    def resolve(self, name: str) -> str:
        """The model behind a name.

        Raises:
            ApiError: 404.
        """
        if name in self._backends:
            return name
        is_openais = _OPENAI_MODEL.fullmatch(name) is not None
        found = self._config.model_aliases.get(name, self._config.answering_model if is_openais else None)
        if found is None:
            message = f"no such model; there are {', '.join(sorted(self._backends))}"
            if is_openais:
                message += "; a name of OpenAI's is answered by `default_model`, which the serving file does not name"
            raise ApiError(404, message, param="model", code="model_not_found")
        return found

    async def choose(self, voice: str, model: str) -> Chosen:
        """A voice of a model, by any of its names: the model's own first, then aliases, added voices, OpenAI's names.

        Raises:
            ApiError: there is no such voice.
        """
        description = await self.description(model)
        chosen = self._chosen(voice, description)
        if chosen is None:
            description = await self.description(model, max_age_s=_KNOWN_S)
            chosen = self._chosen(voice, description)
        if chosen is None:
            raise self.uploads.no_voice(self._config.voice_aliases.get(voice, voice), description)
        return chosen

    def _chosen(self, voice: str, description: Description) -> Chosen | None:
        name = voice if voice in description.voices else self._config.voice_aliases.get(voice, voice)
        if name in description.voices:
            return Chosen(description, name, None)
        voice_id = self.uploads.id_of(name)
        uploaded = None if voice_id is None else self.uploads.voice(voice_id, description)
        if voice_id is not None and uploaded is not None:
            return Chosen(description, voice_id, uploaded)
        theirs = openai_voices(description.voices).get(name.lower()) if voice_id is None else None
        return None if theirs is None else Chosen(description, theirs, None)

    async def description(self, name: str, *, max_age_s: float = math.inf) -> Description:
        """What a model is, or was at most so long ago: a promotion may have changed that.

        Raises:
            ApiError: 503 when it does not say so in time.
        """
        if name not in self._described or time.monotonic() - self._described[name][1] > max_age_s:
            async with in_time(self._config.limits.deadline_s):
                self._described[name] = (await self._backends[name].describe(), time.monotonic())
        return self._described[name][0]

    async def models(self) -> JSONResponse:
        """OpenAI's list of models."""
        described = [await self.description(name, max_age_s=0.0) for name in self._backends]
        return JSONResponse({"object": "list", "data": list(map(_model, described))})

    async def model(self, name: str) -> JSONResponse:
        """One of them."""
        return JSONResponse(_model(await self.description(self.resolve(name), max_age_s=0.0)))

    async def audio_models(self) -> JSONResponse:
        """The models once more, where clients look for those that speak."""
        names = [{"id": name, "name": name} for name in self._backends]
        return JSONResponse({"object": "list", "data": names, "models": names})

    async def voices(self, model: str | None = None, legacy: bool = False) -> JSONResponse:
        """Voices of one model or of all, with the models that have them; the other names of voices come last.

        Beside them what an added voice takes, ``uploads``, or null where none may be added.
        """
        names = list(self._backends) if model is None else [self.resolve(model)]
        described = [await self.description(name, max_age_s=0.0) for name in names]
        owners: dict[str, list[str]] = {}
        for one in described:
            for voice in one.voices:
                owners.setdefault(voice, []).append(one.name)
        listed: list[dict[str, Any]] = [{"id": id_, "name": id_, "models": owners[id_]} for id_ in sorted(owners)]
        listed += [{"id": added.id, "name": added.name, "models": names} for added in self.uploads.list()]
        listed += self._aliases(described, set(owners))
        voices = [{"id": voice["id"], "name": voice["name"]} for voice in listed]
        shown = [voice["id"] for voice in listed] if legacy else voices
        return JSONResponse({"object": "list", "data": listed, "voices": shown, "uploads": self.uploads.terms})

    def _aliases(self, described: list[Description], own: set[str]) -> list[dict[str, Any]]:
        """Those that lead somewhere, with where they lead in each model."""
        found: list[dict[str, Any]] = []
        for alias in (*self._config.voice_aliases, *OPENAI_VOICES):
            chosen = {one.name: self._chosen(alias, one) for one in described}
            leads = {model: one.voice for model, one in chosen.items() if one is not None}
            if leads and alias not in own and alias not in [entry["id"] for entry in found]:
                found.append({"id": alias, "name": alias, "models": list(leads), "alias_of": leads})
        return found


def _model(description: Description) -> dict[str, Any]:
    return {
        "id": description.name,
        "object": "model",
        "created": description.created,
        "owned_by": "retort",
        "fingerprint": description.fingerprint,
        "weight_format": description.number_format,
    }


@asynccontextmanager
async def in_time(deadline_s: float) -> AsyncIterator[None]:
    """The deadline, as an answer.

    Raises:
        ApiError: 503.
    """
    try:
        async with asyncio.timeout(deadline_s):
            yield
    except TimeoutError:
        raise ApiError(
            503, "no sound within the deadline", kind="server_error", code="deadline", headers={"Retry-After": "1"}
        ) from None
