"""The choice of a temperature, and what a report shows of it."""

import dataclasses
from pathlib import Path

import pytest

from retort.errors import DataError
from retort.evaluation.items import Expected, ItemResult, failed_item
from retort.evaluation.report import write_report
from retort.evaluation.results import BootstrapConfig, SystemInfo, summarise
from retort.evaluation.temperatures import Choice, TemperaturesConfig, at, at_best, candidates_of, choose

FAST = BootstrapConfig(num_resamples=100)
CONFIG = TemperaturesConfig(values=(1.0, 0.5, 0.75), num_strings=10)
CANDIDATES = {name: candidates_of(CONFIG, 1.0) for name in "ab"}
ERRORS = {("a", 0.5): 3, ("a", 0.75): 1, ("a", 1.0): 5, ("b", 0.5): 4, ("b", 0.75): 2, ("b", 1.0): 2}
"""Words that are wrong, one in each of so many strings."""
FAILURES = {("a", 0.5): 0, ("b", 1.0): 1}


def items(name: str, errors: int, failures: int = 0) -> list[ItemResult]:
    rows = [failed_item(name, Expected(f"u{number}", "one two")) for number in range(10)]
    return [
        dataclasses.replace(
            row, deletions=int(number < errors), wer=0.5 * (number < errors), failure=number < failures,
            failure_reasons=("wer",) if number < failures else (), error=None, recogniser="asr",
        )
        for number, row in enumerate(rows)
    ]  # fmt: skip


def chosen(**changes: object) -> Choice:
    said = [item for pair, errors in ERRORS.items() for item in items(at(*pair), errors, FAILURES.get(pair, 9))]
    return choose(CONFIG.replace(**changes), CANDIDATES, said, FAST)


def test_the_best_is_the_one_with_the_least_of_what_it_is_chosen_by_and_of_equals_the_higher() -> None:
    assert chosen().best == {"a": 0.75, "b": 1.0}
    assert chosen().recogniser == chosen().tree()["chosen_by"] == "asr"
    assert chosen(metric="failure_rate").best == {"a": 0.5, "b": 1.0}


def test_everything_that_there_was_to_choose_from_is_told_with_its_intervals() -> None:
    tree = chosen().tree()
    assert (tree["split"], tree["num_strings"], tree["metric"]) == ("validation", 10, "wer")
    assert [(row["system"], row["temperature"]) for row in tree["rows"]] == [
        (name, value) for name in "ab" for value in (0.5, 0.75, 1.0)
    ]
    for row in tree["rows"]:
        pair = row["system"], row["temperature"]
        assert row["wer_corpus"] == pytest.approx(ERRORS[pair] / 20)
        assert row["failure_rate"] == pytest.approx(FAILURES.get(pair, 9) / 10)
        assert row["wer_ci95"][0] <= row["wer_corpus"] <= row["wer_ci95"][1]
        assert row["is_best"] is (tree["best"][row["system"]] == row["temperature"])


def test_a_systems_own_temperature_is_among_those_to_choose_from() -> None:
    assert candidates_of(CONFIG, 1.0) == (0.5, 0.75, 1.0)
    assert candidates_of(CONFIG, 0.2) == (0.2, 0.5, 0.75, 1.0)
    said = [
        item for value, errors in ((0.2, 0), (0.5, 3), (0.75, 1), (1.0, 5)) for item in items(at("a", value), errors)
    ]
    assert choose(CONFIG, {"a": candidates_of(CONFIG, 0.2)}, said, FAST).best == {"a": 0.2}


@pytest.mark.parametrize(
    ("best", "texts"),
    [
        (0.75, []),
        (0.5, ["The best temperature of a is the lowest that was tried: a lower one may be better still."]),
        (1.0, ["The best temperature of a is the highest that was tried: a higher one may be better still."]),
    ],
)
def test_a_best_temperature_at_the_end_of_those_tried_is_said_to_be_there(best: float, texts: list[str]) -> None:
    said = [item for value in CANDIDATES["a"] for item in items(at("a", value), 1 + (value != best))]
    assert [found.text for found in choose(CONFIG, {"a": CANDIDATES["a"]}, said, FAST).findings] == texts


def test_nothing_is_lower_than_greedy() -> None:
    said = [item for value in (0.0, 0.5) for item in items(at("a", value), 1 + (value > 0))]
    assert choose(CONFIG, {"a": (0.0, 0.5)}, said, FAST).findings == []


def test_temperatures_are_judged_on_the_same_strings() -> None:
    said = [item for pair, errors in ERRORS.items() for item in items(at(*pair), errors)]
    strange = dataclasses.replace(said[0], text="three")
    with pytest.raises(DataError, match="the same texts"):
        choose(CONFIG, CANDIDATES, [*said[1:], strange], FAST)


def test_where_nothing_has_a_temperature_nothing_is_chosen() -> None:
    assert choose(CONFIG, {}, [], FAST).tree()["best"] == {}


def test_the_report_draws_word_errors_and_failures_against_temperature(tmp_path: Path) -> None:
    names = ("a", "b", at_best("a"))
    summary = summarise(
        [item for name in names for item in items(name, 2)],
        [SystemInfo(name, "student", facts={"temperature": 1.0}) for name in names], bootstrap=FAST,
    )  # fmt: skip
    told = dataclasses.replace(summary, temperatures=chosen().tree()).tree()
    page = write_report(tmp_path, told, summary.items).read_text()
    section = page[page.index('<section id="temperature">') : page.index('<section id="worst">')]
    assert 'aria-label="WER, corpus, % against temperature"' in section
    assert 'aria-label="Failures, % against temperature"' in section
    assert section.count("<path") == 6, "a line for each system in both figures, and in their legend"
    assert section.count('<span class="tag">best</span>') == 2
    assert "a@best" in page
    for tree in (None, choose(CONFIG, {}, [], FAST).tree()):
        without = write_report(tmp_path, {**told, "temperatures": tree}, summary.items).read_text()
        assert 'id="temperature"' not in without
