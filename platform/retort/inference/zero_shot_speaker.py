"""The speaker of a zero-shot model: phones in a prompt's voice to a mel, all at once, and its folder's way to sound."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from retort.audio.files import Audio
from retort.errors import ConfigError, DataError, MissingRequirementError
from retort.inference.decoding import Decoding, ZeroShotDecoding
from retort.inference.inversion import SoundStream
from retort.inference.phone_reading import PhoneReader
from retort.inference.speaker import NEVER_HEARD, Abilities, Facts, Outcome, Request, Sound, Spoken, Timing, Wish
from retort.inference.speech import GuardConfig
from retort.inference.timing import wait_for
from retort.inference.voices import Voice
from retort.inference.zero_shot_making import MelWish, ZeroShotMaker
from retort.models.codec_lm import count_parameters
from retort.text.reading import Reading

PROMPT, TIMBRE = "prompt", "timbre"
"""Names of a voice's tensors: the natural-log mel [S, M] of a recording, and the speaker encoder's vector [E]."""
_SENTENCE_AHEAD_S = 2.0
"""With this much to hear, a listener can wait for its next sentence while somebody else has heard nothing yet."""
_PIECE_FRAMES = 32
"""Mel frames that one step turns into sound."""
_TIMED_UTTERANCES = 2
"""Sound is made of one utterance after the other, so a few stand for all."""


@dataclass(eq=False)
class _Job:
    """An utterance: its mel [M, T] is made in one step, its sound in steps of some frames."""

    ticket: int
    wish: Wish
    plan: MelWish
    max_frames: int
    heard_until: float
    outcome: Outcome | None = None
    mel_MT: Tensor | None = None
    stream: SoundStream | None = None
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
        return Sound(self.ticket, samples_N, outcome, 0, self.heard_until)


class ZeroShotSpeaker:
    """Speaks many requests with one zero-shot model: a :class:`~retort.inference.speaker.Speaker`.

    A step makes one mel, or the sound of a few frames of one, for whoever has least to hear. What a text may last is
    bounded by the guard; there are no loops to look for, and a second try would be no better.

    Args:
        maker: the model with its voices.
        max_slots: utterances at once.
        max_seconds: longest speech, whatever the text.
        max_text_tokens: longest text, in phones and pauses.
        guard: says how long a text may last.
        clock: seconds; says how much each listener still has to hear.
    """

    def __init__(
        self,
        maker: ZeroShotMaker,
        *,
        max_slots: int = 1,
        max_seconds: float = 30.0,
        max_text_tokens: int = 512,
        guard: GuardConfig = GuardConfig(),  # noqa: B008 - frozen
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        lineage = maker.loaded.lineage
        self.maker, self.guard, self.clock = maker, guard, clock
        self.reader = PhoneReader(lineage.voice, lineage.language, lineage.phones)
        self._max_slots, self._max_seconds, self._max_text_tokens = max_slots, max_seconds, max_text_tokens
        self._jobs: dict[int, _Job] = {}
        self._next_ticket = 0

    @property
    def facts(self) -> Facts:
        """What it is; the frozen timbre encoder, which listens to new voices only, is counted by itself."""
        loaded, config = self.maker.loaded, self.maker.loaded.model.config
        layers = config.num_layers + config.style_layers + len(config.decoder_dilations)
        return Facts(
            loaded.fingerprint,
            config.type,
            loaded.lineage,
            count_parameters(loaded.model),
            layers,
            self.maker.encoder_parameters,
            self.maker.inverter.parameters,
        )

    @property
    def abilities(self) -> Abilities:
        """What may be asked of it."""
        return Abilities(
            streams="by_sentence",
            takes_voices=self.maker.has_encoder,
            guidance_scales=(),
            max_seconds=self._max_seconds,
            max_text_tokens=self._max_text_tokens,
        )

    @property
    def sample_rate(self) -> int:
        """Of its sound, Hz."""
        return self.maker.mel.sample_rate

    @property
    def number_format(self) -> str:
        """Of its steps."""
        return "float32"

    @property
    def voices(self) -> tuple[str, ...]:
        """Names of the stored voices, in order."""
        return tuple(sorted(self.maker.voices))

    @property
    def voice_space(self) -> str:
        """Fingerprint of the mels, the speaker encoder and the loudness that voices are told in."""
        lineage = self.maker.loaded.lineage
        parts = [lineage.mel.model_dump(mode="json"), lineage.timbre_encoder]
        told = json.dumps(parts if lineage.target_lufs is None else [*parts, lineage.target_lufs], sort_keys=True)
        return f"zero_shot-{hashlib.sha256(told.encode()).hexdigest()[:16]}"

    def voice_of(self, audio: Audio) -> Voice:
        """The recording's beginning as a prompt, and the timbre of all of it.

        Raises:
            DataError: no voice is heard in it.
        """
        prompt_SM, timbre_E = self.maker.voice_of(audio)
        return Voice(self.voice_space, {PROMPT: prompt_SM, TIMBRE: timbre_E})

    def decoding(self, wanted: Decoding | None) -> ZeroShotDecoding:
        """See :meth:`Speaker.decoding`."""
        match wanted:
            case None:
                return ZeroShotDecoding()
            case ZeroShotDecoding():
                return wanted
            case _:
                raise ConfigError(f"this model is a zero_shot, its decoding was given as kind: {wanted.kind}")

    def decoding_at(self, guidance_scale: float) -> ZeroShotDecoding:
        """See :meth:`Speaker.decoding_at`."""
        if guidance_scale != 1.0:
            raise ConfigError(f"a zero-shot model is not guided; give no guidance scale instead of {guidance_scale:g}")
        return ZeroShotDecoding()

    def check(self, wish: Wish) -> Reading:
        """See :meth:`Speaker.check`."""
        reading = self.reader.spoken(wish.request.text)
        if len(reading.ids) > self._max_text_tokens:
            raise ConfigError(
                f"the text has {len(reading.ids)} phones and pauses, and there is room for {self._max_text_tokens}; "
                "make it shorter, or split it"
            )
        return reading

    def read(self, text: str) -> Reading:
        """See :meth:`Speaker.read`."""
        return self.reader.read(text)

    def prepare(self, decoding: Decoding) -> None:
        """See :meth:`Speaker.prepare`: every decoding takes the same room."""
        assert not self._jobs, "utterances are under way"
        self.decoding(decoding)

    @property
    def num_active(self) -> int:
        """Utterances that are being spoken."""
        return len(self._jobs)

    @property
    def num_free(self) -> int:
        """Utterances that may join."""
        return self._max_slots - len(self._jobs)

    def warm_up(self) -> None:
        """Read a letter, and say a pause in the first voice."""
        self.reader.read("a")
        prompt_SM, timbre_E = self._voice(Request("a", self.voices[0], 0))
        self._sound(self.maker.make(MelWish(self.maker.numbers([""]), prompt_SM, timbre_E, 0, 0.0))[0])

    def add(self, wish: Wish, *, heard_until: float = NEVER_HEARD) -> int:
        """See :meth:`Speaker.add`."""
        decoding = self.decoding(wish.decoding)
        if not self.num_free:
            raise RuntimeError(f"all {self._max_slots} slots are taken")
        plan = self._plan(wish.request, self.check(wish), decoding)
        written = max(wish.request.text, self.reader.written(wish.request.text), key=len)
        limits = (self.guard.max_seconds(written), self._max_seconds, wish.max_seconds or self._max_seconds)
        job = _Job(self._next_ticket, wish, plan, self._frames(min(limits)), heard_until)
        self._jobs[job.ticket] = job
        self._next_ticket += 1
        return job.ticket

    def cancel(self, ticket: int) -> None:
        """See :meth:`Speaker.cancel`."""
        self._jobs.pop(ticket, None)

    def can_wait(self, heard_until: float) -> bool:
        """See :meth:`Speaker.can_wait`."""
        return any(job.is_silent for job in self._jobs.values()) and heard_until >= self.clock() + _SENTENCE_AHEAD_S

    def step(self, *, is_awaited: Callable[[], bool] = lambda: False) -> list[Sound]:
        """See :meth:`Speaker.step`: the most urgent utterance gets its mel, or some of its sound."""
        del is_awaited
        if not self._jobs:
            return []
        job = min(self._jobs.values(), key=lambda job: job.urgency)
        return [self._paint(job) if job.mel_MT is None else self._hear(job)]

    def _paint(self, job: _Job) -> Sound:
        mel_TM, _ = self.maker.make(job.plan)
        if not torch.isfinite(mel_TM).all():
            return self._end(job, "not_a_number")
        job.outcome = "said" if len(mel_TM) <= job.max_frames else "too_long"
        job.mel_MT, job.stream = mel_TM[: job.max_frames].T, self.maker.sound_stream()
        return job.sound(torch.zeros(0), None)

    def _hear(self, job: _Job) -> Sound:
        """Sound of the next few frames."""
        assert job.mel_MT is not None
        assert job.stream is not None
        begin, end = job.position, min(job.position + _PIECE_FRAMES, job.mel_MT.shape[1])
        job.samples += [job.stream.push(job.mel_MT[:, t : t + 1]) for t in range(begin, end)]
        job.position = end
        if end == job.mel_MT.shape[1]:
            job.samples.append(job.stream.finish())
            return self._end(job, job.outcome)
        return job.sound(self._take(job) if job.wish.is_streamed else torch.zeros(0), None)

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
        assert not self._jobs, "utterances are under way"
        given, limit = self.decoding(decoding), self._frames(max_seconds)
        plans = [self._plan(request, self.reader.spoken(request.text), given) for request in requests]
        return [self._spoken(self.maker.make(plan)[0], limit) for plan in plans]

    def _spoken(self, mel_TM: Tensor, limit: int) -> Spoken:
        cut_TM = mel_TM[:limit]
        return Spoken(self._sound(cut_TM), self.sample_rate, len(mel_TM) <= limit, None, cut_TM)

    def time(self, requests: Sequence[Request], decoding: Decoding, *, seconds: float) -> Timing:
        """See :meth:`Speaker.time`; every phone lasts equally long.

        Its figures: ``nfe`` are passes of the network: one; ``timbre_seconds`` is what a new voice takes besides, as
        long as the longest prompt, where its encoder is installed.
        """
        assert not self._jobs, "utterances are under way"
        given, frames = self.decoding(decoding), self._frames(seconds)
        begin = time.perf_counter()
        mels: list[Tensor] = []
        for request in requests:
            plan = self._plan(request, self.reader.spoken(request.text), given, frames=frames)
            mels.append(self.maker.make(plan)[0])
            wait_for(self.maker.device)
        compute_s = time.perf_counter() - begin
        begin = time.perf_counter()
        few = mels[:_TIMED_UTTERANCES]
        for mel_TM in few:
            self._sound(mel_TM)
        sound_s = (time.perf_counter() - begin) * len(mels) / len(few)
        audio_s = sum(map(len, mels)) / self.maker.mel.frame_rate
        return Timing(compute_s, sound_s, audio_s, figures={"nfe": 1.0, **self._timbre_figures()})

    def _timbre_figures(self) -> dict[str, float]:
        samples = self.maker.prompt_max_frames * self.maker.mel.hop_samples
        tone = Audio(0.1 * torch.sin(0.05 * torch.arange(samples)), self.sample_rate)
        try:
            self.maker.voice_of(tone)  # the first one waits for the encoder's files
        except (DataError, MissingRequirementError):
            return {}
        begin = time.perf_counter()
        self.maker.voice_of(tone)
        return {"timbre_seconds": time.perf_counter() - begin}

    def _plan(
        self, request: Request, reading: Reading, decoding: ZeroShotDecoding, *, frames: int | None = None
    ) -> MelWish:
        prompt_SM, timbre_E = self._voice(request)
        frames_P = None if frames is None else _evenly(frames, len(reading.ids))
        return MelWish(reading.ids, prompt_SM, timbre_E, request.seed, decoding.noise_scale, decoding.tempo, frames_P)

    def _voice(self, request: Request) -> tuple[Tensor, Tensor]:
        if request.voice is not None:
            prompt_SM, timbre_E = (request.voice.tensor(name, self.voice_space) for name in (PROMPT, TIMBRE))
            return prompt_SM, timbre_E
        stored = self.maker.voices.get(request.speaker)
        if stored is None:
            raise ConfigError(f"no voice {request.speaker!r}; the model has {', '.join(self.voices)}")
        return stored.prompt_SM, stored.timbre_E

    def _sound(self, mel_TM: Tensor) -> Tensor:
        """Samples [N] of a log-mel; of none, where it is not numbers."""
        if not torch.isfinite(mel_TM).all():
            return torch.zeros(0)
        stream = self.maker.sound_stream()
        return torch.cat([*(stream.push(frame_M[:, None]) for frame_M in mel_TM), stream.finish()])

    def _frames(self, seconds: float) -> int:
        return max(1, round(seconds * self.maker.mel.frame_rate))


def _evenly(frames: int, phones: int) -> Tensor:
    """Durations [P] that differ by one at most; one frame each where there are too few."""
    ends_P = torch.arange(1, phones + 1) * max(frames, phones) // phones
    return torch.diff(ends_P, prepend=torch.zeros(1, dtype=ends_P.dtype))
