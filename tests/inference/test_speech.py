"""Speech: streaming gives the samples of the whole, in any company, and runaways are stopped, tried again, or told."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from retort.errors import ConfigError
from retort.inference.runaway import is_looping
from retort.inference.sampling import SamplerConfig
from retort.inference.speech import GuardConfig, Sound, SpeechEngine, Wish
from retort.inference.synthesizer import Request, Synthesizer
from retort.nn.guidance import NoGuidance, TwoTermGuidance
from tests.inference.speaking import speaking_model

PLAIN, GUIDED = NoGuidance().build(), TwoTermGuidance(scale=1.5).build()
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
    spoken = synthesizer.speak(
        [Request("one two", "s0", 3)], guidance=GUIDED if guided else PLAIN, sampler=SamplerConfig(), max_frames=22
    )[0]
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
        streamed = finish_one(engine(synthesizer, tight), wish(seed=seed))[-1]
        assert streamed.attempt == 0, "what was given away cannot be taken back"
    assert ("too_long", 1) in outcomes, "given up after the second seed"
    assert {attempt for _, attempt in outcomes} == {0, 1}
    again = finish_one(engine(synthesizer, tight), wish(seed=outcomes["too_long", 1], streamed=False))[-1]
    assert again.outcome == "too_long"


def test_a_loop_is_stopped_long_before_the_limit(synthesizer: Synthesizer) -> None:
    greedy = Wish(Request("one", "s0", 0), PLAIN, SamplerConfig(temperature=0), is_streamed=True)
    patient = GuardConfig(extra_seconds=3.9, max_repeat_seconds=0.5, retries=0)
    sounds = finish_one(engine(synthesizer, patient), greedy)
    if sounds[-1].outcome == "said":
        pytest.skip("these random weights end this text by themselves")
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


def test_the_folder_of_the_fixture_is_a_models(tmp_path: Path) -> None:
    assert {"config.json", "codec", "text"} <= {entry.name for entry in speaking_model(tmp_path).iterdir()}


def test_whoever_waits_for_first_sounds_goes_before_those_who_hear_something(synthesizer: Synthesizer) -> None:
    patient, rate = GuardConfig(extra_seconds=3.0), synthesizer.codec.sample_rate
    alone = engine(synthesizer, patient)
    spoken = (seed for seed in range(500) if samples(finish_one(alone, wish(seed=seed))).numel() > 1.5 * rate)
    first, second = next(spoken), next(spoken)
    speech = engine(synthesizer, patient, slots=2)
    early = speech.add(wish(seed=first))
    heard, turns = {early: 0.0}, {early: 0}

    def advance(ticket: int) -> None:
        turns.update(dict.fromkeys(turns, 0))
        while heard[ticket] < 0.3:
            for sound in speech.step():
                turns[sound.ticket] += 1
                heard[sound.ticket] += sound.samples_N.numel() / rate

    advance(early)
    late = speech.add(wish(seed=second))
    heard[late] = turns[late] = 0
    advance(late)
    assert turns[late] > 3
    assert 0 < turns[early] <= turns[late] / 3, "every fourth step is for all"
    assert {sound.ticket for sound in speech.step()} == {early, late}
