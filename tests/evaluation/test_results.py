import dataclasses
import json
import math

import pytest
import torch

from retort.errors import ConfigError, DataError
from retort.evaluation.bootstrap import confidence_interval, paired_comparison
from retort.evaluation.confidence import ConfidenceAccumulator
from retort.evaluation.preference import check_gate, parse_gate
from retort.evaluation.results import (
    BootstrapConfig,
    Expected,
    Pair,
    SystemInfo,
    failed_item,
    read_summary,
    summarise,
    write_summary,
)

# DESIGN.md section 5, field by field.
SYSTEM_FIELDS = {
    "name",
    "method",
    "family",
    "parameters",
    "guidance_scale",
    "utterances",
    "wer_corpus",
    "wer_mean",
    "wer_ci95",
    "failure_rate",
    "speaker_similarity",
    "entropy",
    "top1_probability",
    "tokens_per_second",
    "rtf",
    "nfe",
    "peak_memory_mb",
}
COMPARISON_FIELDS = {"a", "b", "metric", "difference", "ci95", "probability_of_improvement"}
FAST = BootstrapConfig(num_resamples=500)
TEXTS = [
    "one",
    "one two",
    "one two three four",
    "five six",
    "seven eight nine",
    "two",
    "three",
    "four five",
    "six",
    "nine",
]


def row(system, number, errors, similarity=0.7, speaker=None):
    words = len(TEXTS[number].split())
    return dataclasses.replace(
        failed_item(system, Expected(f"u{number}", TEXTS[number], speaker)),
        hypothesis="heard",
        substitutions=errors,
        deletions=0,
        wer=errors / words,
        failure=errors / words > 0.5,
        failure_reasons=("wer",) if errors / words > 0.5 else (),
        speaker_similarity=similarity,
        recogniser="asr",
        error=None,
    )


ERRORS = {"teacher": [1, 0, 2, 1, 1, 0, 0, 1, 1, 0], "student": [0, 0, 1, 0, 1, 0, 0, 0, 1, 0]}
SYSTEMS = [
    SystemInfo("teacher", "teacher", facts={"guidance_scale": 3.0, "tokens_per_second": 63.0}),
    SystemInfo("student", "student"),
]


def evaluation(count=10, **changes):
    rows = [row(system, i, errors[i]) for system, errors in ERRORS.items() for i in range(count)]
    return summarise(rows, SYSTEMS, [Pair("teacher", "student")], bootstrap=FAST, **changes)


def test_the_summary_has_the_contract_s_fields(tmp_path):
    write_summary(tmp_path / "summary.json", evaluation(environment={"torch": "2"}, note="smoke"))
    tree = read_summary(tmp_path / "summary.json")
    assert set(tree) >= {"systems", "comparisons", "environment", "note", "confidence", "findings"}
    assert all(set(system) >= SYSTEM_FIELDS for system in tree["systems"])
    assert all(set(comparison) >= COMPARISON_FIELDS for comparison in tree["comparisons"])
    assert tree["environment"] == {"torch": "2"}
    assert tree["systems"][1]["tokens_per_second"] is None
    assert tree["systems"][0]["tokens_per_second"] == 63.0


def test_rates_and_intervals_are_those_of_the_rows():
    teacher, student = evaluation().systems
    words = [len(text.split()) for text in TEXTS]
    assert teacher["wer_corpus"] == pytest.approx(sum(ERRORS["teacher"]) / sum(words))
    assert teacher["wer_mean"] == pytest.approx(sum(e / w for e, w in zip(ERRORS["teacher"], words, strict=True)) / 10)
    assert teacher["utterances"] == 10
    # Wrong at more than half of their words: u0 and u8 of the teacher, u8 of the student.
    assert teacher["failure_rate"] == pytest.approx(0.2)
    assert student["failure_rate"] == pytest.approx(0.1)
    assert teacher["failures"] == {"wer": 2}
    expected = confidence_interval(ERRORS["student"], words, num_resamples=500)
    assert student["wer_ci95"] == [expected.low, expected.high]
    assert student["speaker_similarity"] == pytest.approx(0.7)


def test_comparisons_are_paired():
    words = [len(text.split()) for text in TEXTS]
    found = {comparison["metric"]: comparison for comparison in evaluation().comparisons}
    assert set(found) == {"wer_corpus", "wer_capped", "wer_mean", "failure_rate", "speaker_similarity"}
    expected = paired_comparison(ERRORS["teacher"], ERRORS["student"], words, num_resamples=500)
    assert found["wer_corpus"]["difference"] == pytest.approx(expected.difference)
    assert found["wer_corpus"]["ci95"] == [expected.low, expected.high]
    assert found["wer_corpus"]["probability_of_improvement"] == expected.probability_of_improvement > 0.9
    assert found["speaker_similarity"]["probability_of_improvement"] == 0.5


def test_no_failure_among_ten_is_not_a_rate_of_exactly_zero():
    """Clopper and Pearson: the rate that would show no failure in ten with a chance of 2.5 %, and its mirror image."""
    rows = [row(s, i, 0 if s == "teacher" else 9) for s in ERRORS for i in range(10)]
    teacher, student = summarise(rows, SYSTEMS, bootstrap=FAST).systems
    low, high = teacher["failure_rate_ci95"]
    assert low == 0.0
    assert (1.0 - high) ** 10 == pytest.approx(0.025)
    assert student["failure_rate_ci95"] == [pytest.approx(1.0 - high), 1.0]


def test_no_word_error_in_ten_strings_passes_no_gate_that_asks_for_fewer_than_ten_can_show():
    rows = [row(s, i, 0) for s in ERRORS for i in range(10)]
    teacher, _ = summarise(rows, SYSTEMS, bootstrap=FAST).systems
    low, high = teacher["wer_ci95"]
    assert low == teacher["wer_corpus"] == 0.0
    assert (1.0 - high) ** 10 == pytest.approx(0.025)
    (check,) = check_gate(parse_gate("wer<=0.01"), teacher)
    assert not check.passed


def test_missing_utterances_count_as_failures():
    rows = [row("teacher", i, 0) for i in range(10)] + [row("student", i, 0) for i in range(9)]
    expected = [Expected(f"u{i}", text) for i, text in enumerate(TEXTS)]
    found = summarise(rows, SYSTEMS, expected=expected, bootstrap=FAST)
    teacher, student = found.systems
    assert (teacher["utterances"], student["utterances"]) == (10, 10)
    assert student["failures"] == {"missing": 1}
    assert student["wer_corpus"] > teacher["wer_corpus"] == 0.0
    assert len(found.items) == 20
    assert any("student delivered no audio for 1 of its utterances" in finding.text for finding in found.findings)


def test_few_utterances_have_no_interval():
    found = evaluation(count=3)
    assert [system["wer_ci95"] for system in found.systems] == [None, None]
    assert {comparison["ci95"] for comparison in found.comparisons} == {None}
    assert "n too small" in found.findings[0].text


def test_speakers_can_be_resampled_whole():
    rows = [row(s, i, e[i], speaker="ann" if i < 5 else "bob") for s, e in ERRORS.items() for i in range(10)]
    found = summarise(rows, SYSTEMS, bootstrap=BootstrapConfig(by_speaker=True, num_resamples=50))
    assert found.systems[0]["wer_ci95"] is None  # two speakers are two units
    with pytest.raises(DataError, match="names no speaker"):
        summarise([row("teacher", 0, 0), row("student", 0, 0)], SYSTEMS, bootstrap=BootstrapConfig(by_speaker=True))


def test_comparisons_resample_whole_speakers_too():
    speakers = [f"s{i // 2}" for i in range(10)]
    rows = [row(s, i, e[i], speaker=speakers[i]) for s, e in ERRORS.items() for i in range(10)]
    by_speaker = BootstrapConfig(by_speaker=True, num_resamples=500)
    found = summarise(rows, SYSTEMS, [Pair("teacher", "student")], bootstrap=by_speaker)
    compared = next(comparison for comparison in found.comparisons if comparison["metric"] == "wer_corpus")
    words = [len(text.split()) for text in TEXTS]
    pair = ERRORS["teacher"], ERRORS["student"], words
    expected = paired_comparison(*pair, clusters=speakers, num_resamples=500)
    assert compared["ci95"] == ([expected.low, expected.high] if expected.reliable else None)
    assert compared["probability_of_improvement"] == expected.probability_of_improvement
    plain = paired_comparison(*pair, num_resamples=500)
    assert (expected.reliable, expected.low, expected.high) != (plain.reliable, plain.low, plain.high)


def test_silent_utterances_have_no_voice_to_compare():
    rows = [
        row(s, i, 0, similarity=None if (s, i) == ("teacher", 0) else 0.5 + 0.01 * i) for s in ERRORS for i in range(10)
    ]
    found = summarise(rows, SYSTEMS, [Pair("teacher", "student")], bootstrap=FAST)
    voices = next(c for c in found.comparisons if c["metric"] == "speaker_similarity")
    assert voices["utterances"] == 9
    assert voices["difference"] == pytest.approx(0.0)
    assert found.systems[0]["speaker_similarity_utterances"] == 9


def test_without_any_voice_there_is_no_similarity():
    rows = [row(s, i, 0, similarity=None) for s in ERRORS for i in range(10)]
    found = summarise(rows, SYSTEMS, [Pair("teacher", "student")], bootstrap=FAST)
    assert found.systems[0]["speaker_similarity"] is None
    assert {comparison["metric"] for comparison in found.comparisons} == {
        "wer_corpus",
        "wer_capped",
        "wer_mean",
        "failure_rate",
    }


def test_confidence_is_carried_and_never_nan(tmp_path):
    accumulator = ConfidenceAccumulator(2)
    accumulator.add(torch.zeros(1, 3, 2, 9), torch.tensor([[[1, 1, 1], [0, 0, 0]]], dtype=torch.bool))
    found = evaluation(confidence={"student": accumulator.result(), "teacher, guided": accumulator.result()})
    assert found.systems[1]["entropy"] == pytest.approx(math.log(9))
    assert found.systems[0]["entropy"] is None
    write_summary(tmp_path / "summary.json", found)
    tree = json.loads((tmp_path / "summary.json").read_text())
    assert tree["confidence"]["teacher, guided"]["entropy_K"] == [pytest.approx(math.log(9)), None]


def test_the_same_rows_give_the_same_summary():
    assert evaluation().tree() == evaluation().tree()


def test_names_are_checked():
    with pytest.raises(ConfigError, match="no such system"):
        summarise([row("teacher", 0, 0)], SYSTEMS[:1], [Pair("teacher", "nobody")])
    with pytest.raises(ConfigError, match="same name"):
        summarise([row("teacher", 0, 0)], [SYSTEMS[0], SYSTEMS[0]])


def test_a_file_that_is_no_summary_is_refused(tmp_path):
    (tmp_path / "summary.json").write_text("[1]")
    with pytest.raises(DataError, match="not a summary"):
        read_summary(tmp_path / "summary.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_summary(tmp_path / "nowhere.json")
