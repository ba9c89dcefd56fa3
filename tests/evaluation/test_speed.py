"""Speed and memory: turns, the best round, and figures that add up."""

import subprocess
import sys
from pathlib import Path

import pytest

from retort.evaluation.speed import SpeedCase, measure_speed
from retort.inference.decoding import CodecLMDecoding, Decoding
from retort.inference.opening import open_speaker
from retort.inference.speaker import Request, Timing
from retort.nn.guidance import TwoTermGuidance
from tests.inference.speaking import speaking_model

REQUEST = Request("one two", "s0", 7)


class Scripted:
    """Takes as long as it is told to."""

    def __init__(self, log: list[str], name: str, *seconds: float) -> None:
        self.log, self.name, self.seconds = log, name, list(seconds)
        self.seeds: list[list[int]] = []

    def decoding(self, wanted: Decoding | None) -> Decoding:
        return CodecLMDecoding() if wanted is None else wanted

    def time(self, requests: list[Request], decoding: Decoding, *, seconds: float) -> Timing:
        self.log.append(self.name)
        self.seeds.append([request.seed for request in requests])
        compute_s = self.seconds.pop(0)
        return Timing(compute_s, 0.5, seconds * len(requests), compute_s / 4, {"nfe": 1, "per_second": 1 / compute_s})


def test_systems_take_turns_the_first_round_warms_up_and_the_best_of_the_others_counts() -> None:
    log: list[str] = []
    a, b = Scripted(log, "a", 0.1, 3.0, 2.0, 4.0), Scripted(log, "b", 9.0, 5.0, 6.0, 7.0)
    cases = {"a": SpeedCase(a, REQUEST), "b": SpeedCase(b, REQUEST)}  # type: ignore[arg-type]
    speeds = measure_speed(cases, batch_size=3, seconds=2.0, rounds=3)
    assert log == ["a", "b"] * 4
    assert speeds["a"].figures == {"nfe": 1, "per_second": 0.5}
    assert (speeds["a"].rtf, speeds["b"].rtf) == (2.5 / 6, 5.5 / 6), "all of the best round"
    assert (speeds["a"].first_audio_ms, speeds["a"].batch_size) == (500.0, 3)
    assert a.seeds == b.seeds == [[0, 1, 2]] * 4, "every system says the same, each utterance with a seed of its own"


def test_a_models_figures_add_up_and_passes_are_counted_by_decoding(tmp_path: Path) -> None:
    speaker = open_speaker(speaking_model(tmp_path))
    cases = {
        "plain": SpeedCase(speaker, REQUEST),
        "guided": SpeedCase(speaker, REQUEST, CodecLMDecoding(guidance=TwoTermGuidance(scale=2.0))),
    }
    speeds = measure_speed(cases, batch_size=2, seconds=0.5, rounds=1)
    assert {name: speed.figures["nfe"] for name, speed in speeds.items()} == {"plain": 1, "guided": 2}
    timing = cases["guided"].time(batch_size=2, seconds=0.5)
    assert timing.figures["tokens_per_second"] * timing.compute_s == pytest.approx(2 * 20 * 2), (
        "rows, frames, codebooks"
    )
    for speed in speeds.values():
        assert set(speed.figures) == {"nfe", "tokens_per_second"}
        # 40 frames of two codebooks for a second of audio, of which the codec's share of the time is no part.
        assert 80 / speed.figures["tokens_per_second"] < speed.rtf
        assert speed.first_audio_ms > 0


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
