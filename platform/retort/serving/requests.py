"""What ``POST /v1/audio/speech`` takes: the fields of the OpenAI API, and a few of ours; nothing else.

Bodies are parsed strictly: duplicate keys, NaN, unknown fields and wrong types are refused by name. ``null`` is what
clients write for a field that they leave out. No field is ever opened as a file or a URL.
"""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from retort.serving.errors import ApiError
from retort.text.normalise import spaced

AudioFormat = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]

_MAX_DIGITS = 300
_MOST_NAMED = 20
"""Names in a header of an answer."""
_SSML = re.compile(r"\s*(<\?xml[^>]*>\s*)?<speak[\s>]", re.IGNORECASE)
_BIDI = {"RLO", "LRO", "RLE", "LRE", "PDF", "RLI", "LRI", "FSI", "PDI"}


class VoiceId(BaseModel):
    """A voice as an object: by its id, as newer clients send it, or just as ``GET /v1/audio/voices`` lists it."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    id: str | None = Field(default=None, min_length=1)
    name: str | None = Field(default=None, min_length=1, description="Counts where there is no id.")
    models: Any = Field(default=None, description="As listed; ignored.")
    alias_of: Any = Field(default=None, description="As listed; ignored.")
    object: Any = Field(default=None, description="As answered to whoever added the voice; ignored.")
    created_at: Any = Field(default=None, description="As answered to whoever added the voice; ignored.")


class _LenientVoiceId(VoiceId):
    model_config = ConfigDict(extra="allow")


class SpeechRequest(BaseModel):
    """Body of ``POST /v1/audio/speech``."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    model: str = Field(min_length=1, max_length=256, description="One of GET /v1/models, or a name of OpenAI's.")
    input: str = Field(description="What to say.")
    voice: str | VoiceId = Field(description="One of GET /v1/audio/voices, by its id, its name, or as it is listed.")
    response_format: AudioFormat = "mp3"
    speed: float = Field(default=1.0, ge=0.25, le=4.0)
    stream_format: Literal["audio", "sse"] = "audio"
    instructions: str | None = Field(default=None, max_length=4096, description="Accepted; these models ignore it.")
    seed: int | None = Field(default=None, ge=0, le=2**63 - 1, description="The same seed gives the same audio.")
    language: str | None = Field(default=None, max_length=16, description="Refused unless the model speaks it.")
    max_seconds: float | None = Field(default=None, gt=0, le=600, description="A shorter limit than the server's.")

    @property
    def voice_id(self) -> str:
        """The voice, however it was given."""
        return self.voice if isinstance(self.voice, str) else self.voice.id or self.voice.name or ""

    @property
    def ignored(self) -> tuple[str, ...]:
        """Unknown fields that were let pass."""
        of_voice = (
            () if isinstance(self.voice, str) else tuple(f"voice.{name}" for name in self.voice.model_extra or ())
        )
        return (*(self.model_extra or ()), *of_voice)


class _LenientRequest(SpeechRequest):
    model_config = ConfigDict(extra="allow")

    voice: str | _LenientVoiceId


def parse_speech_request(
    body: bytes, *, max_characters: int, defaults: Mapping[str, str] | None = None, lenient: bool = False
) -> SpeechRequest:
    """Parse and check a body.

    Args:
        body: bytes of JSON.
        max_characters: of the text.
        defaults: values of required fields that are not given.
        lenient: let unknown fields pass; they are in :attr:`SpeechRequest.ignored`.

    Raises:
        ApiError: 400, with the field.
    """
    tree = parse_json(body)
    if not isinstance(tree, dict):
        raise ApiError(400, f"the body must be a JSON object, got {type(tree).__name__}")
    absent = [name for name, value in tree.items() if value is None and name in SpeechRequest.model_fields]
    given = dict(defaults or {}) | {name: value for name, value in tree.items() if name not in absent}
    try:
        request = (_LenientRequest if lenient else SpeechRequest).model_validate(given)
    except ValidationError as error:
        raise _first_fault(error) from None
    if not request.voice_id:
        raise ApiError(400, "the voice has neither id nor name", param="voice")
    return request.model_copy(update={"input": clean_text(request.input, max_characters=max_characters)})


def parse_json(body: bytes) -> Any:
    """JSON without duplicate keys and without NaN.

    Raises:
        ApiError: 400.
    """

    def number(digits: str) -> int | float:
        # Python neither reads nor writes thousands of digits; as infinity, they are refused by the field they are in.
        return int(digits) if len(digits) <= _MAX_DIGITS else float(digits)

    def no_constant(name: str) -> float:
        raise ApiError(400, f"{name} is not JSON")

    try:
        return json.loads(
            body.decode("utf-8"), object_pairs_hook=without_repeats, parse_int=number, parse_constant=no_constant
        )  # fmt: skip
    except UnicodeDecodeError:
        raise ApiError(400, "the body is not UTF-8") from None
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply") from None
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None


def without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs.

    Raises:
        ApiError: 400, with a key that is given twice, or is no text.
    """
    tree: dict[str, Any] = {}
    for name, value in pairs:
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise ApiError(400, f"the key {_shown(name)} holds half of a surrogate pair", param=_shown(name))
        if name in tree:
            raise ApiError(400, f"the key {_shown(name)} is given twice", param=_shown(name))
        tree[name] = value
    return tree


def clean_text(text: str, *, max_characters: int) -> str:
    """Text in NFC, without what has no place in speech.

    Raises:
        ApiError: 400 for text that is empty, too long, SSML, or holds control or direction characters.
    """
    if len(text) > max_characters:
        raise ApiError(400, f"input has {len(text)} characters, at most {max_characters} are allowed", param="input")
    text = spaced(text)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ApiError(400, "input holds half of a surrogate pair", param="input") from None
    for character in text:
        category = unicodedata.category(character)
        if (category == "Cc" and character not in "\t\r\n") or unicodedata.bidirectional(character) in _BIDI:
            raise ApiError(400, f"input holds the control character U+{ord(character):04X}", param="input")
    cleaned = "".join(c for c in unicodedata.normalize("NFC", text) if unicodedata.category(c) != "Cf")
    if _SSML.match(cleaned):
        raise ApiError(400, "input is SSML, whose tags would be read aloud; send plain text", param="input")
    if not any(unicodedata.category(c)[0] in "LN" for c in cleaned):
        raise ApiError(
            400, f"input has nothing to say: it needs a letter or a digit (limit {max_characters})", param="input"
        )
    return cleaned


def _first_fault(error: ValidationError) -> ApiError:
    # A voice is a string or an object: of the two lists of faults, that of the form which was given counts.
    faults = [f for f in error.errors(include_url=False) if f["loc"][-1] != "str" or not isinstance(f["input"], dict)]
    fault, name = faults[0], _shown(str(faults[0]["loc"][-1]))
    if fault["type"] == "extra_forbidden":
        return ApiError(400, f"unknown field {name}", param=name)
    field = ".".join(str(part) for part in fault["loc"] if str(part) in SpeechRequest.model_fields) or name
    if fault["type"] == "missing":
        return ApiError(400, f"the field {field} is missing", param=field)
    given = fault["input"]
    shown = "" if isinstance(given, dict | list) else f", got {_shown(repr(given))}"
    return ApiError(400, f"{field}: {fault['msg']}{shown}", param=field)


def ignored_fields(names: Sequence[str]) -> dict[str, str]:
    """The header that names fields that were ignored: few, short, and without what a header cannot hold."""
    if not names:
        return {}
    fit = [re.sub(r"[^\w.\-]", "?", name, flags=re.ASCII)[:60] for name in names[:_MOST_NAMED]]
    return {"X-Ignored-Fields": ", ".join(fit) + (", ..." if len(names) > len(fit) else "")}


def in_header(name: str) -> str:
    """A name from the serving file as a header can hold it: what is no plain ASCII is in percent signs, as in a URL."""
    return "".join(c if c.isascii() and c.isprintable() else quote(c, errors="replace") for c in name)


def unread_characters(unread: str) -> dict[str, str]:
    """The header that names characters which were left out, as a header can hold them: ``U+4F60, U+597D``."""
    if not unread:
        return {}
    fit = [f"U+{ord(character):04X}" for character in unread[:_MOST_NAMED]]
    return {"X-Unread-Characters": ", ".join(fit) + (", ..." if len(unread) > len(fit) else "")}


def _shown(text: str) -> str:
    """Something of the client's, fit for a message: short, printable."""
    printable = "".join(c if c.isprintable() else "?" for c in text)
    return printable if len(printable) <= 60 else printable[:57] + "..."
