"""A thread that speaks: requests come from an event loop, sounds go back to it."""

import asyncio
import itertools
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from retort.errors import ConfigError, DataError
from retort.inference.speaker import NEVER_HEARD, Outcome, Sound, Speaker, Wish
from retort.serving.admission import Admission

_SHARE_HELD, _MOST_HELD_S = 0.25, 1.0
"""Of what a listener still has to hear, how much may be held back to be sent as one piece: each piece has its price."""
_NICENESS = 10
_LET_OUT_S = 0.001
"""Pause after a first sound that nobody else waits behind: with the machine to itself, it is out sooner."""


class OverloadedError(Exception):
    """Too much speech waits already.

    Args:
        retry_after_s: when some of it will be gone.
    """

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"try again in {retry_after_s:.1f} s")
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[type["OverloadedError"], tuple[float]]:
        return OverloadedError, (self.retry_after_s,)


@dataclass(frozen=True)
class Snippet:
    """Part of an utterance: samples, and at its end how it went."""

    samples_N: Tensor
    outcome: Outcome | None = None
    attempt: int = 0
    fingerprint: str = ""
    """Of the model that said it, if more than one may answer to a name."""
    unread: str = ""
    """Characters of the whole text that the model cannot read, each once; told with the first piece."""


@dataclass(eq=False)
class _Conversation:
    """A request.

    Attributes:
        number: its own.
        parts: those that have not begun.
        loop: of its listener.
        max_samples: of all parts together, to a frame.
        ticket: of the speaker, while it speaks.
        held: samples that have not been sent yet.
        heard_until: see :class:`Sound`.
        text: of all parts.
        unread: what cannot be read of it, until that is told.
    """

    number: int
    parts: deque[Wish]
    loop: asyncio.AbstractEventLoop
    max_samples: float
    pieces: asyncio.Queue[Snippet | Exception] = field(default_factory=asyncio.Queue)
    is_cancelled: bool = False
    ticket: int | None = None
    begun: float = field(default_factory=time.monotonic)
    samples: int = 0
    held: list[Tensor] = field(default_factory=list)
    heard_until: float = NEVER_HEARD
    text: str = ""
    unread: str = ""

    def __post_init__(self) -> None:
        self.text = " ".join(wish.request.text for wish in self.parts)

    def send(self, piece: Snippet | Exception) -> None:
        """From the speaker's thread."""
        try:
            self.loop.call_soon_threadsafe(self.pieces.put_nowait, piece)
        except RuntimeError:
            self.is_cancelled = True  # the loop is closed: nobody listens any more


class Speaking:
    """Runs one :class:`Speaker` in a thread of its own, which owns it from the first step on.

    Args:
        speaker: of one model.
        max_waiting_s: see :class:`Admission`.
    """

    def __init__(self, speaker: Speaker, *, max_waiting_s: float) -> None:
        self.speaker, self.admission = speaker, Admission(speaker.num_free, max_waiting_s)
        self._fingerprint = speaker.facts.fingerprint
        self.frames_after_cancel = self.num_cancelled = 0
        self._waiting: deque[_Conversation] = deque()
        self._speaking: dict[int, _Conversation] = {}
        self._numbers = itertools.count()
        self._wake, self._stopping = threading.Condition(), False
        self._has_begun = False
        """Whether a first sound has just been handed over."""
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="speaking", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread still works."""
        return self._thread.is_alive() and self._failure is None

    def stop(self) -> None:
        """End the thread; requests that are under way get an error."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    async def speak(self, *parts: Wish, max_seconds: float = math.inf) -> AsyncIterator[Snippet]:
        """The pieces of an utterance, said part after part; the last one carries the outcome.

        All parts together take at most ``max_seconds``, to a frame: the outcome is ``too_long`` where that cuts them
        off. Leaving the iterator cancels the request: it takes no step after the one that is being computed. Parts
        in which the model can read nothing are left out, unless there are no others.

        Raises:
            ConfigError: see :meth:`Speaker.add`.
            DataError: the same.
            OverloadedError: too much speech waits.
        """
        max_samples = max_seconds * self.speaker.sample_rate
        talk = _Conversation(next(self._numbers), deque(parts), asyncio.get_running_loop(), max_samples)
        with self._wake:
            if self._failure is not None:
                raise self._failure
            retry_after_s = self.admission.enter(talk.number, talk.text)
            if retry_after_s is not None:
                raise OverloadedError(retry_after_s)
            self._waiting.append(talk)
            self._wake.notify()
        try:
            while True:
                piece = await talk.pieces.get()
                if isinstance(piece, Exception):
                    raise piece
                yield piece
                if piece.outcome is not None:
                    return
        finally:
            with self._wake:
                talk.is_cancelled = True
                self._wake.notify()

    def _run(self) -> None:
        torch.set_num_threads(1)
        _give_way()
        try:
            while self._take_turns():
                for sound in self.speaker.step(is_awaited=self._is_awaited):
                    self._hand_over(self._speaking[sound.ticket], sound)
                if self._has_begun:
                    self._let_out()
            failure: Exception = RuntimeError("the replica is stopping")
        except Exception as error:  # noqa: BLE001 - the thread must not die in silence
            failure = error
        with self._wake:
            self._failure = failure
            for talk in [*self._waiting, *self._speaking.values()]:
                talk.send(failure)

    def _is_awaited(self) -> bool:
        return bool(self._waiting) and self.speaker.num_free > 0

    def _let_out(self) -> None:
        self._has_begun = False
        with self._wake:
            if not self._waiting and all(talk.samples for talk in self._speaking.values()):
                self._wake.wait(_LET_OUT_S)

    def _take_turns(self) -> bool:
        """Let cancelled requests go and waiting ones in; sleeps while there is nothing to say. False at the end."""
        with self._wake:
            while not (self._stopping or self._waiting or self._speaking):
                self._wake.wait()
            for ticket, talk in list(self._speaking.items()):
                if talk.is_cancelled:
                    self.num_cancelled += 1
                    self._leave(talk)
                    self.speaker.cancel(ticket)
            for talk in [talk for talk in self._waiting if talk.is_cancelled]:
                self._waiting.remove(talk)
                self.admission.leave(talk.number, talk.text)
        while (entering := self._next_in_line()) is not None:
            self._let_in(entering)
        return not self._stopping

    def _next_in_line(self) -> _Conversation | None:
        """Who begins a part now: somebody new before those who go on, whose slots are kept for them meanwhile."""
        with self._wake:
            free = 0 if self._stopping else self.speaker.num_free
            new = [talk for talk in self._waiting if talk.ticket is None]
            going_on = [talk for talk in self._waiting if talk.ticket is not None]
            if new and free > len(going_on):
                first = new[0]
            elif going_on and free:
                first = min(going_on, key=lambda talk: talk.heard_until)
                if self.speaker.can_wait(first.heard_until):
                    return None
            else:
                return None
            self._waiting.remove(first)
            return first

    def _let_in(self, talk: _Conversation) -> None:
        """Begin its next part, without the lock: nobody who is refused meanwhile shall wait for that."""
        try:
            ticket = None if talk.is_cancelled else self._begin_part(talk)
        except Exception as error:
            with self._wake:
                self.admission.leave(talk.number, talk.text)
            talk.send(error)
            if not isinstance(error, ConfigError | DataError):
                raise
            return
        with self._wake:
            if ticket is None:
                self.admission.leave(talk.number, talk.text)
                return
            talk.ticket = ticket
            self._speaking[ticket] = talk
            self.admission.start(talk.number)

    def _begin_part(self, talk: _Conversation) -> int:
        """The ticket of its next part. Before the first one, all are checked: nothing is said of a text in vain."""
        if talk.ticket is None:
            talk.parts, talk.unread = self._sayable(talk.parts)
        part = talk.parts.popleft()
        left_s = (talk.max_samples - talk.samples) / self.speaker.sample_rate
        if left_s < (part.max_seconds or math.inf):
            part = replace(part, max_seconds=left_s)
        return self.speaker.add(part, heard_until=talk.heard_until)

    def _sayable(self, parts: Sequence[Wish]) -> tuple[deque[Wish], str]:
        """Parts that say something, with the seeds of so many parts, and the characters of all that cannot be read.

        Raises:
            ConfigError: one is too long.
            DataError: none of them says anything.
        """
        said, unread, faults = list[Wish](), "", list[DataError]()
        for part in parts:
            try:
                unread += self.speaker.check(part).unread
                said.append(part)
            except DataError as fault:
                unread += self.speaker.read(part.request.text).unread
                faults.append(fault)
        if not said:
            raise faults[0]
        seeded = [
            replace(part, request=replace(part.request, seed=given.request.seed))
            for part, given in zip(said, parts, strict=False)
        ]
        return deque(seeded), "".join(dict.fromkeys(unread))

    def _hand_over(self, talk: _Conversation, sound: Sound) -> None:
        talk.samples += sound.samples_N.numel()
        talk.heard_until = sound.heard_until
        if sound.samples_N.numel():
            talk.held.append(sound.samples_N)
        if talk.is_cancelled:
            self.frames_after_cancel += 1
        outcome = sound.outcome
        if outcome == "said" and talk.parts:
            outcome = self._go_on(talk)
        if outcome is not None:
            with self._wake:
                self._leave(talk, is_whole=outcome == "said")
        if outcome is not None or self._is_worth_sending(talk):
            samples_N = torch.cat([*talk.held, torch.zeros(0)])
            talk.send(Snippet(samples_N, outcome, sound.attempt, self._fingerprint, talk.unread))
            talk.held.clear()
            talk.unread = ""
            self._has_begun |= 0 < talk.samples == sound.samples_N.numel()

    def _is_worth_sending(self, talk: _Conversation) -> bool:
        held_s = sum(samples_N.numel() for samples_N in talk.held) / self.speaker.sample_rate
        ahead_s = talk.heard_until - self.speaker.clock() - held_s
        return held_s > min(_MOST_HELD_S, _SHARE_HELD * max(0.0, ahead_s))

    def _go_on(self, talk: _Conversation) -> Outcome | None:
        """Let it wait for its next part, unless the whole is too long already."""
        if talk.samples >= talk.max_samples:
            return "too_long"
        with self._wake:
            assert talk.ticket is not None
            del self._speaking[talk.ticket]
            self._waiting.append(talk)
        return None

    def _leave(self, talk: _Conversation, *, is_whole: bool = False) -> None:
        assert talk.ticket is not None
        del self._speaking[talk.ticket]
        audio_s = talk.samples / self.speaker.sample_rate if is_whole else None
        self.admission.leave(
            talk.number, talk.text, audio_s=audio_s, wall_s=time.monotonic() - talk.begun
        )  # fmt: skip


def _give_way() -> None:
    """Let this thread compute when nobody else wants to: refusing and admitting are short, and somebody waits for them.

    Only Linux has a niceness for each thread.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS)
