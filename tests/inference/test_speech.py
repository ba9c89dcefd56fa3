"""Speech: streaming gives the samples of the whole, in any company, and runaways are stopped, tried again, or told."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from retort.errors import ConfigError, DataError
from retort.inference.decoding import CodecLMDecoding
from retort.inference.runaway import is_looping
from retort.inference.sampling import SamplerConfig
from retort.inference.speaker import Request, Sound, Wish, in_parts
from retort.inference.speech import GuardConfig, SpeechEngine
from retort.inference.synthesizer import Synthesizer
from retort.nn.guidance import TwoTermGuidance
from tests.inference.speaking import speaking_model

PLAIN, GUIDED = CodecLMDecoding(), CodecLMDecoding(guidance=TwoTermGuidance(scale=1.5))
LOOSE = GuardConfig(seconds_per_character=0.05, extra_seconds=0.2)


@pytest.fixture(scope="module")
def synthesizer(tmp_path_factory: pytest.TempPathFactory) -> Synthesizer:
    return Synthesizer.open(speaking_model(tmp_path_factory.mktemp("speech")))


def engine(synthesizer: Synthesizer, guard: GuardConfig = LOOSE, *, slots: int = 3) -> SpeechEngine:
    return SpeechEngine(synthesizer, max_slots=slots, max_conditions=2, max_seconds=4.0, guard=guard)


def wish(text: str = "one two", seed: int = 0, *, streamed: bool = True, guided: bool = False) -> Wish:
    return Wish(Request(text, "s0", seed), GUIDED if guided else PLAIN, is_streamed=streamed)


def finish(speech: SpeechEngine) -> dict[int, list[Sound]]:
    sounds: dict[int, list[Sound]] = {}
    while speech.num_active:
        for sound in speech.step():
            sounds.setdefault(sound.ticket, []).append(sound)
    return sounds


def samples(sounds: list[Sound]) -> Tensor:
    return torch.cat([sound.samples_N for sound in sounds])


@pytest.mark.parametrize("guided", [False, True])
def test_streamed_samples_are_those_of_the_whole_in_any_company(synthesizer: Synthesizer, guided: bool) -> None:
    strict = LOOSE.replace(retries=0)
    whole = finish_one(engine(synthesizer, strict), wish(seed=3, streamed=False, guided=guided))
    speech = engine(synthesizer, strict)
    others = [speech.add(wish("a longer text than that", seed=8)), speech.add(wish("six", seed=9, guided=True))]
    speech.step()
    ticket = speech.add(wish(seed=3, guided=guided))
    sounds = finish(speech)
    assert torch.equal(samples(sounds[ticket]), samples(whole))
    assert samples(whole).numel() > 0
    assert set(sounds) == {*others, ticket}
    spoken = synthesizer.speak([Request("one two", "s0", 3)], GUIDED if guided else PLAIN, max_frames=22)[0]
    assert torch.equal(spoken.samples_N, samples(whole)), "the batch path is the same path"


def finish_one(speech: SpeechEngine, wanted: Wish) -> list[Sound]:
    ticket = speech.add(wanted)
    return finish(speech)[ticket]


def test_sound_comes_before_the_utterance_ends(synthesizer: Synthesizer) -> None:
    speech = engine(synthesizer, GuardConfig(extra_seconds=3.0, retries=0))
    seed = next(s for s in range(50) if len(finish_one(speech, wish(seed=s))) > 20)
    sounds = finish_one(speech, wish(seed=seed))
    first = next(index for index, sound in enumerate(sounds) if sound.samples_N.numel())
    assert first < len(sounds) // 2
    assert [sound.outcome for sound in sounds[:-1]] == [None] * (len(sounds) - 1)


def test_a_runaway_is_tried_once_with_another_seed_and_then_told(synthesizer: Synthesizer) -> None:
    """A limit of a few frames, which random weights overrun more often than not."""
    tight = GuardConfig(seconds_per_character=0.001, extra_seconds=0.1)
    outcomes = {}
    for seed in range(40):
        last = finish_one(engine(synthesizer, tight), wish(seed=seed, streamed=False))[-1]
        outcomes.setdefault((last.outcome, last.attempt), seed)
        *before, last = finish_one(engine(synthesizer, tight), wish(seed=seed))
        given = [sound for sound in before if sound.samples_N.numel()]
        assert not given or given[0].attempt == last.attempt, "what was given away cannot be taken back"
        assert given or last.outcome == "said" or last.attempt == 1
    assert ("too_long", 1) in outcomes, "given up after the second seed"
    assert {attempt for _, attempt in outcomes} == {0, 1}
    again = finish_one(engine(synthesizer, tight), wish(seed=outcomes["too_long", 1], streamed=False))[-1]
    assert again.outcome == "too_long"


@pytest.mark.parametrize("heard_until", [0.0, 105.0])
def test_a_stream_that_fails_before_its_first_sound_says_what_the_file_says(
    synthesizer: Synthesizer, heard_until: float
) -> None:
    """Also as a later part of a text: its listener still hears the one before, and keeps that."""
    once = GuardConfig(extra_seconds=3.0, max_repeat_seconds=9.0, retries=1)

    def speech() -> SpeechEngine:
        return SpeechEngine(synthesizer, max_slots=1, max_conditions=2, max_seconds=4.0, guard=once, clock=Clock())

    for seed in range(200):
        whole = finish_one(speech(), wish(seed=seed, streamed=False))[-1]
        if (whole.outcome, whole.attempt) == ("said", 1):
            break
    else:
        raise AssertionError("no seed is rescued by the next")
    streaming = speech()
    free = streaming.num_free
    ticket = streaming.add(wish(seed=seed), heard_until=heard_until)
    sounds = finish(streaming)[ticket]
    assert (sounds[-1].outcome, sounds[-1].attempt) == ("said", 1)
    assert torch.equal(samples(sounds), whole.samples_N)
    silent = [sound.heard_until for sound in sounds if sound.attempt == 1 and not sound.samples_N.numel()]
    assert set(silent[:1]) == {heard_until}, "nothing has been heard of it"
    seconds = whole.samples_N.numel() / synthesizer.codec.sample_rate
    assert sounds[-1].heard_until == pytest.approx((heard_until or 100.0) + seconds)
    assert (streaming.num_active, streaming.num_free) == (0, free)


def test_a_loop_is_stopped_long_before_the_limit(tmp_path: Path) -> None:
    synthesizer = Synthesizer.open(speaking_model(tmp_path, mean_frames=1e9))
    greedy = Wish(Request("one", "s0", 0), CodecLMDecoding(sampler=SamplerConfig(temperature=0)))
    patient = GuardConfig(extra_seconds=3.9, max_repeat_seconds=0.5, retries=0)
    sounds = finish_one(engine(synthesizer, patient), greedy)
    assert sounds[-1].outcome == "loop"
    assert len(sounds) < 3.0 * synthesizer.codec.frame_rate


@pytest.mark.parametrize(
    ("values", "period", "steps", "expected"),
    [
        ([1, 2, 1, 2, 1, 2], 2, 6, True),
        ([1, 2, 1, 2, 1, 2], 1, 6, False),
        ([9, 9, 1, 2, 1, 2], 2, 6, False),
        ([9, 9, 1, 2, 1, 2], 2, 4, True),
        ([7, 7], 4, 2, True),
        ([7], 4, 1, False),
        ([1, 2, 3, 1], 3, 4, False),
    ],
)
def test_a_loop_is_a_pattern_that_fills_the_last_frames(
    values: list[int], period: int, steps: int, expected: bool
) -> None:
    frames = [torch.tensor([[value], [value + 1]]) for value in values]
    assert is_looping(frames, period=period, steps=steps) is expected


def test_a_cancelled_request_leaves_and_the_others_do_not_notice(synthesizer: Synthesizer) -> None:
    alone = finish_one(engine(synthesizer), wish(seed=5))
    speech = engine(synthesizer)
    gone, stays = speech.add(wish("four five six", seed=1)), speech.add(wish(seed=5))
    first = {sound.ticket: [sound] for sound in speech.step()}
    speech.cancel(gone)
    speech.cancel(gone)
    rest = finish(speech)
    assert gone not in rest
    assert torch.equal(samples(first[stays] + rest[stays]), samples(alone))
    assert speech.num_free == 3


def test_what_cannot_be_spoken_is_refused_before_it_takes_a_slot(synthesizer: Synthesizer) -> None:
    speech = engine(synthesizer)
    with pytest.raises(ConfigError, match="no voice 'eve'"):
        speech.add(Wish(Request("one", "eve", 0), PLAIN))
    assert (speech.num_active, speech.num_free) == (0, 3)


def test_a_shorter_limit_than_the_guards_holds(synthesizer: Synthesizer) -> None:
    limited = Wish(Request("one two three", "s0", 0), PLAIN, max_seconds=0.1)
    speech = engine(synthesizer, LOOSE.replace(retries=0))
    assert samples(finish_one(speech, limited)).numel() <= 0.1 * synthesizer.codec.sample_rate


def test_numbers_may_last_as_long_as_their_words(synthesizer: Synthesizer) -> None:
    speech = engine(synthesizer)
    words = synthesizer.front_end.written("777777")
    assert len(words) > 50
    assert speech.plan(wish("777777")).max_frames == speech.plan(wish(words)).max_frames
    assert speech.plan(wish("one  two")).max_frames > speech.plan(wish("one two")).max_frames, "none becomes tighter"


def test_the_folder_of_the_fixture_is_a_models(tmp_path: Path) -> None:
    assert {"config.json", "codec", "text"} <= {entry.name for entry in speaking_model(tmp_path).iterdir()}


class Clock:
    """Moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def timed_engine(synthesizer: Synthesizer, clock: Clock, *, slots: int) -> SpeechEngine:
    patient = GuardConfig(extra_seconds=3.0, max_repeat_seconds=9.0, retries=0)
    return SpeechEngine(synthesizer, max_slots=slots, max_conditions=2, max_seconds=4.0, guard=patient, clock=clock)


def long_ones(synthesizer: Synthesizer, number: int) -> list[int]:
    """Seeds of utterances of more than 1.2 s."""
    alone = timed_engine(synthesizer, Clock(), slots=1)
    rate = synthesizer.codec.sample_rate
    spoken = (seed for seed in range(500) if samples(finish_one(alone, wish(seed=seed))).numel() > 1.2 * rate)
    return [next(spoken) for _ in range(number)]


def test_whoever_has_nothing_to_hear_goes_before_those_who_hear_something(synthesizer: Synthesizer) -> None:
    first, second, third = long_ones(synthesizer, 3)
    clock = Clock()
    speech = timed_engine(synthesizer, clock, slots=3)
    early, silent = speech.add(wish(seed=first)), speech.add(wish(seed=third, streamed=False))
    heard_until, turns = {early: 0.0}, {early: 0, silent: 0}

    def advance(ticket: int) -> None:
        turns.update(dict.fromkeys(turns, 0))
        while heard_until[ticket] < clock.now + 0.3:
            for sound in speech.step():
                turns[sound.ticket] += 1
                heard_until[sound.ticket] = sound.heard_until

    advance(early)
    late = speech.add(wish(seed=second))
    heard_until[late] = turns[late] = 0
    advance(late)
    assert turns[late] > 3
    assert turns[early] == 0, "its listener has something to hear"
    assert turns[late] // 4 <= turns[silent] <= turns[late] // 4 + 1, "nobody listens to it, but it goes on"
    assert {sound.ticket for sound in speech.step()} == {early, late, silent}, "nobody is in a hurry"
    clock.now = heard_until[early] - 0.1
    while {sound.ticket for sound in speech.step()} >= {early, late, silent}:
        pass
    assert early in {sound.ticket for sound in speech.step()}, "now its listener has little left"


def test_a_part_that_follows_another_is_in_no_hurry(synthesizer: Synthesizer) -> None:
    first, second = long_ones(synthesizer, 2)
    clock = Clock()
    speech = timed_engine(synthesizer, clock, slots=2)
    sequel, new = speech.add(wish(seed=first), heard_until=clock.now + 5.0), speech.add(wish(seed=second))
    assert {sound.ticket for sound in speech.step()} == {new}
    sounds = [sound for sound in finish(speech)[sequel] if sound.samples_N.numel()]
    rate = synthesizer.codec.sample_rate
    assert sounds[0].heard_until == pytest.approx(105.0 + sounds[0].samples_N.numel() / rate)


def test_while_somebody_waits_for_the_step_to_end_comfortable_streams_get_no_sound(synthesizer: Synthesizer) -> None:
    (seed,) = long_ones(synthesizer, 1)
    expected = samples(finish_one(timed_engine(synthesizer, Clock(), slots=1), wish(seed=seed)))
    speech = timed_engine(synthesizer, Clock(), slots=1)
    ticket = speech.add(wish(seed=seed))
    sounds = []
    while not sounds or sounds[-1].heard_until < 100.1:
        sounds += speech.step(is_awaited=lambda: True)
    assert sum(sound.samples_N.numel() for sound in sounds), "who has nothing to hear is not kept waiting"
    busy = [sound for _ in range(9) for sound in speech.step(is_awaited=lambda: True)]
    assert [sound.ticket for sound in busy] == [ticket] * 9
    assert not samples(busy).numel()
    assert torch.equal(samples([*sounds, *busy, *finish(speech)[ticket]]), expected)


def test_the_next_part_of_a_comfortable_listener_waits_for_a_first_sound(synthesizer: Synthesizer) -> None:
    (seed,) = long_ones(synthesizer, 1)
    clock = Clock()
    speech = timed_engine(synthesizer, clock, slots=2)
    assert not speech.can_wait(clock.now + 5.0), "nobody waits for a first sound"
    speech.add(wish(seed=seed))
    assert speech.can_wait(clock.now + 5.0)
    assert not speech.can_wait(clock.now + 0.05), "its own listener has too little to hear"
    while not any(sound.samples_N.numel() for sound in speech.step()):
        pass
    assert not speech.can_wait(clock.now + 5.0)


def test_parts_that_the_model_cannot_read_are_left_out_and_a_text_of_them_is_refused(synthesizer: Synthesizer) -> None:
    speech = engine(synthesizer)
    text = "one two three. \u4f60\u597d\uff0c\u4e16\u754c. four five six. \u043f\u0440\u0438\u0432\u0435\u0442!"
    parts = in_parts(wish(text), 16, lambda part: speech.read(part).says_something)
    assert [part.request.text for part in parts] == ["one two three.", "four five six."]
    # A wide comma is a comma.
    assert set(speech.read(text).unread) == set("\u4f60\u597d\u4e16\u754c\u043f\u0440\u0438\u0432\u0435\u0442")
    with pytest.raises(DataError, match="none of the letters"):
        speech.check(wish("\u4f60\u597d\uff0c\u4e16\u754c"))
    with pytest.raises(DataError, match="none of the letters"):
        speech.add(wish("\u043f\u0440\u0438\u0432\u0435\u0442"))
    speech.check(wish("one \u4f60\u597d"))
