"""Speed and memory: turns, medians with intervals, first audio, and one model that is opened twice."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from retort.errors import DataError
from retort.evaluation.speed import Measured, SpeedCase, measure_all, measure_first_audio, measure_speed
from retort.evaluation.turns import Turns
from retort.inference.decoding import CodecLMDecoding, Decoding
from retort.inference.opening import open_speaker
from retort.inference.speaker import Outcome, Request, Sound, Timing, Wish
from retort.nn.guidance import TwoTermGuidance
from tests.evaluation.test_turns import Clock, by_system
from tests.inference.speaking import speaking_denoiser, speaking_model

REQUEST = Request("one two", "s0", 7)
NEVER = 1e9
SIX = Turns(rounds=6, window_s=0.01, budget_s=NEVER)


class Scripted:
    """Takes as long as it is told to, and gives its first sound in its third step."""

    def __init__(self, clock: Clock, log: list[str], name: str, *seconds: float) -> None:
        self.clock, self.log, self.name, self.seconds = clock, log, name, list(seconds)
        self.seeds: list[list[int]] = []
        self.said: list[Wish] = []
        self.prepared: list[Decoding] = []
        self.cancelled = 0
        self.silence: Outcome | None = None
        self.steps = 0

    def decoding(self, wanted: Decoding | None) -> Decoding:
        return CodecLMDecoding() if wanted is None else wanted

    def time(self, requests: list[Request], decoding: Decoding, *, seconds: float) -> Timing:
        self.log.append(self.name)
        self.seeds.append([request.seed for request in requests])
        compute_s = self.seconds.pop(0)
        self.clock.now += compute_s
        return Timing(compute_s, 0.5, seconds * len(requests), {"nfe": 1, "tokens_per_second": 12 / compute_s})

    def prepare(self, decoding: Decoding) -> None:
        self.prepared.append(decoding)

    def add(self, wish: Wish) -> int:
        if len(wish.request.text) > 20:
            raise DataError("longer than what is streamed")
        self.log.append(self.name)
        self.said.append(wish)
        self.steps = 0
        return 3

    def step(self) -> list[Sound]:
        self.steps += 1
        self.clock.now += 0.25
        heard = self.steps == 3 and self.silence is None
        return [Sound(3, torch.ones(4 if heard else 0), self.silence if self.steps == 3 else None, 0)]

    def cancel(self, ticket: int) -> None:
        assert ticket == 3
        self.cancelled += 1


def case(speaker: Scripted, request: Request = REQUEST, decoding: Decoding | None = None) -> SpeedCase:
    return SpeedCase(speaker, request, decoding)  # type: ignore[arg-type]


def test_systems_take_turns_and_the_first_call_warms_up() -> None:
    log: list[str] = []
    clock = Clock()
    a, b = Scripted(clock, log, "a", 0.1, 3.0, 2.0, 4.0), Scripted(clock, log, "b", 9.0, 5.0, 6.0, 7.0)
    cases = {"a": case(a), "b": case(b)}
    found = by_system(measure_speed(cases, batch_size=3, seconds=2.0, turns=Turns(3, 0.01, NEVER), clock=clock))
    assert "".join(log) == "ab" + "ab" + "ba" + "ab"
    assert found["a"] == [{"rtf": (s + 0.5) / 6, "nfe": 1, "tokens_per_second": 12 / s} for s in (3.0, 2.0, 4.0)]
    assert a.seeds == b.seeds == [[0, 1, 2]] * 4, "every system says the same, each utterance with a seed of its own"


def test_first_audio_is_the_first_sound_and_not_the_first_step() -> None:
    clock, log = Clock(), []
    guided = CodecLMDecoding(guidance=TwoTermGuidance(scale=2.0))
    speakers = {name: Scripted(clock, log, name) for name in "abc"}
    speakers["b"].silence = "no_sound"
    cases = {"a": case(speakers["a"], decoding=guided), "b": case(speakers["b"])}
    cases["c"] = case(speakers["c"], Request("one " * 20, "s0", 7))
    found = by_system(measure_first_audio(cases, turns=Turns(2, 0.01, NEVER), clock=clock))
    assert found == {"a": [{"first_audio_s": 0.75}] * 2, "b": [None] * 2, "c": [None] * 2}
    assert "".join(log) == "ab" + "ab" + "ba"
    assert [wish.request.seed for wish in speakers["a"].said] == [0, 0, 1], "each round says it with another seed"
    assert {wish.decoding for wish in speakers["a"].said} == {guided}
    assert speakers["a"].prepared == [guided]
    assert (speakers["a"].cancelled, speakers["b"].cancelled) == (3, 0), "what was heard is not said to its end"


def test_figures_are_medians_with_intervals_and_identical_networks_are_the_floor() -> None:
    clock, log = Clock(), []
    times = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    a = Scripted(clock, log, "a", 99.0, *times, 99.0, *(2 * s for s in times))
    again = Scripted(clock, log, "A", 99.0, *(1.2 * s for s in times), 99.0, *(2 * s for s in times))
    b = Scripted(clock, log, "b", *[0.0] * 14)
    b.time = lambda requests, decoding, *, seconds: Timing(1.0, 1.0, 0.0)  # type: ignore[assignment]
    b.silence = "no_sound"
    cases = {"a": case(a), "b": case(b)}
    *told, found = measure_all(cases, case(again), batch_sizes=(1, 4), seconds=1.0, turns=SIX, clock=clock)
    assert isinstance(found, Measured)
    phases = ("batch 1", "batch 4", "first audio")
    steps = ("warming up", *(f"{number} of 6 rounds" for number in range(1, 7)))
    assert told == [f"{phase}, {step}" for phase in phases for step in steps]
    assert set(found.figures) == {"a"}, "what makes no sound has no speed, and the second opening is no system"
    figures = found.figures["a"]
    assert set(figures) == {
        "rtf", "rtf_batch1", "tokens_per_second", "tokens_per_second_batch1", "nfe", "first_audio_s",
    }  # fmt: skip
    assert (figures["rtf_batch1"].value, figures["rtf_batch1"].interval) == (3.5 + 0.5, (1.5, 6.5))
    assert (figures["rtf"].value, figures["rtf"].interval) == (7.5 / 4, (2.5 / 4, 12.5 / 4))
    assert figures["tokens_per_second"].interval == (1.0, 6.0)
    assert (figures["first_audio_s"].value, figures["nfe"].value) == (0.75, 1)
    assert found.opened_twice == "a"
    assert set(found.noise) == set(figures) - {"nfe"}, "what is counted has no noise"
    assert found.noise["tokens_per_second"].factor == 1.0
    assert found.noise["tokens_per_second_batch1"].factor == pytest.approx(1.2)
    assert "".join(log).startswith("aA" + "aA" + "Aa" + "aA"), "it takes its turns like any other"


def test_nothing_is_opened_twice_where_no_floor_is_wanted() -> None:
    clock = Clock()
    cases = {"a": case(Scripted(clock, [], "a", *[1.0] * 3))}
    *_, found = measure_all(cases, None, batch_sizes=(1,), seconds=1.0, turns=Turns(2, 0.01, NEVER), clock=clock)
    assert isinstance(found, Measured)
    assert (found.opened_twice, dict(found.noise)) == (None, {})
    assert found.figures["a"]["rtf"].interval is None, "two rounds are too few"


def test_a_models_figures_add_up_and_passes_are_counted_by_decoding(tmp_path: Path) -> None:
    folder = speaking_model(tmp_path)
    cases = {
        "plain": SpeedCase(open_speaker(folder), REQUEST),
        "guided": SpeedCase(open_speaker(folder), REQUEST, CodecLMDecoding(guidance=TwoTermGuidance(scale=2.0))),
    }
    *_, found = measure_all(cases, None, batch_sizes=(2,), seconds=0.5, turns=Turns(1, 1e-6, NEVER))
    assert isinstance(found, Measured)
    assert {name: figures["nfe"].value for name, figures in found.figures.items()} == {"plain": 1, "guided": 2}
    timing = cases["guided"].time(batch_size=2, seconds=0.5)
    assert timing.figures["tokens_per_second"] * timing.compute_s == pytest.approx(2 * 20 * 2), (
        "rows, frames, codebooks"
    )
    for figures in found.figures.values():
        # 40 frames of two codebooks for a second of audio, of which the codec's share of the time is no part.
        assert 80 / figures["tokens_per_second"].value < figures["rtf"].value
        assert figures["first_audio_s"].value > 0


def test_a_denoisers_first_audio_comes_after_its_sentence_is_written(tmp_path: Path) -> None:
    """By the steps it takes: the clock counts calls of itself and of what they ask for."""
    speaker = open_speaker(speaking_denoiser(tmp_path, mean_frames=6))
    timed = SpeedCase(speaker, REQUEST)
    timed.prepare()
    clock, inner = Clock(), speaker.step

    def step(**_: object) -> list[Sound]:
        clock.now += 1.0
        return inner()

    speaker.step = step  # type: ignore[method-assign]
    took = timed.first_audio(seed=1, clock=clock)
    assert took is not None
    assert took > 80, "the steps of the plain solver of a teacher, and those of the codec LM before them"
    assert speaker.num_active == 0


# In a process of its own, as the evaluation measures it: in a long-lived one the allocator answers from what an
# earlier test has freed, and no page is new.
_ALLOCATE = """
import torch
from retort.evaluation.speed import memory_mb, peak_memory_mb, reset_peak_memory

cpu = torch.device("cpu")
torch.ones(1)
reset_peak_memory(cpu)
before = memory_mb(cpu)
block = torch.ones(64 * 2**20 // 4)
del block
print(peak_memory_mb(cpu) - before)
reset_peak_memory(cpu)
print(peak_memory_mb(cpu) - before)
"""


_OPEN = """
import sys
from pathlib import Path
import torch
from retort.evaluation.speed import SpeedCase, measure_peak_memory
from retort.inference.opening import open_speaker
from retort.inference.speaker import Request

opened = []
def open_case():
    opened.append(torch.ones(48 * 2**20 // 4))
    return SpeedCase(open_speaker(Path(sys.argv[1])), Request("one two", "s0", 7))

print(measure_peak_memory(open_case, batch_size=2, seconds=0.5, device=torch.device("cpu")), len(opened))
"""


def test_the_memory_of_a_system_is_measured_from_before_it_is_opened(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _OPEN, str(speaking_model(tmp_path))]
    peak_mb, opened = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert float(peak_mb) > 40, "what opening takes is part of it"
    assert opened == "1"


def test_the_peak_sees_what_was_allocated_and_freed_again() -> None:
    done = subprocess.run([sys.executable, "-c", _ALLOCATE], capture_output=True, text=True, check=True)
    seen, after_reset = (float(line) for line in done.stdout.split())
    assert seen == pytest.approx(64, abs=16)
    assert after_reset < 32
