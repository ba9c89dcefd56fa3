"""What can be heard: requests in, sound out, many at once. Every family of models brings its own speaker.

Evaluation, ``say``, promotion, sweeps and serving know this seam only. :func:`retort.inference.opening.open_speaker`
opens a model's folder; :class:`retort.inference.speech.SpeechEngine` is the speaker of a codec language model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from torch import Tensor

from retort.audio.files import Audio
from retort.inference.decoding import Decoding
from retort.inference.voices import Voice
from retort.models.weights import Lineage
from retort.text.reading import Reading
from retort.text.sentences import split_text

Outcome = Literal["said", "too_long", "loop", "no_sound", "not_a_number"]
"""``said``: the model ended the utterance itself. The others are failures: the limit of its text was reached, it
repeated itself, it ended before its first frame, or its logits were not numbers."""

NEVER_HEARD = 0.0
"""In :attr:`Sound.heard_until`: its listener waits for the first sound."""
_PART_STRIDE = 0x2545F4914F6CDD1D
"""Between the seeds of the parts of a long text."""


@dataclass(frozen=True)
class Request:
    """What to say, in whose voice, with which seed; ``voice`` replaces the stored voice of ``speaker``."""

    text: str
    speaker: str
    seed: int
    voice: Voice | None = None


@dataclass(frozen=True)
class Spoken:
    """What was said: mono samples [N] in -1..1.

    Attributes:
        samples_N: the sound, maybe none.
        sample_rate: Hz.
        has_eos: whether the model ended it itself, False where it hit the limit; None where that cannot be told.
        codes: what the sound was made from, frame by frame [T] or [K, T], where loops are looked for; None for a sound
            that was made from none, such as a recording.
        mel_TM: the natural-log mel that it was made from, where a network made one.
    """

    samples_N: Tensor
    sample_rate: int
    has_eos: bool | None = None
    codes: Tensor | None = None
    mel_TM: Tensor | None = None


@dataclass(frozen=True)
class Wish:
    """A request with how it shall be said.

    Attributes:
        request: text, voice and seed.
        decoding: must be valid for the model; None is its family's plain one.
        max_seconds: a limit below that of the guard, or None.
        is_streamed: give samples as soon as they are final; from the first of them on it cannot be tried again.
    """

    request: Request
    decoding: Decoding | None = None
    max_seconds: float | None = None
    is_streamed: bool = True


def has_letters(text: str) -> bool:
    """Whether there is a letter or a digit in it."""
    return any(map(str.isalnum, text))


def in_parts(wish: Wish, max_characters: int, can_say: Callable[[str], bool] = has_letters) -> list[Wish]:
    """A long text as wishes that are spoken one after the other; a short one is left as it is.

    The first part keeps the seed; parts that nobody ``can_say`` are left out, unless there is no other.
    """
    request = wish.request
    if len(request.text) <= max_characters:
        return [wish]
    texts = [text for text in split_text(request.text, max_characters) if can_say(text)]
    return [
        replace(wish, request=replace(request, text=text, seed=(request.seed + index * _PART_STRIDE) % 2**63))
        for index, text in enumerate(texts)
    ] or [wish]


@dataclass(frozen=True)
class Sound:
    """What a step added to one utterance.

    Attributes:
        ticket: which.
        samples_N: new samples, maybe none; for requests that are not streamed all of them, at the end.
        outcome: None while it goes on.
        attempt: 0, or how many seeds were given up.
        heard_until: until when, by the speaker's clock, a listener who heard each sound as soon as it was there has
            something to hear.
    """

    ticket: int
    samples_N: Tensor
    outcome: Outcome | None
    attempt: int
    heard_until: float = NEVER_HEARD


@dataclass(frozen=True)
class Facts:
    """What is known of a speaker before it speaks.

    Attributes:
        fingerprint: of its weights.
        family: type of its model.
        lineage: what its weights stand for.
        parameters: how many numbers its networks hold.
        num_layers: of its largest network.
        frozen_parameters: how many numbers a frozen network holds that it takes voices through, not counted above.
        vocoder_parameters: how many the vocoder holds that makes its sound, not counted above.
    """

    fingerprint: str
    family: str
    lineage: Lineage
    parameters: int
    num_layers: int
    frozen_parameters: int = 0
    vocoder_parameters: int = 0


@dataclass(frozen=True)
class Abilities:
    """What may be asked of a speaker.

    Attributes:
        streams: how soon a wish that is streamed gives sound: within a sentence, or one whole sentence after the other.
        takes_voices: whether another voice than its own ones changes what it says.
        guidance_scales: scales that :meth:`Speaker.decoding_at` takes besides 1.0, which is none; None takes any.
        max_seconds: longest speech, whatever the text.
        max_text_tokens: longest text, in tokens of its front-end.
    """

    streams: Literal["within_sentences", "by_sentence"]
    takes_voices: bool
    guidance_scales: tuple[float, ...] | None
    max_seconds: float
    max_text_tokens: int


@dataclass(frozen=True)
class Timing:
    """What it took to say a batch.

    Attributes:
        compute_s: seconds in the networks.
        sound_s: seconds from what they gave to samples.
        audio_s: length of all that was said.
        figures: the family's own costs by their names in a summary, such as ``nfe``; what makes no sense for a family
            is not there.
    """

    compute_s: float
    sound_s: float
    audio_s: float
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def rtf(self) -> float:
        """Seconds of work for a second of audio."""
        return (self.compute_s + self.sound_s) / self.audio_s


class Speaker(Protocol):
    """Speaks many requests at once with one model. The same seed gives the same samples, in any company.

    :meth:`speak` and :meth:`time` take a whole batch for themselves, while nothing else is under way; :meth:`add` and
    :meth:`step` let utterances join and leave.
    """

    clock: Callable[[], float]
    """Seconds; what :attr:`Sound.heard_until` counts by."""

    @property
    def facts(self) -> Facts:
        """What it is."""
        ...

    @property
    def abilities(self) -> Abilities:
        """What may be asked of it."""
        ...

    @property
    def sample_rate(self) -> int:
        """Of its sound, Hz."""
        ...

    @property
    def number_format(self) -> str:
        """Of its steps."""
        ...

    @property
    def voices(self) -> tuple[str, ...]:
        """Names of the voices that it has, in order."""
        ...

    @property
    def voice_space(self) -> str:
        """Fingerprint of the space in which it takes voices."""
        ...

    def voice_of(self, audio: Audio) -> Voice:
        """The voice of a recording, in its space."""
        ...

    def decoding(self, wanted: Decoding | None) -> Decoding:
        """How it decodes when ``wanted`` is asked for; None is its family's plain way.

        Raises:
            ConfigError: it is not valid for this model, or of another family.
        """
        ...

    def decoding_at(self, guidance_scale: float) -> Decoding:
        """Its plain decoding at a guidance scale, of which 1.0 is none.

        Raises:
            ConfigError: the model must not be guided so.
        """
        ...

    def check(self, wish: Wish) -> Reading:
        """Refuse what cannot be said, but for its voice and decoding, in a tenth of the time of :meth:`add`.

        Returns what :meth:`read` gives of its text.

        Raises:
            ConfigError: it is too long.
            DataError: it has nothing to say.
        """
        ...

    def read(self, text: str) -> Reading:
        """What it makes of a text, and which characters it cannot read."""
        ...

    def prepare(self, decoding: Decoding) -> None:
        """Make room for utterances that are decoded so, or take less, to join; before that, for its plain decoding."""
        ...

    @property
    def num_active(self) -> int:
        """Utterances that are being spoken."""
        ...

    @property
    def num_free(self) -> int:
        """Utterances that may join."""
        ...

    def warm_up(self) -> None:
        """Make ready whatever a first request would have to wait for; it speaks no text of anybody's."""
        ...

    def add(self, wish: Wish, *, heard_until: float = NEVER_HEARD) -> int:
        """Let a request join; returns its ticket.

        Args:
            wish: the request.
            heard_until: of the part before it, whose listener is still hearing that one.

        Raises:
            ConfigError: the voice, the decoding or the length is not one of this speaker.
            DataError: the text has nothing to say.
            RuntimeError: no slot is free.
        """
        ...

    def cancel(self, ticket: int) -> None:
        """Stop an utterance; it takes no further step. Unknown tickets are ignored."""
        ...

    def step(self, *, is_awaited: Callable[[], bool] = lambda: False) -> list[Sound]:
        """Advance the utterances by one step, those first whose listeners have little to hear.

        Args:
            is_awaited: whether a new request waits for the end of this step.
        """
        ...

    def can_wait(self, heard_until: float) -> bool:
        """Whether somebody waits for a first sound, and a listener with something to hear until then can wait, too."""
        ...

    def speak(self, requests: Sequence[Request], decoding: Decoding, *, max_seconds: float) -> list[Spoken]:
        """Say a whole batch, each once, whatever becomes of it.

        Args:
            requests: what to say.
            decoding: of :meth:`decoding`.
            max_seconds: after which an utterance is cut.

        Raises:
            ConfigError: a voice is unknown or of another space.
            DataError: a text has nothing to say.
        """
        ...

    def time(self, requests: Sequence[Request], decoding: Decoding, *, seconds: float) -> Timing:
        """Say a batch whose every utterance takes ``seconds``, against the clock."""
        ...
