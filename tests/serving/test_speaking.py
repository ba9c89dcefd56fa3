"""The speaking thread: many requests from an event loop, admission, cancelling, and failures that reach everybody."""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from retort.errors import ConfigError, DataError
from retort.inference.speaker import Request, Sound, Wish, in_parts
from retort.inference.speech import GuardConfig, SpeechEngine
from retort.inference.synthesizer import Synthesizer
from retort.serving.admission import Admission
from retort.serving.speaking import OverloadedError, Snippet, Speaking
from retort.text.front_end import TextFrontEnd
from retort.text.reading import Reading
from tests.inference.speaking import speaking_model
from tests.patience import HANG_S

GUARD = GuardConfig(seconds_per_character=0.1, extra_seconds=2.0, retries=0)


@pytest.fixture(scope="module")
def synthesizer(tmp_path_factory: pytest.TempPathFactory) -> Synthesizer:
    return Synthesizer.open(speaking_model(tmp_path_factory.mktemp("speaking")))


def engine(synthesizer: Synthesizer, *, slots: int = 2) -> SpeechEngine:
    return SpeechEngine(synthesizer, max_slots=slots, max_conditions=1, max_seconds=8.0, guard=GUARD)


def wish(seed: int, text: str = "one two three") -> Wish:
    return Wish(Request(text, "s0", seed))


async def collect(speaking: Speaking, wanted: Wish) -> list[Snippet]:
    return [piece async for piece in speaking.speak(wanted)]


def test_more_requests_than_slots_all_get_what_they_would_get_alone(synthesizer: Synthesizer) -> None:
    alone = {}
    for seed in range(6):
        lonely = engine(synthesizer)
        ticket = lonely.add(wish(seed))
        parts = []
        while lonely.num_active:
            parts += [sound.samples_N for sound in lonely.step() if sound.ticket == ticket]
        alone[seed] = torch.cat(parts)
    speaking = Speaking(engine(synthesizer), max_waiting_s=100.0)

    async def everybody() -> list[list[Snippet]]:
        return await asyncio.gather(*(collect(speaking, wish(seed)) for seed in range(6)))

    try:
        for seed, pieces in enumerate(asyncio.run(everybody())):
            assert torch.equal(torch.cat([piece.samples_N for piece in pieces]), alone[seed])
            assert [piece.outcome is None for piece in pieces] == [True] * (len(pieces) - 1) + [False]
        assert speaking.admission.in_flight_s == 0
    finally:
        speaking.stop()


def alone(synthesizer: Synthesizer, wanted: Wish) -> tuple[torch.Tensor, str | None]:
    lonely = engine(synthesizer)
    lonely.add(wanted)
    sounds = []
    while lonely.num_active:
        sounds += lonely.step()
    return torch.cat([sound.samples_N for sound in sounds]), sounds[-1].outcome


def test_a_long_text_is_said_part_after_part(synthesizer: Synthesizer) -> None:
    long = "one two three. four five six."
    for seed in range(300):
        parts = in_parts(wish(seed, long), 16)
        expected = [alone(synthesizer, part) for part in parts]
        if all(outcome == "said" for _, outcome in expected):
            break
    assert [part.request.text for part in parts] == ["one two three.", "four five six."]
    assert parts[0].request.seed == seed != parts[1].request.seed
    speaking = Speaking(engine(synthesizer, slots=1), max_waiting_s=100.0)

    async def both(**limits: float) -> list[list[Snippet]]:
        async def whole() -> list[Snippet]:
            return [piece async for piece in speaking.speak(*parts, **limits)]

        return [pieces for pieces in await asyncio.gather(whole(), collect(speaking, wish(1))) if pieces]

    try:
        pieces, _ = asyncio.run(both())
        assert torch.equal(torch.cat([piece.samples_N for piece in pieces]), torch.cat([part for part, _ in expected]))
        assert [piece.outcome for piece in pieces][-1:] == ["said"]
        assert all(piece.outcome is None for piece in pieces[:-1]), "parts in between end nothing"
        rate, frame_rate = synthesizer.codec.sample_rate, synthesizer.codec.frame_rate
        lengths_s = [samples_N.numel() / rate for samples_N, _ in expected]
        for limit_s in (lengths_s[0] / 2, lengths_s[0], lengths_s[0] + lengths_s[1] / 2):
            pieces, _ = asyncio.run(both(max_seconds=limit_s))
            assert pieces[-1].outcome == "too_long"
            said_s = sum(piece.samples_N.numel() for piece in pieces) / rate
            assert said_s == pytest.approx(limit_s, abs=1 / frame_rate), "of all parts together"
        assert speaking.admission.in_flight_s == 0
    finally:
        speaking.stop()


@pytest.mark.parametrize(
    ("text", "voice", "error"),
    [("three " * 300, "s0", ConfigError), ("three", "eve", ConfigError)],
)
def test_a_later_part_that_cannot_be_said_ends_the_request_and_nothing_else(
    synthesizer: Synthesizer, text: str, voice: str, error: type[Exception]
) -> None:
    """What a text can do wrong is told before any sound; a voice is the same in all parts, or else it is told late."""
    speaking = Speaking(engine(synthesizer, slots=1), max_waiting_s=100.0)
    parts = [wish(0), Wish(Request(text, voice, 2))]
    heard = []

    async def say() -> None:
        async for piece in speaking.speak(*parts):
            heard.append(piece)  # noqa: PERF401 - what came before the error counts

    try:
        with pytest.raises(error):
            asyncio.run(say())
        assert bool(heard) == (voice != "s0")
        assert asyncio.run(collect(speaking, wish(3)))[-1].outcome is not None, "its slot is free again"
        assert speaking.admission.in_flight_s == 0
    finally:
        speaking.stop()


def test_parts_that_say_nothing_to_the_model_are_left_out_and_read_by_its_own_thread(
    synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading a page takes longer than refusing it: the event loop, which refuses, does not."""
    long = "你好, 世界。 one two three. ... Привет! four five six."
    read_by = set[str]()
    read = TextFrontEnd.read

    def noted(front_end: TextFrontEnd, text: str) -> Reading:
        read_by.add(threading.current_thread().name)
        return read(front_end, text)

    lonely = engine(synthesizer)

    def expected(seed: int) -> list[Wish]:
        return in_parts(wish(seed, long), 16, lambda text: lonely.read(text).says_something)

    assert [part.request.text for part in expected(0)] == ["one two three.", "four five six."]
    # Random weights seldom end by themselves, and a part that does not is the last one.
    seed = next(n for n in range(300) if all(alone(synthesizer, part)[1] == "said" for part in expected(n)))
    speaking = Speaking(engine(synthesizer, slots=1), max_waiting_s=100.0)

    async def said(*parts: Wish) -> list[Snippet]:
        return [piece async for piece in speaking.speak(*parts)]

    try:
        wanted = asyncio.run(said(*expected(seed)))
        monkeypatch.setattr(TextFrontEnd, "read", noted)
        pieces = asyncio.run(said(*in_parts(wish(seed, long), 16)))
        whole = [torch.cat([piece.samples_N for piece in one]) for one in (wanted, pieces)]
        assert torch.equal(*whole), "with the seeds of so many parts"
        assert [one[-1].outcome for one in (wanted, pieces)] == ["said", "said"]
        assert (wanted[0].unread, pieces[0].unread) == ("", "你好世界привет")
        with pytest.raises(DataError, match="none of the letters"):
            asyncio.run(said(*in_parts(wish(seed, "你好, 世界。 Привет! 你好, 世界。"), 8)))
    finally:
        speaking.stop()
    assert read_by == {"speaking"}


def test_whoever_has_much_to_hear_gets_larger_pieces(synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that stands still, all sound lies ahead."""
    guard = GUARD.replace(max_repeat_seconds=9.0)
    slow = SpeechEngine(
        synthesizer, max_slots=1, max_conditions=1, max_seconds=8.0, guard=guard, clock=lambda: 100.0
    )  # fmt: skip
    plan = slow.plan
    monkeypatch.setattr(slow, "plan", lambda wanted: replace(plan(wanted), may_end=False))
    speaking = Speaking(slow, max_waiting_s=100.0)
    try:
        pieces = asyncio.run(collect(speaking, wish(0, "a very long text " * 4)))
    finally:
        speaking.stop()
    seconds = [piece.samples_N.numel() / synthesizer.codec.sample_rate for piece in pieces]
    assert sum(seconds) == pytest.approx(8.0)
    assert seconds[0] < 0.2, "the first one goes at once"
    for index, length in enumerate(seconds[1:-1], 1):
        assert length > min(1.0, 0.25 * sum(seconds[:index]))
    assert max(seconds[:-1]) < 1.3


def test_leaving_stops_the_request_within_a_frame(synthesizer: Synthesizer) -> None:
    speaking = Speaking(engine(synthesizer, slots=1), max_waiting_s=100.0)

    async def leave_early() -> list[Snippet]:
        async for _ in (pieces := speaking.speak(wish(1, "a very long text " * 3))):
            break
        await pieces.aclose()
        return await collect(speaking, wish(2))

    try:
        assert asyncio.run(leave_early())[-1].outcome is not None
        assert speaking.num_cancelled <= 1
        assert speaking.frames_after_cancel <= 1
    finally:
        speaking.stop()


async def until(is_so: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + HANG_S
    while not is_so() and time.monotonic() < deadline:
        await asyncio.sleep(0.001)
    return is_so()


def test_who_leaves_while_waiting_holds_no_promise_any_more(
    synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    speaking = Speaking(engine(synthesizer, slots=1), max_waiting_s=100.0)
    admission, step, may_go_on = speaking.admission, speaking.speaker.step, threading.Event()

    def step_later(**options: Any) -> list[Sound]:
        return step(**options) if may_go_on.wait(0.001) else []

    monkeypatch.setattr(speaking.speaker, "step", step_later)

    async def leave() -> None:
        talkers = [asyncio.ensure_future(collect(speaking, wish(seed))) for seed in range(speaking.speaker.num_free)]
        assert await until(lambda: not speaking.speaker.num_free and not admission.waiting_s)
        leaver = asyncio.ensure_future(collect(speaking, wish(9)))
        assert await until(lambda: admission.waiting_s > 0)
        leaver.cancel()
        assert await until(lambda: admission.waiting_s == 0), "although no slot is free"
        may_go_on.set()
        assert all(pieces[-1].outcome for pieces in await asyncio.gather(*talkers))

    try:
        asyncio.run(leave())
        assert admission.in_flight_s == 0
    finally:
        speaking.stop()


def test_who_leaves_between_two_parts_is_forgotten_too(
    synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = next(seed for seed in range(300) if alone(synthesizer, wish(seed))[1] == "said")
    speaking = Speaking(engine(synthesizer, slots=1), max_waiting_s=100.0)
    is_between = threading.Event()

    def wait_forever(_: float) -> bool:
        is_between.set()
        return True

    monkeypatch.setattr(speaking.speaker, "can_wait", wait_forever)

    async def both_parts() -> None:
        async for _ in speaking.speak(wish(ends), wish(ends)):
            pass

    async def leave() -> None:
        leaver = asyncio.ensure_future(both_parts())
        assert await until(is_between.is_set)
        leaver.cancel()
        assert await until(lambda: speaking.admission.in_flight_s == 0)
        assert (await collect(speaking, wish(2)))[-1].outcome is not None

    try:
        asyncio.run(leave())
    finally:
        speaking.stop()


def test_what_is_too_much_is_refused_with_the_time_to_wait(synthesizer: Synthesizer) -> None:
    speaking = Speaking(engine(synthesizer, slots=1), max_waiting_s=2.0)

    async def storm() -> list[object]:
        return await asyncio.gather(*(collect(speaking, wish(seed)) for seed in range(20)), return_exceptions=True)

    try:
        results = asyncio.run(storm())
        refused = [result for result in results if isinstance(result, OverloadedError)]
        assert refused
        assert all(error.retry_after_s > 0 for error in refused)
        assert len(refused) + sum(isinstance(result, list) for result in results) == 20
        assert isinstance(asyncio.run(collect(speaking, wish(3))), list), "it recovers"
    finally:
        speaking.stop()


def test_a_request_that_is_wrong_is_refused_and_takes_no_room(synthesizer: Synthesizer) -> None:
    speaking = Speaking(engine(synthesizer), max_waiting_s=2.0)
    try:
        with pytest.raises(ConfigError, match="no voice 'eve'"):
            asyncio.run(collect(speaking, Wish(Request("one", "eve", 0))))
        assert speaking.admission.in_flight_s == 0
    finally:
        speaking.stop()


def test_a_dead_engine_tells_everybody(synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch) -> None:
    speaking = Speaking(engine(synthesizer), max_waiting_s=100.0)

    def fail(**_: object) -> None:
        raise FloatingPointError("the logits are not numbers")

    monkeypatch.setattr(speaking.speaker, "step", fail)
    with pytest.raises(FloatingPointError, match="not numbers"):
        asyncio.run(collect(speaking, wish(0)))
    assert not speaking.is_alive
    with pytest.raises(FloatingPointError, match="not numbers"):
        asyncio.run(collect(speaking, wish(1)))


def test_stopping_ends_what_is_under_way_with_an_error(synthesizer: Synthesizer) -> None:
    speaking = Speaking(engine(synthesizer), max_waiting_s=100.0)

    async def stop_in_between() -> None:
        pieces = speaking.speak(wish(0, "a very long text " * 3))
        await anext(pieces)
        await asyncio.to_thread(speaking.stop)
        async for _ in pieces:
            pass

    try:
        with pytest.raises(RuntimeError, match="stopping"):
            asyncio.run(stop_in_between())
    finally:
        speaking.stop()


def test_estimates_follow_what_is_measured_and_a_free_slot_takes_anything() -> None:
    admission = Admission(slots=1, max_waiting_s=1.0, seconds_per_character=0.1)
    assert admission.enter(1, "x" * 100) is None, "alone, even a long one is taken"
    assert admission.enter(2, "x") == pytest.approx(9.1)
    admission.start(1)
    assert (admission.waiting_s, admission.in_flight_s) == (0, 10.0)
    admission.leave(1, "x" * 100, audio_s=5.0, wall_s=1.0)
    assert admission.in_flight_s == 0
    assert 0.05 < admission.seconds_per_character < 0.1
