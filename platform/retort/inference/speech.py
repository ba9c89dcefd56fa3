"""The speaker of a codec language model: an engine, a codec stream for each utterance, a guard against runaways."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from pydantic import Field
from torch import Tensor

from retort.audio.codec import CodecStream
from retort.audio.files import Audio, resample
from retort.config import Config
from retort.inference.decoding import CodecLMDecoding, Decoding
from retort.inference.engine import Advance, Engine
from retort.inference.runaway import is_looping
from retort.inference.runner import Plan
from retort.inference.sampling import SamplerConfig
from retort.inference.speaker import NEVER_HEARD, Abilities, Facts, Outcome, Request, Sound, Spoken, Timing, Wish
from retort.inference.synthesizer import Synthesizer
from retort.inference.timing import time_decoding
from retort.inference.voices import Voice, voice_of_codes
from retort.nn.delays import num_steps
from retort.text.reading import Reading

_WARM_UP_FRAMES = 24
_TURNS_OF_ALL = 4
_HEAD_START_S, _LEAST_AHEAD_S = 0.3, 0.1
"""What a listener should have to hear; and while somebody else has heard nothing yet."""
_RETRY_STRIDE = 0x9E3779B97F4A7C15
"""Between the seeds of a request's attempts."""


class GuardConfig(Config):
    """When an utterance has run away: the limit comes from its text, and loops are stopped before they reach it."""

    seconds_per_character: float = Field(default=0.25, gt=0)
    extra_seconds: float = Field(default=1.0, ge=0)
    max_repeat_period: int = Field(default=8, ge=1)
    """Longest pattern of frames that counts as a loop."""
    max_repeat_seconds: float = Field(default=1.5, gt=0)
    """How long a pattern may repeat back to back; held vowels and pauses stay below it."""
    retries: int = Field(default=1, ge=0)
    """New seeds that are tried, where no sound has been given away yet."""

    def max_seconds(self, text: str) -> float:
        """Longest plausible speech of a text, whose numbers should be written out."""
        return self.extra_seconds + self.seconds_per_character * len(text)


@dataclass
class _Job:
    ticket: int
    wish: Wish
    plan: Plan
    stream: CodecStream
    attempt: int = 0
    frames: list[Tensor] = field(default_factory=list)
    undecoded: list[Tensor] = field(default_factory=list)
    samples: list[Tensor] = field(default_factory=list)
    heard_until: float = NEVER_HEARD
    has_given: bool = False
    """Whether samples were given away; what a later part was told of ``heard_until`` does not say that."""

    @property
    def is_silent(self) -> bool:
        """Whether its listener waits for the first sound."""
        return self.wish.is_streamed and self.heard_until == NEVER_HEARD

    def is_urgent(self, until: float) -> bool:
        """Whether its listener has nothing to hear until then."""
        return self.wish.is_streamed and self.heard_until < until

    def decode(self) -> None:
        """Sound of the frames that have none yet."""
        self.samples += [self.stream.push(frames_KT) for frames_KT in self.undecoded]
        self.undecoded.clear()

    def sound(self, samples_N: Tensor, outcome: Outcome | None) -> Sound:
        """What a step added."""
        return Sound(self.ticket, samples_N, outcome, self.attempt, self.heard_until)


class SpeechEngine:
    """Speaks many requests at once with one codec language model: a :class:`~retort.inference.speaker.Speaker`.

    Args:
        synthesizer: model, codec, text front-end and voices.
        max_slots: utterances at once; what they take is taken with the first one.
        max_conditions: conditions of the guidance; 1 for students.
        max_seconds: longest speech, whatever the text.
        max_text_tokens: longest text.
        guard: against runaways.
        clock: seconds; says how much each listener still has to hear.
        stream: where the frames of each attempt at an utterance go, by its ticket; None is the codec's, for sound.
    """

    def __init__(
        self,
        synthesizer: Synthesizer,
        *,
        max_slots: int = 1,
        max_conditions: int = 1,
        max_seconds: float = 30.0,
        max_text_tokens: int = 512,
        guard: GuardConfig = GuardConfig(),  # noqa: B008 - frozen
        clock: Callable[[], float] = time.monotonic,
        stream: Callable[[int], CodecStream] | None = None,
    ) -> None:
        self.clock = clock
        self._stream = (lambda _: synthesizer.codec.stream()) if stream is None else stream
        self.synthesizer, self.guard, self.max_seconds = synthesizer, guard, max_seconds
        self._max_slots, self._max_conditions, self._max_text_tokens = max_slots, max_conditions, max_text_tokens
        self._frame_rate = synthesizer.codec.frame_rate
        self._jobs: dict[int, _Job] = {}
        self._tickets: dict[int, int] = {}
        """Engine tickets to ours: a request that is tried again keeps its own."""
        self._next_ticket = self._turn = 0
        self._opened: Engine | None = None

    def prepare(self, decoding: Decoding) -> None:
        """See :meth:`Speaker.prepare`."""
        assert not self._jobs, "utterances are under way"
        self._max_conditions, self._opened = len(self.decoding(decoding).guidance.build().conditions), None

    @property
    def _engine(self) -> Engine:
        if self._opened is None:
            self._opened = self._open()
        return self._opened

    def _open(self) -> Engine:
        audio = num_steps(self._frames(self.max_seconds), self.synthesizer.loaded.model.config.codebook_delays)
        runner = self.synthesizer.decoder.runner(
            max_slots=self._max_slots,
            max_conditions=self._max_conditions,
            max_columns=self._max_text_tokens + 2 + audio,
        )
        return Engine(runner)

    @property
    def facts(self) -> Facts:
        """What it is."""
        return self.synthesizer.facts

    @property
    def abilities(self) -> Abilities:
        """What may be asked of it."""
        return Abilities(
            streams="within_sentences",
            takes_voices=self.synthesizer.has_prompt,
            guidance_scales=self.synthesizer.guidance_scales,
            max_seconds=self.max_seconds,
            max_text_tokens=self._max_text_tokens,
        )

    @property
    def sample_rate(self) -> int:
        """Of its sound, Hz."""
        return self.synthesizer.codec.sample_rate

    @property
    def voices(self) -> tuple[str, ...]:
        """Names of the stored voices, in order."""
        return tuple(sorted(self.synthesizer.voices))

    @property
    def voice_space(self) -> str:
        """Fingerprint of the codec: voices are prompts in its codes."""
        return self.synthesizer.codec_fingerprint

    @property
    def num_active(self) -> int:
        """Utterances that are being spoken."""
        return len(self._jobs)

    @property
    def number_format(self) -> str:
        """Of the steps."""
        return str(getattr(self._engine.runner, "weight_format", "torch"))

    @property
    def num_free(self) -> int:
        """Utterances that may join."""
        return self._engine.num_free

    def voice_of(self, audio: Audio) -> Voice:
        """The whole recording as a prompt, in the model's codec."""
        codec = self.synthesizer.codec
        return voice_of_codes(
            self.voice_space, codec.encode(resample(audio.samples_N, audio.sample_rate, codec.sample_rate))
        )

    def decoding(self, wanted: Decoding | None) -> CodecLMDecoding:
        """See :meth:`Speaker.decoding`."""
        return self.synthesizer.decoding(wanted)

    def decoding_at(self, guidance_scale: float) -> CodecLMDecoding:
        """See :meth:`Speaker.decoding_at`; against both conditions at once, or as the model's input."""
        return self.synthesizer.decoding_at(guidance_scale)

    def speak(self, requests: Sequence[Request], decoding: Decoding, *, max_seconds: float) -> list[Spoken]:
        """See :meth:`Speaker.speak`; unlike the utterances of :meth:`add`, these have no guard but ``max_seconds``."""
        assert not self._jobs, "a batch shares its runner with the utterances that are under way"
        return self.synthesizer.speak(requests, decoding, max_frames=self._frames(max_seconds))

    def time(self, requests: Sequence[Request], decoding: Decoding, *, seconds: float) -> Timing:
        """See :meth:`Speaker.time`."""
        assert not self._jobs, "a batch shares its runner with the utterances that are under way"
        return time_decoding(self.synthesizer, requests, self.decoding(decoding), num_frames=self._frames(seconds))

    def plan(self, wish: Wish) -> Plan:
        """Everything that decoding needs; it may run in another thread than :meth:`step`.

        Raises:
            ConfigError: the voice, the guidance or the length is not one of this engine.
            DataError: the text has nothing to say.
        """
        plan = self.synthesizer.plan(wish.request, self.decoding(wish.decoding), max_frames=self._max_frames(wish))
        self._engine.check(plan)
        return plan

    def check(self, wish: Wish) -> Reading:
        """Refuse what :meth:`plan` would refuse of another text in the same voice, in a tenth of the time.

        Returns what is made of the text.

        Raises:
            ConfigError: it is too long.
            DataError: it has nothing to say.
        """
        reading = self.synthesizer.front_end.spoken(wish.request.text)
        self._engine.check_length(len(reading.ids) + self.synthesizer.has_prompt, self._max_frames(wish))
        return reading

    def read(self, text: str) -> Reading:
        """See :meth:`Speaker.read`."""
        return self.synthesizer.front_end.read(text)

    def add(self, wish: Wish, *, heard_until: float = NEVER_HEARD) -> int:
        """Let a request join; returns its ticket.

        Args:
            wish: the request.
            heard_until: of the part before it, whose listener is still hearing that one.

        Raises:
            ConfigError: see :meth:`plan`.
            RuntimeError: no slot is free.
        """
        plan = self.plan(wish)
        job = _Job(self._next_ticket, wish, plan, self._stream(self._next_ticket), heard_until=heard_until)
        self._tickets[self._engine.add(plan)] = job.ticket
        self._jobs[job.ticket] = job
        self._next_ticket += 1
        return job.ticket

    def warm_up(self) -> None:
        """Speak with every slot taken, so that the first request finds memory, kernels and tables in place.

        It speaks no text of anybody's: the conditions are zeros. Planning is tried with a letter in the first voice.
        """
        scale = next(iter(self.abilities.guidance_scales or ()), 1.0)
        self.synthesizer.plan(Request("a", self.voices[0], seed=0), self.decoding_at(scale), max_frames=1)
        embedded_CD = torch.zeros(8, self.synthesizer.loaded.model.config.dim)
        conditions = self._engine.runner.max_conditions
        frames = min(_WARM_UP_FRAMES, self._frames(self.max_seconds))
        plan = Plan(
            (embedded_CD,) * conditions, (1.0,) + (0.0,) * (conditions - 1), SamplerConfig(), 0, frames, may_end=False
        )
        stream = self.synthesizer.codec.stream()
        self._engine.runner.warm_up()
        for _ in range(self.num_free):
            self._engine.add(plan)
        while self._engine.num_active:
            first = self._engine.step()[0]
            stream.push(first.frames_KT)
        stream.finish()

    def cancel(self, ticket: int) -> None:
        """Stop an utterance; it takes no further step. Unknown tickets are ignored."""
        if self._jobs.pop(ticket, None) is not None:
            inner = next(inner for inner, outer in self._tickets.items() if outer == ticket)
            self._engine.cancel(inner)
            del self._tickets[inner]

    def step(self, *, is_awaited: Callable[[], bool] = lambda: False) -> list[Sound]:
        """Advance the utterances by one step.

        Where each one makes a step longer, those go first whose listeners have little or nothing to hear: less than
        0.3 s, or 0.1 s while somebody waits for a first sound. Meanwhile the other streams wait, until their listeners
        have little to hear, too; what nobody listens to yet takes part in every fourth step.

        Args:
            is_awaited: whether a new request waits for the end of this step; then those who can wait get the sound of
                their frames with a later one.
        """
        self._turn += 1
        return [self._after(advance, is_awaited) for advance in self._engine.step(self._first_in_turn())]

    def can_wait(self, heard_until: float) -> bool:
        """Whether somebody waits for a first sound, and a listener with something to hear until then can wait, too."""
        return self._is_silent() and heard_until >= self._until()

    def _is_silent(self) -> bool:
        return any(job.is_silent for job in self._jobs.values())

    def _until(self, *, is_awaited: bool = False) -> float:
        """Who has something to hear until then can wait."""
        return self.clock() + (_LEAST_AHEAD_S if is_awaited or self._is_silent() else _HEAD_START_S)

    def _first_in_turn(self) -> set[int] | None:
        """Engine tickets that take the next step; None for all of them."""
        if self._engine.runner.is_static:
            return None
        until, jobs = self._until(), {inner: self._jobs[outer] for inner, outer in self._tickets.items()}
        urgent = {inner for inner, job in jobs.items() if job.is_urgent(until)}
        if urgent and self._turn % _TURNS_OF_ALL == 0:
            return urgent | {inner for inner, job in jobs.items() if not job.wish.is_streamed}
        return urgent or None

    def _after(self, advance: Advance, is_awaited: Callable[[], bool]) -> Sound:
        job = self._jobs[self._tickets[advance.ticket]]
        if advance.frames_KT.shape[1]:
            job.frames.append(advance.frames_KT)
            job.undecoded.append(advance.frames_KT)
        outcome = self._outcome(job, advance)
        if outcome is not None or not is_awaited() or job.is_urgent(self._until(is_awaited=True)):
            job.decode()
        if outcome is None:
            return job.sound(self._take(job) if job.wish.is_streamed else torch.zeros(0), None)
        del self._tickets[advance.ticket]
        if not advance.is_done:
            self._engine.cancel(advance.ticket)
        if outcome != "said" and not job.has_given and job.attempt < self.guard.retries:
            return self._try_again(job)
        del self._jobs[job.ticket]
        job.samples.append(job.stream.finish())
        return job.sound(self._take(job), outcome)

    def _outcome(self, job: _Job, advance: Advance) -> Outcome | None:
        if advance.is_broken:
            return "not_a_number"
        if advance.is_done:
            return ("said" if job.frames else "no_sound") if advance.has_eos else "too_long"
        if advance.frames_KT.shape[1] and is_looping(
            job.frames, period=self.guard.max_repeat_period, steps=self._frames(self.guard.max_repeat_seconds)
        ):
            return "loop"
        return None

    def _try_again(self, job: _Job) -> Sound:
        attempt = job.attempt + 1
        seed = (job.wish.request.seed + attempt * _RETRY_STRIDE) % 2**63
        again = replace(job.plan, seed=seed)
        stream = self._stream(job.ticket)
        next_job = _Job(job.ticket, job.wish, again, stream, attempt, heard_until=job.heard_until)
        self._jobs[job.ticket] = next_job
        self._tickets[self._engine.add(again)] = job.ticket
        return next_job.sound(torch.zeros(0), None)

    def _take(self, job: _Job) -> Tensor:
        samples_N = torch.cat(job.samples) if job.samples else torch.zeros(0)
        job.samples.clear()
        if samples_N.numel():
            seconds = samples_N.numel() / self.sample_rate
            job.heard_until, job.has_given = max(job.heard_until, self.clock()) + seconds, True
        return samples_N

    def _max_frames(self, wish: Wish) -> int:
        written = max(wish.request.text, self.synthesizer.front_end.written(wish.request.text), key=len)
        limits = (self.guard.max_seconds(written), self.max_seconds, wish.max_seconds or self.max_seconds)
        return self._frames(min(limits))

    def _frames(self, seconds: float) -> int:
        return max(1, round(seconds * self._frame_rate))
