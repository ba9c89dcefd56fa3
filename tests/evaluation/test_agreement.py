"""Several recognisers judge one evaluation: their figures, where they agree, and what only one of them supports."""

import dataclasses

import pytest

from retort.errors import ConfigError, DataError
from retort.evaluation.findings import find
from retort.evaluation.items import Expected, Heard, failed_item, read_results, write_results
from retort.evaluation.metrics import OBJECTIVES, find_metric, labels_of, metrics_of
from retort.evaluation.pareto import costs, figures_of
from retort.evaluation.preference import check_gate, choose, parse_gate, parse_preference
from retort.evaluation.report import write_report
from retort.evaluation.results import BootstrapConfig, Pair, SystemInfo, summarise

FAST = BootstrapConfig(num_resamples=300)
COUNT = 24
NAMES = {"sphinx": "pocketsphinx-en-us", "whisper": "faster-whisper:tiny.en:int8:1a5afae0"}


def row(system, number, errors, *, loops=()):
    """A row of four words, with errors by label; a loop adds a hundred insertions."""
    base = failed_item(system, Expected(f"u{number:02}", "one two three four"))
    heard = {
        label: Heard(NAMES[label], f"{label} heard", count, 0, 100 if label in loops else 0, 4, label in loops)
        for label, count in errors.items()
    }
    first = next(iter(heard.values()))
    return dataclasses.replace(
        base, hypothesis=first.hypothesis, substitutions=first.substitutions, deletions=0, insertions=first.insertions,
        wer=first.word_errors.wer, failure=False, failure_reasons=(), recogniser=first.recogniser, error=None,
        loop=first.loop, heard=heard if len(heard) > 1 else {},
    )  # fmt: skip


def judged(sphinx, whisper, *, roles=("teacher", "student"), margins=None, listeners=None, metric=None):
    """An evaluation of ``a`` and ``b``, whose differences in errors by each recogniser are given: a word in so many."""
    rows = []
    for number in range(COUNT):
        for name in ("a", "b"):
            errors = {
                label: 1 + (name == "b") * ((number % 4 < abs(step)) * (1 if step > 0 else -1))
                for label, step in (("sphinx", sphinx), ("whisper", whisper))
            }
            rows.append(row(name, number, errors))
    infos = [SystemInfo("a", roles[0]), SystemInfo("b", roles[1], listeners=listeners or {})]
    return summarise(rows, infos, [Pair("a", "b", metric, margins or {})], bootstrap=FAST)


def told(summary):
    (finding,) = [f for f in summary.findings if any("points of WER" in line for line in f.figures)]
    return finding


@pytest.mark.parametrize(
    ("sphinx", "whisper", "margins", "tone", "words"),
    [
        (-3, -3, None, "good", "b makes fewer word errors than a; both recognisers agree."),
        (3, 3, None, "bad", "b makes more word errors than a; both recognisers agree"),
        (0, 0, None, "neutral", "b and a cannot be told apart by WER; both recognisers agree"),
        (0, 0, {"wer": 0.2}, "good", "within the margin of 20.0 points of WER set before the run; both recognisers"),
        (-3, 0, None, "neutral", "b makes fewer word errors than a by sphinx alone; by whisper this is not shown"),
        (0, -3, None, "neutral", "b makes fewer word errors than a by whisper alone; by sphinx this is not shown"),
        (0, 3, None, "neutral", "b makes more word errors than a by whisper alone"),
        (-3, 3, None, "bad", "The recognisers contradict each other: b makes fewer word errors than a by sphinx alone"),
    ],
)
def test_findings_say_where_recognisers_agree(sphinx, whisper, margins, tone, words):
    finding = told(judged(sphinx, whisper, margins=margins))
    assert finding.tone == tone
    assert words in finding.text
    assert ["95 % interval" in line for line in finding.figures] == [True, True], "each one's figure stands there"
    assert [line.split(" ")[0] for line in finding.figures] == ["sphinx", "whisper"]


@pytest.mark.parametrize(
    ("sphinx", "whisper", "tone", "words"),
    [
        (-3, -3, "good", "a, a control, is worse than b; both recognisers agree"),
        (
            -3,
            0,
            "neutral",
            "a, a control, is worse than b by sphinx alone: that the method helps is not shown by every",
        ),
        (0, 0, "bad", "a, a control, is not shown to be worse than b by any recogniser"),
        (3, 3, "bad", "a, a control, is better than b; both recognisers agree: this run does not show that the"),
        (3, 0, "bad", "a, a control, is better than b by sphinx alone: this run does not show that the method"),
        (-3, 3, "bad", "contradict each other: a, a control, is worse than b by sphinx alone, but better by whisper"),
    ],
)
def test_a_control_that_one_recogniser_alone_finds_worse_proves_little(sphinx, whisper, tone, words):
    finding = told(judged(sphinx, whisper, roles=("control", "student")))
    assert (finding.tone, words in finding.text) == (tone, True), finding.text


@pytest.mark.parametrize(
    ("margins", "found"),
    [
        ({"wer": 0.2}, (0.2, 0.2)),
        ({"wer_capped": 0.1, "wer": 0.2}, (0.1, 0.1)),
        ({"wer@sphinx": 0.1, "wer@whisper": 0.2}, (0.1, 0.2)),
        ({"wer@whisper": 0.1, "wer": 0.2}, (0.2, 0.1)),
        ({"wer_capped@sphinx": 0.1, "wer_capped": 0.2, "wer@sphinx": 0.3, "wer": 0.4}, (0.1, 0.2)),
        ({"failure_rate": 0.1}, (None, None)),
    ],
)
def test_the_margin_that_is_stated_nearest_is_the_one_that_counts(margins, found):
    rows = {row["metric"]: row["margin"] for row in judged(0, 0, margins=margins).comparisons}
    assert (rows["wer_capped@sphinx"], rows["wer_capped@whisper"]) == found


def test_each_recognisers_own_margin_is_told():
    finding = told(judged(0, 0, margins={"wer@sphinx": 0.4, "wer@whisper": 0.3}))
    assert "b is as good as a by WER, within each one's margin (sphinx the margin of 40.0 points" in finding.text
    assert "whisper the margin of 30.0 points" in finding.text


def test_who_finds_it_better_is_not_said_to_find_less_than_as_good():
    text = told(judged(-3, 0, margins={"wer": 0.2})).text
    assert "b makes fewer word errors than a by sphinx alone" in text
    assert "as good as a within the margin of 20.0 points of WER set before the run by whisper." in text


def test_nobody_is_compared_by_a_recogniser_that_did_not_listen():
    """Utterances that both missed would have all words deleted by anybody: they alone would be compared."""
    rows = [row(name, n, {"sphinx": 1 + 2 * (name == "b")}) for name in "ab" for n in range(20)]
    rows += [failed_item(name, Expected(f"x{n}", "one two three four")) for name in "ab" for n in range(10)]
    pairs = [Pair("a", "b", "wer@whisper", {"wer@whisper": 0.5})]
    summary = summarise(rows, [SystemInfo("a", "teacher"), SystemInfo("b", "student")], pairs, bootstrap=FAST)
    assert summary.comparisons == ()
    assert "b against a: no utterance of both has a WER by whisper." in [found.text for found in summary.findings]


def test_one_row_without_a_label_is_no_further_recogniser():
    labelled = judged(-3, -3)
    rows = [*labelled.comparisons, *judged(-3, -3, metric="wer_capped").comparisons]
    texts = [finding.line for finding in find(labelled.systems, rows)]
    assert not any("None" in text or "all 3" in text for text in texts)


def test_each_recogniser_has_figures_of_its_own_and_plain_ones_are_the_first_s():
    first, second = judged(-3, 0).systems
    assert labels_of(second) == ("sphinx", "whisper")
    assert second["wer_corpus"] == second["wer_corpus@sphinx"] == pytest.approx(1 / 4 * 1 / 4)
    assert second["wer_corpus@whisper"] == first["wer_corpus@whisper"] == pytest.approx(1 / 4)
    low, high = second["wer@whisper_ci95"]
    assert low <= 0.25 <= high
    alone = summarise([row("a", n, {"sphinx": 1}) for n in range(9)], [SystemInfo("a", "teacher")], bootstrap=FAST)
    assert labels_of(alone.systems[0]) == (), "one recogniser needs no label"
    assert [r["label"] for r in alone.recognisers] == [NAMES["sphinx"]]


def test_a_loop_counts_whole_in_the_plain_rate_and_no_more_than_its_words_in_the_capped_one():
    rows = [row("a", n, {"sphinx": 1, "whisper": 1}, loops=("whisper",) if n == 0 else ()) for n in range(10)]
    (system,) = summarise(rows, [SystemInfo("a", "teacher")], bootstrap=FAST).systems
    assert system["wer_corpus@whisper"] == pytest.approx((10 + 100) / 40)
    assert system["wer_capped@whisper"] == pytest.approx((9 + 4) / 40)
    assert (system["heard_loops@whisper"], system["heard_loops@sphinx"]) == (0.1, 0.0)
    assert system["wer_capped"] == system["wer_corpus"] == pytest.approx(10 / 40)


def test_a_loop_does_not_decide_a_comparison():
    rows = [row(s, n, {"sphinx": 1, "whisper": 1 + (s == "b")}) for s in "ab" for n in range(COUNT)]
    rows[0] = row("a", 0, {"sphinx": 1, "whisper": 1}, loops=("whisper",))
    infos = [SystemInfo("a", "teacher"), SystemInfo("b", "student")]
    finding = told(summarise(rows, infos, [Pair("a", "b")], bootstrap=FAST))
    assert "b makes more word errors than a by whisper alone" in finding.text


def test_what_delivered_no_sound_was_heard_wrong_by_all():
    rows = [row("a", n, {"sphinx": 0, "whisper": 0}) for n in range(9)] + [failed_item("a", Expected("u99", "one two"))]
    (system,) = summarise(rows, [SystemInfo("a", "teacher")], bootstrap=FAST).systems
    assert system["wer_corpus@whisper"] == system["wer_corpus@sphinx"] == pytest.approx(2 / 38)


def test_rows_heard_by_different_recognisers_are_refused():
    rows = [row("a", 0, {"sphinx": 0, "whisper": 0}), row("a", 1, {"sphinx": 0})]
    with pytest.raises(DataError, match="different further recognisers"):
        summarise(rows, [SystemInfo("a", "teacher")], bootstrap=FAST)


def test_results_keep_what_each_heard(tmp_path):
    rows = [row("a", 0, {"sphinx": 0, "whisper": 2}, loops=("whisper",)), failed_item("a", Expected("u1", "one"))]
    write_results(tmp_path / "results.jsonl", rows)
    assert read_results(tmp_path / "results.jsonl") == rows


@pytest.mark.parametrize(
    ("listeners", "tone", "words"),
    [
        ({}, None, ""),
        ({NAMES["sphinx"]: "chose the layers"}, "neutral", "sphinx chose the layers of b; whisper had no part"),
        (
            {NAMES["sphinx"]: "chose the layers", NAMES["whisper"]: "filtered the data"},
            "bad",
            "No independent recogniser listened: sphinx chose the layers of b; whisper filtered the data of b",
        ),
    ],
)
def test_a_recogniser_with_a_part_in_a_system_is_marked(tmp_path, listeners, tone, words):
    summary = judged(-3, -3, listeners=listeners)
    found = [f for f in summary.findings if "recogniser listened" in f.text or "Of the recognisers" in f.text]
    assert [f.tone for f in found] == ([tone] if tone else [])
    assert all(words in f.text for f in found)
    page = write_report(tmp_path, summary.tree(), summary.items).read_text()
    assert ("chose the layers of b" in page) is bool(listeners)


def test_the_report_has_every_recogniser_once_and_what_it_heard(tmp_path):
    summary = judged(-3, 0)
    page = write_report(tmp_path, summary.tree(), summary.items).read_text()
    for label in ("sphinx", "whisper"):
        assert page.count(f"<th>WER by {label}, corpus, %</th>") == 1
        assert page.count(f">WER by {label}, capped, %</td>") == 1
        assert NAMES[label] in page
    assert "<th>WER, corpus, %</th>" not in page


def test_gates_fronts_and_preferences_read_each_recogniser():
    good, bad = judged(0, 3).systems
    (check,) = check_gate(parse_gate("wer_capped@whisper<=0.4"), bad)
    assert not check.passed
    assert check_gate(parse_gate("wer_capped@sphinx<=0.4, wer_capped<=0.4"), bad)[0].passed
    assert not check_gate(parse_gate("wer@nobody<=0.9"), bad)[0].passed, "what was not measured never passes"
    figures = [figures_of(good), figures_of(bad)]
    assert costs(figures[1], ["wer@whisper", "wer"]) == (bad["wer_corpus@whisper"], bad["wer_corpus"])
    assert costs(figures[0], ["wer@nobody"]) is None
    assert choose(figures[::-1], parse_preference("wer@whisper<=0.3, best wer")) == 1


def test_names_of_recognisers_stand_only_where_words_are_heard():
    assert find_metric("wer@whisper", OBJECTIVES).label == "WER by whisper, corpus, %"
    for name in ("rtf@whisper", "speaker_similarity@whisper", "wer@", "wer@a b"):
        with pytest.raises(ConfigError, match="unknown figure"):
            find_metric(name, OBJECTIVES)
    assert len(metrics_of(["x", "y"], OBJECTIVES)) == len(OBJECTIVES) + 4


def test_a_comparison_by_one_recogniser_is_judged_by_it_alone():
    finding = told(judged(0, -3, metric="wer@whisper"))
    assert (finding.tone, "b makes fewer word errors than a." in finding.text) == ("good", True)
