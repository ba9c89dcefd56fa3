"""docs/scale.md is what the script computes, and what it computes keeps its laws."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import scale
from benchmarks.autoscaling import DAY_S, Machine, demand, simulate
from retort.serving.settings import Limits, ServedModel

HERE = Machine(audio_per_s=100.0, slots=20, start_s=60.0, utterance_s=10.0)


def model(target: float = 150.0, *, most: int = 50) -> ServedModel:
    return ServedModel(name="m", path=Path(), target_audio_seconds=target, min_replicas=1, max_replicas=most)


@pytest.mark.slow
def test_the_document_is_what_the_script_prints() -> None:
    assert scale.DOCUMENT.read_text() == scale.document()


def test_every_unit_cost_is_used_and_says_where_it_comes_from() -> None:
    code = Path(scale.__file__).read_text()
    for name, unit in scale.UNITS.items():
        assert f'_u("{name}")' in code or f'"{name}")' in code or f'"{name}",' in code.split("def papers")[1], name
        assert unit.source or unit.kind == "chosen", name
    log = (Path(scale.__file__).parents[1] / "docs" / "log.md").read_text()
    measured = [unit for unit in scale.UNITS.values() if unit.kind == "measured"]
    assert measured
    for unit in measured:
        assert re.search(rf"(?<![\d]){re.escape(f'{unit.value:g}'.lstrip('0'))}(?!\d)", log), unit.what


def test_twice_the_corpus_costs_twice() -> None:
    once, twice = scale.papers(1000.0), scale.papers(2000.0)
    for one, two in zip(once, twice, strict=True):
        factor = 2 if one.paper == 1 else 1
        assert two.gpu_hours == pytest.approx(factor * one.gpu_hours)
        assert (two.stored_gb, two.read_gb) == pytest.approx((factor * one.stored_gb, factor * one.read_gb))


def test_chunks_are_written_twice_and_data_are_brought_to_each_gpu_once_however_often_they_are_seen() -> None:
    made = {work.paper: work for work in scale.papers() if work.job == "generate"}
    for work in made.values():
        assert (work.written_gb, work.read_gb) == (2 * work.stored_gb, work.stored_gb)
    readers = [work for work in scale.papers() if work.job == "distill" and work.read_gb]
    assert len(readers) == 6
    for work in readers:
        assert work.read_gb == pytest.approx(256 * made[work.paper].stored_gb), work.how


def test_the_cost_of_a_known_run_is_found_again() -> None:
    # ModelOpt's figure that the live teacher's share comes from: 600 H100-hours for 6.3 G tokens of 8.9B to 7B.
    flops = 6.3e9 * (6 * 7e9 + 2 * 8.9e9)
    assert scale._hours(flops, "live_kd_mfu") == pytest.approx(600, rel=0.02)


def test_all_four_papers_are_there() -> None:
    assert {work.paper for work in scale.papers()} == {1, 2, 3, 4}


@settings(max_examples=25, deadline=None)
@given(asked=st.lists(st.floats(0, 10_000), min_size=1, max_size=300), target=st.floats(10, 1000))
def test_no_speech_is_lost_or_made_of_nothing(asked: list[float], target: float) -> None:
    day = simulate(asked, HERE, model(target), Limits())
    assert day.said_s + day.refused_s + day.left_s == pytest.approx(sum(asked), abs=1e-3)
    assert day.busy <= 1 + 1e-9
    assert day.longest_wait_s <= Limits().max_waiting_seconds / HERE.audio_per_s + 1e-9


def test_a_steady_load_settles_at_what_the_target_says() -> None:
    # 1,000 audio s/s, each utterance 10 s at 5 times real time: 2,000 s in flight, 150 for each replica.
    day = simulate([1000.0] * 3600, HERE, model(), Limits())
    assert day.most == 14
    assert day.refused_s == 0
    assert simulate([1000.0] * 3600, HERE, model(100.0), Limits()).most == 20
    assert simulate([1000.0] * 3600, HERE, model(most=12), Limits()).most == 12


def test_a_burst_is_refused_until_replicas_are_there_and_they_go_again() -> None:
    load = [100.0] * 600 + [1000.0] * 600 + [100.0] * 1800
    slow, quick = (simulate(load, Machine(100.0, 20, start_s, 10.0), model(), Limits()) for start_s in (120.0, 10.0))
    assert slow.refused_s > 2 * quick.refused_s > 0
    assert quick.replica_hours < 14 * len(load) / 3600 / 2


def test_a_day_has_its_mean_and_its_peak() -> None:
    asked = demand(1000.0, peak=1.8)
    assert len(asked) == DAY_S
    assert sum(asked) / DAY_S == pytest.approx(1000.0)
    assert max(asked) == asked[72_000] == pytest.approx(1800.0)
