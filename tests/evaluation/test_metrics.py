"""The table of metrics, and that everything that tells figures reads it."""

import dataclasses
import html
from pathlib import Path

import pytest

from retort.errors import ConfigError, DataError
from retort.evaluation.items import Expected, failed_item, read_results, write_results
from retort.evaluation.metrics import BY_FIELD, FACTS, METRICS, OBJECTIVES, OF_ITEMS, find_metric
from retort.evaluation.model_card import card_text
from retort.evaluation.report import write_report
from retort.evaluation.results import BootstrapConfig, Pair, SystemInfo, summarise

FAST = BootstrapConfig(num_resamples=200)


def item(system: str, number: int, **values: float):
    row = failed_item(system, Expected(f"u{number}", "one two"))
    return dataclasses.replace(row, deletions=0, wer=0.0, failure=False, failure_reasons=(), values=values, error=None)


def test_names_and_fields_are_unique_and_every_objective_has_a_direction() -> None:
    assert len(BY_FIELD) == len(METRICS)
    assert set(OF_ITEMS) | set(FACTS) == set(METRICS)
    assert [m.name for m in METRICS.values() if (m.is_objective or m.gates) and m.better is None] == []
    words = [m.word for m in METRICS.values() if m.word]
    assert len(set(words)) == len(words)


@pytest.mark.parametrize(
    ("name", "value", "text", "signed"),
    [
        ("wer", 0.1234, "12.3", "+12.3"),
        ("mel_distance", -1.0, "\N{MINUS SIGN}1.00", "\N{MINUS SIGN}1.00"),
        ("parameters", 1_300_000_000, "1.3B", "+1.3B"),
        ("nfe", 4000, "4,000", "+4,000"),
    ],
)
def test_values_are_shown_in_the_unit_of_the_metric(name: str, value: float, text: str, signed: str) -> None:
    assert (METRICS[name].text(value), METRICS[name].signed(value)) == (text, signed)
    assert METRICS[name].text(None) == "\N{EN DASH}"


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown figure 'mel_distanse'; did you mean 'mel_distance'\?"):
        find_metric("mel_distanse", OF_ITEMS)
    with pytest.raises(ConfigError, match="unknown figure 'nfe'"):
        find_metric("nfe", OF_ITEMS)


def evaluation(metric: str | None = "mel_distance", **changes):
    distances = {"naive": [3.0 + 0.1 * i for i in range(10)], "student": [2.0 + 0.1 * i for i in range(10)]}
    rows = [item(s, i, mel_distance=d) for s, found in distances.items() for i, d in enumerate(found)]
    systems = [SystemInfo("naive", "student", facts={"nfe": 31}), SystemInfo("student", "student", facts={"nfe": 3})]
    return summarise(rows, systems, [Pair("naive", "student", metric)], bootstrap=FAST, **changes)


def test_values_of_utterances_have_means_intervals_and_paired_differences() -> None:
    found = evaluation()
    naive, student = found.systems
    assert (naive["mel_distance"], student["mel_distance"]) == (pytest.approx(3.45), pytest.approx(2.45))
    low, high = student["mel_distance_ci95"]
    assert 2.0 < low < 2.45 < high < 2.9
    (row,) = found.comparisons
    assert (row["metric"], row["difference"]) == ("mel_distance", pytest.approx(-1.0))
    assert row["ci95"] == [pytest.approx(-1.0), pytest.approx(-1.0)], "paired: the sentences' own differences cancel"
    assert row["probability_of_improvement"] == 1.0
    assert any("student has the better mel distance beside naive" in finding.text for finding in found.findings)


def test_utterances_without_a_value_do_not_count_and_no_value_at_all_is_null() -> None:
    rows = [item("a", i, **({"mel_distance": 2.0} if i else {})) for i in range(10)] + [item("b", i) for i in range(10)]
    found = summarise(rows, [SystemInfo("a", "student"), SystemInfo("b", "student")],
                      [Pair("a", "b", "mel_distance")], bootstrap=FAST)  # fmt: skip
    a, b = found.systems
    assert (a["mel_distance"], a["mel_distance_utterances"]) == (2.0, 9)
    assert (b["mel_distance"], b["mel_distance_ci95"], b["mel_distance_utterances"]) == (None, None, 0)
    assert found.comparisons == ()
    assert "b against a: no utterance of both has a mel distance." in [finding.text for finding in found.findings]


def test_every_metric_is_in_every_system_of_the_summary_and_null_where_it_does_not_apply() -> None:
    naive, _ = evaluation().systems
    assert set(BY_FIELD) <= set(naive)
    assert {metric.interval for metric in OF_ITEMS.values()} <= set(naive)
    assert (naive["nfe"], naive["tokens_per_second"], naive["num_layers"]) == (31, None, None)


def test_what_is_not_in_the_table_is_refused() -> None:
    with pytest.raises(DataError, match="values of 'charm', which is no metric"):
        summarise([item("a", 0, charm=1.0)], [SystemInfo("a", "student")])
    with pytest.raises(AssertionError, match="charm have no row"):
        SystemInfo("a", "student", facts={"charm": 1.0})
    with pytest.raises(AssertionError, match="mel_distance have no row"):
        SystemInfo("a", "student", facts={"mel_distance": 1.0})


def test_values_survive_the_file(tmp_path: Path) -> None:
    rows = [item("a", 0, mel_distance=1.5)]
    write_results(tmp_path / "results.jsonl", rows)
    assert read_results(tmp_path / "results.jsonl") == rows


def test_a_margin_stands_in_the_comparison_that_it_is_about() -> None:
    rows = [item(s, i, mel_distance=d) for s, d in (("a", 2.0), ("b", 2.1)) for i in range(10)]
    pairs = [Pair("a", "b", None, {"wer": 0.4}), Pair("a", "b", "mel_distance", {"mel_distance": 0.2})]
    found = summarise(rows, [SystemInfo("a", "teacher"), SystemInfo("b", "student")], pairs, bootstrap=FAST)
    margins = {row["metric"]: row["margin"] for row in found.comparisons}
    words = {"wer_corpus": 0.4, "wer_capped": 0.4, "wer_mean": 0.4}
    assert margins == {**words, "failure_rate": None, "mel_distance": 0.2}
    text = " ".join(finding.text for finding in found.findings)
    assert "b is as good as a by WER, within the margin of 40.0 points of WER set before the run" in text
    assert "b has the worse mel distance beside a, yet by less than the margin of 0.20 dB of mel distance" in text


def test_report_and_card_show_what_the_table_says(tmp_path: Path) -> None:
    found = evaluation()
    page = html.unescape(write_report(tmp_path, found.tree(), found.items).read_text())
    for label in ("Mel distance, dB", "NFE", "WER, corpus, %"):
        assert f"<th>{label}</th>" in page or f">{label}</td>" in page
    assert "<th>Tokens/s</th>" not in page, "what no system has needs no column"
    assert "\N{MINUS SIGN}1.00" in page
    figures = {name: {"value": None, "ci95": None} for name in OBJECTIVES}
    figures["mel_distance"] = {"value": 2.456, "ci95": [2.0, 3.0]}
    card = {"name": "n", "note": None, "model": {}, "utterances": 1, "figures": figures, "scorers": [], "gate": [],
            "evaluation": "e", "sweep": None, "retort": "0"}  # fmt: skip
    assert "| Mel distance, dB | 2.46 | 2.00 to 3.00 |" in card_text(card)


def test_systems_without_tokens_are_drawn_by_their_time_per_second_of_sound(tmp_path: Path) -> None:
    rows = [item(name, i) for name in ("teacher", "student") for i in range(8)]
    systems = [
        SystemInfo("teacher", "teacher", facts={"rtf": 0.4, "diffusion_rtf": 0.3}),
        SystemInfo("student", "student", facts={"rtf": 0.1, "diffusion_rtf": 0.02}),
    ]
    found = summarise(rows, systems, bootstrap=FAST)
    page = write_report(tmp_path, found.tree(), found.items).read_text()
    assert "Quality against speed (lower left is best)" in page
    assert "<td>4.00\N{MULTIPLICATION SIGN}" in page
    assert "<td>0.0200" in page
