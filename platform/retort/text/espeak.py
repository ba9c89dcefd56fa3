"""espeak-ng through its C library: phonemes of a text, and speech with the time of every phone.

espeak-ng keeps global state: a seeded noise source, filter memories, echo buffers. After one string the same string
sounds different, even after ``espeak_Terminate`` and with ``espeak_ng_SetRandSeed`` alone. So :func:`speak` loads the
library afresh for every call (about 4 ms), seeds both random sources, speaks, and unloads it. The same arguments then
give the same samples, whatever was spoken before. One lock serialises the calls of a process: the library is not
thread-safe.

espeak-ng is GPL-3 and comes in the wheel ``espeakng-loader``, its voices and dictionaries with it.
"""

import _ctypes
import ctypes
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retort.errors import ConfigError, DataError, MissingRequirementError

# Values of espeak-ng's speak_lib.h.
_SYNCHRONOUS = 2
_INITIALIZE_FLAGS = 0x1 | 0x2 | 0x8000  # phoneme events, in IPA, and never exit() on an error
_RATE, _VOLUME, _PITCH = 1, 2, 3
_CHARS_UTF8 = 1
_PHONEMES_IPA = 0x02
_BETWEEN_PHONES = "_"
_EVENT_END, _EVENT_WORD, _EVENT_PHONEME = 0, 1, 7

MIN_WORDS_PER_MINUTE = 80
MAX_WORDS_PER_MINUTE = 450

_LANGUAGE_MARK = re.compile(r"\([a-z-]+\)")

_lock = threading.Lock()


class _EventId(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_ubyte * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position_ms", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class Span:
    """A phone (IPA, stress mark included; empty for a pause) or a word, with its time in seconds."""

    label: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Speech:
    """What espeak-ng said: samples [N] in [-1, 1], and the phones and words that fill them without gaps."""

    samples_N: NDArray[np.float32]
    sample_rate: int
    phones: tuple[Span, ...]
    words: tuple[Span, ...]


@contextmanager
def _library() -> Iterator[tuple[Any, int]]:
    """Load espeak-ng, yield it with its sample rate, and unload it; one caller at a time."""
    try:
        import espeakng_loader
    except ImportError:
        raise MissingRequirementError("espeak-ng is not installed; run: pip install espeakng-loader") from None
    path, data = espeakng_loader.get_library_path(), espeakng_loader.get_data_path()
    with _lock:
        if _is_loaded(path):
            raise MissingRequirementError(
                f"{path} is held open by another library of this process, so its state cannot be reset; "
                "use espeak-ng from a process of its own"
            )
        library = ctypes.CDLL(path)
        try:
            sample_rate = library.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(data), _INITIALIZE_FLAGS)
            if sample_rate <= 0:
                raise MissingRequirementError(f"espeak-ng cannot read its voices in {data}; reinstall espeakng-loader")
            yield library, sample_rate
        finally:
            library.espeak_Terminate()
            _ctypes.dlclose(library._handle)


def _is_loaded(path: str) -> bool:
    try:
        handle = _ctypes.dlopen(path, os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:
        return False
    _ctypes.dlclose(handle)
    return True


def _set_voice(library: Any, voice: str) -> None:
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise ConfigError(f"espeak-ng has no voice {voice!r}; use a language with an optional variant, as en-us+klatt4")


def speak(text: str, *, voice: str, words_per_minute: int, volume: int = 100, pitch: int = 50, seed: int = 0) -> Speech:
    """Speak ``text``; the same arguments always give the same samples.

    Args:
        text: what to say, UTF-8, no markup.
        voice: language and variant, as ``en-us+klatt4``.
        words_per_minute: 80 to 450.
        volume: 0 to 200, 100 is espeak-ng's default; above it the loud voices clip.
        pitch: 0 to 100, 50 is the voice's own.
        seed: of the voice's noise and flutter.

    Raises:
        ConfigError: the voice does not exist or the speed is out of range.
        DataError: the text makes no sound.
        MissingRequirementError: espeak-ng is not installed or cannot be loaded.
    """
    if not MIN_WORDS_PER_MINUTE <= words_per_minute <= MAX_WORDS_PER_MINUTE:
        raise ConfigError(
            f"words_per_minute is {words_per_minute}; espeak-ng speaks {MIN_WORDS_PER_MINUTE} to {MAX_WORDS_PER_MINUTE}"
        )
    chunks: list[NDArray[np.int16]] = []
    phone_starts: list[tuple[str, int]] = []
    word_starts: list[tuple[str, int]] = []

    def receive(samples: Any, count: int, events: Any) -> int:
        for event in _until_end(events):
            if event.type == _EVENT_PHONEME:
                phone_starts.append((_ipa(bytes(event.id.string)), event.sample))
            elif event.type == _EVENT_WORD:
                first = event.text_position - 1
                word_starts.append((text[first : first + event.length], event.sample))
        if count > 0:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    callback = _Callback(receive)
    with _library() as (library, sample_rate):
        library.espeak_SetSynthCallback(callback)
        _set_voice(library, voice)
        for parameter, value in ((_RATE, words_per_minute), (_VOLUME, volume), (_PITCH, pitch)):
            library.espeak_SetParameter(parameter, value, 0)
        # The Klatt voices draw from libc's source, the others from espeak-ng's own.
        ctypes.CDLL(None).srand(seed + 1)
        library.espeak_ng_SetRandSeed(ctypes.c_long(seed + 1))
        buffer = text.encode() + b"\0"
        library.espeak_Synth(buffer, ctypes.c_size_t(len(buffer)), 0, 1, 0, _CHARS_UTF8, None, None)
        library.espeak_Synchronize()
    if not (chunks and word_starts):
        raise DataError(f"espeak-ng makes no sound of {text!r}; give it a text with words")
    samples_N = np.concatenate(chunks).astype(np.float32) / 32768.0
    phones, words = (_spans(starts, len(samples_N), sample_rate) for starts in (phone_starts, word_starts))
    return Speech(samples_N, sample_rate, phones, words)


def _until_end(events: Any) -> Iterator[Any]:
    index = 0
    while events[index].type != _EVENT_END:
        yield events[index]
        index += 1


def _ipa(name: bytes) -> str:
    # The event has room for eight bytes and no terminator; a longer name may be cut inside a character.
    return name.split(b"\0", 1)[0].decode("utf-8", errors="ignore")


def _spans(starts: list[tuple[str, int]], num_samples: int, sample_rate: int) -> tuple[Span, ...]:
    """Turn starts (in samples) into spans that touch; the last one ends with the audio, empty ones are dropped."""
    firsts = [min(first, num_samples) for _, first in starts]
    stops = [*firsts[1:], num_samples]
    return tuple(
        Span(label, first / sample_rate, stop / sample_rate)
        for (label, _), first, stop in zip(starts, firsts, stops, strict=True)
        if stop > first
    )


def phonemes(text: str, *, voice: str) -> str:
    """Return ``text`` in IPA, clauses joined by a space; punctuation is not kept. See :func:`phonemes_of_all`."""
    return phonemes_of_all([text], voice=voice)[0]


def phonemes_of_all(texts: Sequence[str], *, voice: str) -> list[str]:
    """Return each text in IPA; the library is loaded once for all of them.

    Raises:
        ConfigError: the voice does not exist.
        MissingRequirementError: espeak-ng is not installed or cannot be loaded.
    """
    with _library() as (library, _):
        _set_voice(library, voice)
        library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        return [_phonemes(library, text) for text in texts]


def phones_of_all(texts: Sequence[str], *, voice: str) -> list[tuple[str, ...]]:
    """Return the phones of each text in IPA, stress marks included, one by one; nothing for an empty text.

    Punctuation alone is read by its name.

    Where :func:`speak` says the same text in the same voice, its phones that are no pauses are these.

    Raises:
        ConfigError: the voice does not exist.
        MissingRequirementError: espeak-ng is not installed or cannot be loaded.
    """
    found = clauses_of_all(texts, voice=voice)
    return [tuple(phone for clause in clauses for phone in clause) for clauses in found]


def clauses_of_all(texts: Sequence[str], *, voice: str) -> list[list[tuple[str, ...]]]:
    """Return what :func:`phones_of_all` does clause by clause, between which a speaker may pause; none is empty."""
    with _library() as (library, _):
        _set_voice(library, voice)
        library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        mode = _PHONEMES_IPA | ord(_BETWEEN_PHONES) << 8
        read = ([_split(line) for line in _clauses(library, text, mode)] for text in texts)
        return [[phones for phones in clauses if phones] for clauses in read]


def _split(line: str) -> tuple[str, ...]:
    return tuple(phone for phone in re.split(rf"[\s{_BETWEEN_PHONES}]+", line) if phone)


def _phonemes(library: Any, text: str) -> str:
    return " ".join(" ".join(_clauses(library, text, _PHONEMES_IPA)).split())


def _clauses(library: Any, text: str, mode: int) -> list[str]:
    clauses: list[str] = []
    buffer = ctypes.create_string_buffer(text.encode())
    position = ctypes.c_void_p(ctypes.addressof(buffer))
    while position.value:
        clause = library.espeak_TextToPhonemes(ctypes.byref(position), _CHARS_UTF8, mode)
        # Marks such as (en) say that a word was read in another language.
        clauses.append(_LANGUAGE_MARK.sub("", (clause or b"").decode("utf-8")))
    return clauses


def version() -> str:
    """Return the version of espeak-ng, on which phonemes depend."""
    with _library() as (library, _):
        library.espeak_Info.restype = ctypes.c_char_p
        return f"espeak-ng {library.espeak_Info(None).decode()}"
