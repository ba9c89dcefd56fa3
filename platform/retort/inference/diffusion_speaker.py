"""The speaker of a denoiser of mels: the codec LM's engine writes, the denoiser paints, Griffin-Lim sounds."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from retort.audio.files import Audio
from retort.audio.griffin_lim import GriffinLimStream
from retort.audio.mel_rvq import without_soft_floor
from retort.inference.decoding import Decoding, MelDiffusionDecoding
from retort.inference.diffusion_synthesizer import DiffusionSynthesizer, solver_of
from retort.inference.mel_making import MelPlan
from retort.inference.speaker import NEVER_HEARD, Abilities, Facts, Outcome, Request, Sound, Spoken, Timing, Wish
from retort.inference.speech import GuardConfig, SpeechEngine
from retort.inference.voices import Voice
from retort.text.reading import Reading

_SENTENCE_AHEAD_S = 2.0
"""With this much to hear, a listener can wait for its next sentence while somebody else has heard nothing yet."""
_PIECE_FRAMES = 32
"""Mel frames that one step turns into sound."""
_WARM_UP_FRAMES = 8


class _Codes:
    """What the codec LM wrote of an utterance; it makes no sound."""

    def __init__(self) -> None:
        self.frames: list[Tensor] = []

    def push(self, codes_KT: Tensor) -> Tensor:
        """Keep them."""
        self.frames.append(codes_KT)
        return torch.zeros(0)

    def finish(self) -> Tensor:
        """Nothing."""
        return torch.zeros(0)


@dataclass(eq=False)
class _Job:
    """An utterance: it is written, then its mel is made from its codes [K, T], then its sound from its mel [M, T]."""

    ticket: int
    wish: Wish
    decoding: MelDiffusionDecoding
    heard_until: float
    attempt: int = 0
    outcome: Outcome | None = None
    codes_KT: Tensor | None = None
    mel_MT: Tensor | None = None
    stream: GriffinLimStream | None = None
    position: int = 0
    samples: list[Tensor] = field(default_factory=list)

    @property
    def is_silent(self) -> bool:
        """Whether its listener waits for the first sound."""
        return self.wish.is_streamed and self.heard_until == NEVER_HEARD

    @property
    def urgency(self) -> tuple[bool, float, int]:
        """The least goes first: whose listener has least to hear, and who came first."""
        return not self.wish.is_streamed, self.heard_until, self.ticket

    def sound(self, samples_N: Tensor, outcome: Outcome | None) -> Sound:
        """What a step added."""
        return Sound(self.ticket, samples_N, outcome, self.attempt, self.heard_until)

    def nothing_yet(self) -> Sound:
        """A step that added no sound."""
        return self.sound(torch.zeros(0), None)


@dataclass
class _Batch:
    """Utterances whose mels are made together, and how many steps these still take."""

    jobs: list[_Job]
    plans: list[MelPlan]
    steps: Iterator[Tensor]
    left: int


class DiffusionSpeaker:
    """Speaks many requests with one denoiser and its codec LM: a :class:`~retort.inference.speaker.Speaker`.

    A step is one of the codec LM for all that are being written, one of the solver, or the sound of a few frames. The
    first two take turns, so neither a long text nor a long diffusion holds up the others. The codec LM's guard applies,
    and since no sound is given away before a sentence is written whole, any of them may be tried again.

    The same seed gives the same samples in any company on a CPU; see :class:`DiffusionSynthesizer` for a GPU.

    Args:
        synthesizer: denoiser and codec LM.
        max_slots: utterances at once.
        max_seconds: longest speech, whatever the text.
        max_text_tokens: longest text.
        guard: against runaways.
        clock: seconds; says how much each listener still has to hear.
    """

    def __init__(
        self,
        synthesizer: DiffusionSynthesizer,
        *,
        max_slots: int = 1,
        max_seconds: float = 30.0,
        max_text_tokens: int = 512,
        guard: GuardConfig = GuardConfig(),  # noqa: B008 - frozen
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.synthesizer, self.clock, self._max_slots = synthesizer, clock, max_slots
        self._lm = SpeechEngine(
            synthesizer.lm,
            max_slots=max_slots,
            max_seconds=max_seconds,
            max_text_tokens=max_text_tokens,
            guard=guard,
            clock=clock,
            stream=self._write,
        )
        self._jobs: dict[int, _Job] = {}
        """By their tickets, which are also the codec LM's."""
        self._codes: dict[int, _Codes] = {}
        self._waiting: list[_Job] = []
        self._batch: _Batch | None = None
        self._sounding: list[_Job] = []
        self._turn = 0
        self._prepared: MelDiffusionDecoding | None = None

    def _write(self, ticket: int) -> _Codes:
        self._codes[ticket] = _Codes()
        return self._codes[ticket]

    @property
    def facts(self) -> Facts:
        """What it is."""
        return self.synthesizer.facts

    @property
    def abilities(self) -> Abilities:
        """What may be asked of it."""
        return replace(
            self._lm.abilities,
            streams="by_sentence",
            takes_voices=True,
            guidance_scales=self.synthesizer.guidance_scales,
        )

    @property
    def sample_rate(self) -> int:
        """Of its sound, Hz."""
        return self.synthesizer.codec.sample_rate

    @property
    def number_format(self) -> str:
        """Of the steps of the codec LM, and of the denoiser."""
        return f"{self._lm.number_format}, {str(self.synthesizer.maker.dtype).removeprefix('torch.')}"

    @property
    def voices(self) -> tuple[str, ...]:
        """Names of the codec LM's stored voices, in order."""
        return self._lm.voices

    @property
    def voice_space(self) -> str:
        """Fingerprint of the codec: a prompt in its codes is the codec LM's voice, and its mel the denoiser's."""
        return self._lm.voice_space

    def voice_of(self, audio: Audio) -> Voice:
        """The whole recording as a prompt, in the codec."""
        return self._lm.voice_of(audio)

    def decoding(self, wanted: Decoding | None) -> MelDiffusionDecoding:
        """See :meth:`Speaker.decoding`."""
        return self.synthesizer.decoding(wanted)

    def decoding_at(self, guidance_scale: float) -> MelDiffusionDecoding:
        """See :meth:`Speaker.decoding_at`; of the denoiser."""
        return self.synthesizer.decoding_at(guidance_scale)

    def check(self, wish: Wish) -> Reading:
        """See :meth:`Speaker.check`."""
        return self._lm.check(wish)

    def read(self, text: str) -> Reading:
        """See :meth:`Speaker.read`."""
        return self._lm.read(text)

    def prepare(self, decoding: Decoding) -> None:
        """See :meth:`Speaker.prepare`."""
        assert not self._jobs, "utterances are under way"
        self._prepared = self.decoding(decoding)
        self._lm.prepare(self._prepared.lm)

    @property
    def num_active(self) -> int:
        """Utterances that are being spoken."""
        return len(self._jobs)

    @property
    def num_free(self) -> int:
        """Utterances that may join."""
        return self._max_slots - len(self._jobs)

    def warm_up(self) -> None:
        """Write, denoise and sound something of no meaning, as long as nothing is under way."""
        self._lm.warm_up()
        scale = next(iter(self.abilities.guidance_scales or ()), 1.0)
        decoding = self._prepared or self.decoding_at(scale)
        latents_LD = torch.zeros(_WARM_UP_FRAMES, self.synthesizer.maker.model.config.latent_dim)
        plan = MelPlan(latents_LD, None, _WARM_UP_FRAMES, seed=0)
        self.synthesizer.sound(self.synthesizer.make([plan], decoding)[0])

    def add(self, wish: Wish, *, heard_until: float = NEVER_HEARD) -> int:
        """See :meth:`Speaker.add`."""
        decoding = self.decoding(wish.decoding)
        if not self.num_free:
            raise RuntimeError(f"all {self._max_slots} slots are taken")
        # To the engine nobody listens: it treats all alike.
        ticket = self._lm.add(replace(wish, decoding=decoding.lm, is_streamed=False))
        self._jobs[ticket] = _Job(ticket, wish, decoding, heard_until)
        return ticket

    def cancel(self, ticket: int) -> None:
        """See :meth:`Speaker.cancel`; the others of a batch go on without it."""
        job = self._jobs.pop(ticket, None)
        if job is None:
            return
        self._lm.cancel(ticket)
        self._codes.pop(ticket, None)
        self._waiting = [other for other in self._waiting if other is not job]
        self._sounding = [other for other in self._sounding if other is not job]
        if self._batch is not None and not any(other.ticket in self._jobs for other in self._batch.jobs):
            self._batch = None

    def can_wait(self, heard_until: float) -> bool:
        """See :meth:`Speaker.can_wait`."""
        return any(job.is_silent for job in self._jobs.values()) and heard_until >= self.clock() + _SENTENCE_AHEAD_S

    def step(self, *, is_awaited: Callable[[], bool] = lambda: False) -> list[Sound]:
        """See :meth:`Speaker.step`: sound first, since it takes least, then by turns the denoiser and the codec LM."""
        self._turn += 1
        if self._sounding:
            return [self._sound(min(self._sounding, key=lambda job: job.urgency))]
        if (self._waiting or self._batch is not None) and (self._turn % 2 or not self._lm.num_active):
            return self._denoise()
        return [self._written(sound) for sound in self._lm.step(is_awaited=is_awaited)]

    def _written(self, sound: Sound) -> Sound:
        job = self._jobs[sound.ticket]
        job.attempt, job.outcome = sound.attempt, sound.outcome
        if sound.outcome is None:
            return job.nothing_yet()
        frames = self._codes.pop(job.ticket).frames
        if not frames or sound.outcome == "not_a_number":
            return self._end(job, sound.outcome)
        job.codes_KT = torch.cat(frames, dim=1)
        self._waiting.append(job)
        return job.nothing_yet()

    def _denoise(self) -> list[Sound]:
        batch = self._batch = self._batch or self._gather()
        x_BTM = next(batch.steps)
        batch.left -= 1
        staying = [
            (job, plan, x)
            for job, plan, x in zip(batch.jobs, batch.plans, x_BTM, strict=True)
            if job.ticket in self._jobs
        ]
        if batch.left:
            return [job.nothing_yet() for job, _, _ in staying]
        self._batch = None
        return [self._painted(job, x_TM[: plan.num_frames].float().cpu()) for job, plan, x_TM in staying]

    def _gather(self) -> _Batch:
        """The next mels to be made: the most urgent one, and those that can be made along with it."""
        self._waiting.sort(key=lambda job: job.urgency)
        decoding = self._waiting[0].decoding
        jobs = [job for job in self._waiting if job.decoding == decoding][: self.synthesizer.rows_at_once]
        self._waiting = [job for job in self._waiting if job not in jobs]
        codes = [job.codes_KT for job in jobs if job.codes_KT is not None]
        plans = self.synthesizer.plans([job.wish.request for job in jobs], codes, decoding)
        solver = solver_of(decoding)
        return _Batch(jobs, plans, self.synthesizer.maker.steps(plans, decoding.guidance, solver), solver.num_steps)

    def _painted(self, job: _Job, x_TM: Tensor) -> Sound:
        mel_TM = self.synthesizer.maker.model.denormalise(x_TM)
        if not torch.isfinite(mel_TM).all():
            return self._end(job, "not_a_number")
        job.mel_MT = without_soft_floor(mel_TM, self.synthesizer.codec.config).T
        job.stream = self.synthesizer.sound_stream()
        self._sounding.append(job)
        return job.nothing_yet()

    def _sound(self, job: _Job) -> Sound:
        """Sound of the next few frames."""
        assert job.mel_MT is not None
        assert job.stream is not None
        begin, end = job.position, min(job.position + _PIECE_FRAMES, job.mel_MT.shape[1])
        job.samples += [job.stream.push(job.mel_MT[:, t : t + 1]) for t in range(begin, end)]
        job.position = end
        if end == job.mel_MT.shape[1]:
            job.samples.append(job.stream.finish())
            self._sounding.remove(job)
            return self._end(job, job.outcome)
        return job.sound(self._take(job), None) if job.wish.is_streamed else job.nothing_yet()

    def _end(self, job: _Job, outcome: Outcome | None) -> Sound:
        assert outcome is not None
        del self._jobs[job.ticket]
        return job.sound(self._take(job), outcome)

    def _take(self, job: _Job) -> Tensor:
        samples_N = torch.cat([*job.samples, torch.zeros(0)])
        job.samples.clear()
        if samples_N.numel():
            job.heard_until = max(job.heard_until, self.clock()) + samples_N.numel() / self.sample_rate
        return samples_N

    def speak(self, requests: Sequence[Request], decoding: Decoding, *, max_seconds: float) -> list[Spoken]:
        """See :meth:`Speaker.speak`; unlike the utterances of :meth:`add`, these have no guard but ``max_seconds``."""
        assert not self._jobs, "a batch shares its runner with the utterances that are under way"
        return self.synthesizer.speak(requests, self.decoding(decoding), max_frames=self._frames(max_seconds))

    def time(self, requests: Sequence[Request], decoding: Decoding, *, seconds: float) -> Timing:
        """See :meth:`Speaker.time`."""
        assert not self._jobs, "a batch shares its runner with the utterances that are under way"
        return self.synthesizer.time(requests, self.decoding(decoding), num_frames=self._frames(seconds))

    def _frames(self, seconds: float) -> int:
        return max(1, round(seconds * self.synthesizer.codec.frame_rate))
