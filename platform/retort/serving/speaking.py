"""A thread that speaks: requests come from an event loop, sounds go back to it."""

import asyncio
import itertools
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from retort.inference.runner import Plan
from retort.inference.speech import Outcome, SpeechEngine, Wish
from retort.serving.admission import Admission


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
class Piece:
    """Part of an utterance: samples, and at its end how it went."""

    samples_N: Tensor
    outcome: Outcome | None = None
    attempt: int = 0


@dataclass
class _Conversation:
    number: int
    parts: deque[tuple[Wish, Plan]]
    loop: asyncio.AbstractEventLoop
    pieces: asyncio.Queue[Piece | Exception]
    is_cancelled: bool = False
    ticket: int | None = None
    begun: float = field(default_factory=time.monotonic)
    samples: int = 0
    max_samples: float = math.inf
    text: str = ""

    def __post_init__(self) -> None:
        self.text = " ".join(wish.request.text for wish, _ in self.parts)

    def send(self, piece: Piece | Exception) -> None:
        """From the engine's thread."""
        try:
            self.loop.call_soon_threadsafe(self.pieces.put_nowait, piece)
        except RuntimeError:
            self.is_cancelled = True  # the loop is closed: nobody listens any more


class Speaking:
    """Runs one :class:`SpeechEngine` in a thread of its own, which owns it from the first step on.

    Args:
        engine: of one model.
        max_waiting_s: see :class:`Admission`.
    """

    def __init__(self, engine: SpeechEngine, *, max_waiting_s: float) -> None:
        self.engine, self.admission = engine, Admission(engine.num_free, max_waiting_s)
        self.frames_after_cancel = self.num_cancelled = 0
        self._waiting: deque[_Conversation] = deque()
        self._speaking: dict[int, _Conversation] = {}
        self._numbers = itertools.count()
        self._wake, self._stopping = threading.Condition(), False
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

    async def speak(self, *parts: Wish, max_seconds: float = math.inf) -> AsyncIterator[Piece]:
        """The pieces of an utterance, said part after part; the last one carries the outcome.

        No part begins after ``max_seconds`` of speech: the outcome is ``too_long`` then. Leaving the iterator cancels
        the request: it takes no step after the one that is being computed.

        Raises:
            ConfigError: see :meth:`SpeechEngine.plan`.
            DataError: the same.
            OverloadedError: too much speech waits.
        """
        plans = await asyncio.to_thread(lambda: [(part, self.engine.plan(part)) for part in parts])
        talk = _Conversation(next(self._numbers), deque(plans), asyncio.get_running_loop(), asyncio.Queue())
        talk.max_samples = max_seconds * self.engine.synthesizer.codec.sample_rate
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
        try:
            while self._take_turns():
                for sound in self.engine.step():
                    self._hand_over(self._speaking[sound.ticket], Piece(sound.samples_N, sound.outcome, sound.attempt))
            failure: Exception = RuntimeError("the replica is stopping")
        except Exception as error:  # noqa: BLE001 - the thread must not die in silence
            failure = error
        with self._wake:
            self._failure = failure
            for talk in [*self._waiting, *self._speaking.values()]:
                talk.send(failure)

    def _take_turns(self) -> bool:
        """Let cancelled requests go and waiting ones in; sleeps while there is nothing to say. False at the end."""
        with self._wake:
            while not (self._stopping or self._waiting or self._speaking):
                self._wake.wait()
            for ticket, talk in list(self._speaking.items()):
                if talk.is_cancelled:
                    self.num_cancelled += 1
                    self._leave(talk)
                    self.engine.cancel(ticket)
            while self._waiting and self.engine.num_free and not self._stopping:
                talk = self._waiting.popleft()
                if talk.is_cancelled:
                    self.admission.leave(talk.number, talk.text)
                    continue
                talk.ticket = self.engine.add(*talk.parts.popleft())
                self._speaking[talk.ticket] = talk
                self.admission.start(talk.number)
            return not self._stopping

    def _hand_over(self, talk: _Conversation, piece: Piece) -> None:
        talk.samples += piece.samples_N.numel()
        if talk.is_cancelled:
            self.frames_after_cancel += 1
        if piece.outcome == "said" and talk.parts:
            piece = self._go_on(talk, piece)
        if piece.outcome is not None:
            with self._wake:
                self._leave(talk, is_whole=piece.outcome == "said")
        if piece.outcome is not None or piece.samples_N.numel():
            talk.send(piece)

    def _go_on(self, talk: _Conversation, piece: Piece) -> Piece:
        """Put the next part before everybody who waits, unless the whole is too long already."""
        if talk.samples >= talk.max_samples:
            return replace(piece, outcome="too_long")
        with self._wake:
            assert talk.ticket is not None
            del self._speaking[talk.ticket]
            self._waiting.appendleft(talk)
        return replace(piece, outcome=None)

    def _leave(self, talk: _Conversation, *, is_whole: bool = False) -> None:
        assert talk.ticket is not None
        del self._speaking[talk.ticket]
        audio_s = talk.samples / self.engine.synthesizer.codec.sample_rate if is_whole else None
        self.admission.leave(
            talk.number, talk.text, audio_s=audio_s, wall_s=time.monotonic() - talk.begun
        )  # fmt: skip
