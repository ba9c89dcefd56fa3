import pytest

from retort.evaluation.findings import find


def system(name, role="student", **changes):
    return {"name": name, "role": role, "utterances": 50, "wer_ci95": [0.1, 0.2], "failures": {}} | changes


def pair(a, b, difference, ci95, metric="wer_corpus", chance=0.9, margin=None, is_asked_for=True):
    return {
        "a": a,
        "b": b,
        "metric": metric,
        "difference": difference,
        "ci95": ci95,
        "probability_of_improvement": chance,
        "margin": margin,
        "utterances": 50,
        "is_asked_for": is_asked_for,
    }


def only(systems, comparison):
    found = [finding for finding in find(systems, [comparison]) if comparison["b"] in finding.text]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(
    ("ci95", "tone", "words"),
    [
        ([-0.06, -0.01], "good", "student makes fewer word errors than teacher"),
        ([0.01, 0.06], "bad", "student makes more word errors than teacher"),
        ([-0.01, 0.06], "neutral", "cannot be told apart"),
        (None, "neutral", "n too small to judge"),
    ],
)
def test_word_errors_are_stated_as_the_interval_allows(ci95, tone, words):
    finding = only([system("teacher", "teacher"), system("student")], pair("teacher", "student", -0.03, ci95))
    assert finding.tone == tone
    assert words in finding.text


@pytest.mark.parametrize(
    ("a", "b", "ci95", "worse"),
    [
        ("control", "student", [-0.06, -0.01], True),
        ("control", "student", [-0.06, 0.01], False),
        ("control", "student", [0.01, 0.06], False),
        ("student", "control", [0.01, 0.06], True),
        ("student", "control", [-0.06, -0.01], False),
    ],
)
def test_a_control_that_is_not_worse_is_said_so(a, b, ci95, worse):
    finding = only([system("control", "control"), system("student")], pair(a, b, 0.0, ci95))
    assert finding.tone == ("good" if worse else "bad")
    assert ("control, a control, is worse than student." in finding.text) is worse
    assert ("does not show that the method helps" in finding.text) is not worse


@pytest.mark.parametrize(("a", "b", "sign"), [("control", "student", 1), ("student", "control", -1)])
def test_a_control_that_is_better_is_said_to_be_better(a, b, sign):
    ci95 = sorted((sign * 0.01, sign * 0.06))
    for margin in (None, 0.1):
        finding = only([system("control", "control"), system("student")], pair(a, b, 0.03 * sign, ci95, margin=margin))
        assert finding.tone == "bad"
        assert "control, a control, is better than student: this run does not show that the method" in finding.text


def test_a_control_that_fails_more_often_speaks_for_the_student():
    systems = [system("student"), system("control", "control")]
    row = pair("student", "control", 0.5, [0.4, 0.6], metric="failure_rate", is_asked_for=False)
    assert only(systems, row).tone == "good"
    assert only(systems, row | {"difference": -0.5, "ci95": [-0.6, -0.4]}).tone == "bad"


def test_a_control_is_there_for_the_student_to_beat_and_not_for_the_teacher():
    finding = only(
        [system("teacher", "teacher"), system("control", "control")], pair("teacher", "control", 0.0, [-0.1, 0.1])
    )
    assert (finding.tone, "method helps" in finding.text) == ("neutral", False)


def test_failures_by_chance_are_said_to_be_chance():
    systems = [system("teacher", "teacher"), system("student")]
    certain = only(systems, pair("teacher", "student", -0.1, [-0.15, -0.05], metric="failure_rate", is_asked_for=False))
    chance = only(systems, pair("teacher", "student", 0.1, [-0.05, 0.15], metric="failure_rate", is_asked_for=False))
    assert (certain.tone, certain.text) == ("good", "student fails 10.0 points less often than teacher.")
    assert chance.tone == "neutral"
    assert "chance" in chance.text


@pytest.mark.parametrize(
    ("metric", "ci95", "margin", "tone", "words"),
    [
        ("wer_corpus", [-0.02, 0.019], 0.02, "good", "is as good as teacher by WER, within the margin of 2.0 points"),
        ("wer_corpus", [-0.02, 0.021], 0.02, "neutral", "stays within the margin of 2.0 points of WER set before the"),
        ("wer_corpus", [0.001, 0.019], 0.02, "neutral", "more word errors than teacher, yet by less than the margin"),
        ("wer_corpus", [0.001, 0.021], 0.02, "bad", "student makes more word errors than teacher."),
        ("wer_corpus", [-0.04, -0.01], 0.02, "good", "student makes fewer word errors than teacher."),
        ("speaker_similarity", [-0.019, 0.03], 0.02, "good", "is as good as teacher by speaker similarity"),
        ("speaker_similarity", [-0.03, 0.019], 0.02, "neutral", "is not shown"),
        ("mel_distance", [-0.4, -0.1], None, "good", "student has the better mel distance beside teacher."),
    ],
)
def test_as_good_as_is_said_within_a_margin_that_stood_before_the_run(metric, ci95, margin, tone, words):
    row = pair("teacher", "student", sum(ci95) / 2, ci95, metric=metric, margin=margin)
    finding = only([system("teacher", "teacher"), system("student")], row)
    assert finding.tone == tone
    assert words in finding.text


def test_a_margin_that_was_stated_when_there_was_a_report_speaks_for_nobody():
    row = pair("teacher", "student", 0.0, [-0.01, 0.01], margin=0.02) | {"is_margin_late": True}
    finding = only([system("teacher", "teacher"), system("student")], row)
    assert finding.tone == "neutral"
    assert "the margin of 2.0 points of WER that was stated when there was a report already" in finding.text


@pytest.mark.parametrize(("utterances", "units", "shown"), [(50, 50, False), (200, 200, True), (400, 8, False)])
def test_few_utterances_that_are_all_equal_do_not_show_equality(utterances, units, shown):
    """None of 50 was worse: with 97.5 % confidence fewer than 7.1 % are; of 200, 1.8 %; of 8 speakers, 37 %."""
    row = pair("teacher", "student", 0.0, [0.0, 0.0], margin=0.02) | {"utterances": utterances, "units": units}
    text = only([system("teacher", "teacher"), system("student")], row).text
    assert ("is as good as" in text) is shown
    assert ("is not shown" in text) is not shown


@pytest.mark.parametrize("ci95", [[-0.001, 0.001], [-0.5, 0.5], None])
def test_without_a_margin_nothing_is_said_to_be_as_good(ci95):
    finding = only([system("teacher", "teacher"), system("student")], pair("teacher", "student", 0.0, ci95))
    assert "as good" not in finding.text
    assert finding.tone == "neutral"


def test_differences_are_said_in_the_unit_of_the_metric():
    systems = [system("naive"), system("student")]
    found = only(systems, pair("naive", "student", -0.25, [-0.4, -0.1], metric="mel_distance", chance=0.9995))
    assert found.text == "student has the better mel distance beside naive."
    assert found.figures == (
        "\N{MINUS SIGN}0.25 dB of mel distance "
        "(95 % interval \N{MINUS SIGN}0.40 to \N{MINUS SIGN}0.10, probability of improvement above 99.9 %)",
    )


def test_what_a_shallow_student_costs_is_said_beside_each_teacher_that_it_is_compared_with():
    teacher = system(
        "teacher", "teacher", num_layers=6, parameters=500, training_tokens=1000, tokens_per_second=10.0, rtf=0.3
    )
    student = system("student", num_layers=3, parameters=300, training_tokens=90, tokens_per_second=19.0, rtf=0.2)
    texts = [f.text for f in find([teacher, student], [pair("teacher", "student", 0.0, [-0.1, 0.1])])]
    assert (
        "student beside teacher: 3 of 6 layers, 60.0 % of the parameters, 9.0 % of its training tokens, "
        "1.90 times the speed of decoding, 1.50 times with the codec."
    ) in texts
    unknown = student | {"training_tokens": None, "tokens_per_second": None}
    texts = [f.text for f in find([teacher, unknown], [pair("teacher", "student", 0.0, [-0.1, 0.1])])]
    assert "student beside teacher: 3 of 6 layers, 60.0 % of the parameters." in texts
    equal = student | {"num_layers": 6}
    assert not any("beside" in f.text for f in find([teacher, equal], [pair("teacher", "student", 0.0, [-0.1, 0.1])]))


def nearer(difference, ci95):
    return {**pair("copy", "student", difference, ci95, metric="target_kl"), "told_as": "untouched"}


@pytest.mark.parametrize(
    ("difference", "ci95", "tone", "words"),
    [
        (-0.008, [-0.009, -0.007], "good", "student is nearer to the target than copy, an untouched copy."),
        (-0.008, [-0.017, 0.001], "neutral", "an untouched copy, which may be chance"),
        (-0.008, None, "neutral", "an untouched copy, n too small to judge"),
        (0.0, [0.0, 0.0], "bad", "student is no nearer to the target than copy, an untouched copy"),
        (0.001, [-0.001, 0.003], "bad", "no nearer to the target than copy"),
        (0.015, [0.014, 0.016], "bad", "no nearer to the target than copy, an untouched copy."),
    ],
)
def test_a_student_that_is_no_nearer_to_the_target_than_an_untouched_copy_is_told(difference, ci95, tone, words):
    systems = [system("copy", "teacher", num_layers=4), system("student", num_layers=2)]
    finding = only(systems, nearer(difference, ci95))  # what it costs is told where the run file compares them
    assert finding.tone == tone
    assert words in finding.text
    assert "nats a token of KL from the target" in finding.figures[0]


def at_temperatures(plain, best, *, a_temperature=1.0, metric="wer_corpus"):
    systems = [
        system("teacher", "teacher", temperature=a_temperature), system("student", temperature=1.0),
        system("teacher@best", "teacher", temperature=0.4), system("student@best", temperature=0.6),
    ]  # fmt: skip
    rows = [
        pair("teacher", "student", -0.03, plain, metric=metric),
        {**pair("teacher@best", "student@best", 0.01, best, metric=metric), "told_as": "at_best"},
    ]
    return find(systems, rows)


@pytest.mark.parametrize(
    ("plain", "best", "tone"),
    [
        ([-0.06, -0.01], [-0.02, -0.01], "good"),
        ([-0.06, -0.01], [-0.02, 0.04], "neutral"),
        ([-0.06, -0.01], [0.01, 0.04], "bad"),
        ([0.01, 0.06], [-0.02, -0.01], "bad"),
    ],
)
def test_a_pair_is_told_at_equal_settings_and_at_each_ones_best_in_one_sentence(plain, best, tone):
    size, finding = at_temperatures(plain, best)
    assert size.text.startswith("50 utterances")
    assert finding.tone == tone
    first, second = finding.text.split(" At each one's best temperature (teacher 0.4, student 0.6): ")
    assert first.startswith("At equal temperature (1): student")
    assert second.startswith("student@best")
    plain_figures, best_figures = finding.figures
    assert plain_figures.startswith("at equal temperature (1): \N{MINUS SIGN}3.0 points of WER (95 % interval ")
    assert best_figures.startswith("at each one's best: +1.0 points of WER (95 % interval ")


def test_settings_that_differ_are_not_called_equal():
    _, finding = at_temperatures([-0.06, -0.01], [-0.02, -0.01], a_temperature=0.8)
    assert finding.text.startswith("At the file's settings: student makes fewer")


def test_a_pair_at_the_best_is_told_beside_the_same_one_alone():
    systems = [system(name, "teacher", temperature=0.4) for name in ("a", "b", "a@best", "b@best")]
    failures = {**pair("a@best", "b@best", -0.1, [-0.2, -0.05], metric="failure_rate", is_asked_for=False)}
    found = find(systems, [pair("a", "b", -0.03, [-0.06, -0.01]), {**failures, "told_as": "at_best"}])
    assert [finding.text.split(" ")[0] for finding in found] == ["50", "b", "b@best"]


FLOOR = {"system": "teacher", "ratios": {"tokens_per_second": {"ratio": 1.0, "ci95": None, "factor": 1.1}}}


@pytest.mark.parametrize(
    ("speed", "words"),
    [
        (109.0, "1.09 times the speed of decoding (equal: within the noise floor), "),
        (92.0, "0.92 times the speed of decoding (equal: within the noise floor), "),
        (120.0, ", 1.20 times the speed of decoding, "),
    ],
)
def test_speeds_that_differ_by_less_than_identical_networks_are_equal(speed, words):
    teacher = system("teacher", "teacher", num_layers=6, tokens_per_second=100.0, rtf=0.2)
    student = system("student", num_layers=3, tokens_per_second=speed, rtf=0.1)
    found = find([teacher, student], [pair("teacher", "student", -0.03, [-0.06, -0.01])], (), FLOOR)
    (costs,) = [finding.text for finding in found if "beside teacher" in finding.text]
    assert words in costs
    assert "2.00 times with the codec." in costs, "a figure without a floor of its own"
    assert any("teacher, opened twice, differs from itself by up to: Tokens/s 10.0 %" in f.text for f in found)


def test_without_a_floor_nothing_is_called_equal_in_speed():
    teacher = system("teacher", "teacher", num_layers=6, tokens_per_second=100.0, rtf=0.2)
    student = system("student", num_layers=3, tokens_per_second=100.0, rtf=0.2)
    text = " ".join(f.text for f in find([teacher, student], [pair("teacher", "student", -0.03, [-0.06, -0.01])]))
    assert "1.00 times the speed of decoding" in text
    assert "oise floor" not in text


def failing(a, b, difference, ci95, told_as):
    return {**pair(a, b, difference, ci95, metric="failure_rate", is_asked_for=False), "told_as": told_as}


@pytest.mark.parametrize(
    ("plain", "best", "tone", "text"),
    [
        ((-0.1, [-0.2, -0.05]), (-0.02, [-0.05, -0.01]), "good",
         "10.0 points less often than teacher; at each one's best temperature 2.0 points less often than teacher@best"),
        ((-0.1, [-0.2, -0.05]), (-0.02, [-0.05, 0.01]), "neutral",
         "10.0 points less often than teacher; at each one's best temperature 2.0 points less often than teacher@best, "
         "which may be chance"),
        ((0.0, [0.0, 0.0]), (0.1, [0.05, 0.2]), "bad",
         "as often as teacher; at each one's best temperature 10.0 points more often than teacher@best"),
        ((-0.1, [-0.2, -0.05]), (0.1, [0.05, 0.2]), "bad",
         "10.0 points less often than teacher; at each one's best temperature 10.0 points more often than "
         "teacher@best"),
    ],
)  # fmt: skip
def test_failures_are_told_at_equal_settings_and_at_each_ones_best_in_one_sentence(plain, best, tone, text):
    systems = [system(name, "teacher") for name in ("teacher", "student", "teacher@best", "student@best")]
    rows = [failing("teacher", "student", *plain, "asked"), failing("teacher@best", "student@best", *best, "at_best")]
    (found,) = [f for f in find(systems, rows) if "fails" in f.text]
    assert (found.tone, found.text) == (tone, f"student fails {text}.")
    plain_figures, best_figures = found.figures
    assert plain_figures.startswith("at the file's settings: 95 % interval ")
    assert best_figures.startswith("at each one's best: 95 % interval ")


def test_failures_that_are_equal_at_both_settings_are_no_finding():
    systems = [system(name, "teacher") for name in ("teacher", "student", "teacher@best", "student@best")]
    rows = [failing("teacher", "student", 0.0, [0.0, 0.0], "asked")]
    rows.append(failing("teacher@best", "student@best", 0.0, [0.0, 0.0], "at_best"))
    assert [f.text for f in find(systems, rows)] == ["50 utterances, 4 systems."]


def test_failures_that_are_asked_for_are_told_once():
    systems = [system("teacher", "teacher"), system("student")]
    row = pair("teacher", "student", -0.1, [-0.15, -0.05], metric="failure_rate")
    found = [f for f in find(systems, [row, {**row, "is_asked_for": False}]) if "student" in f.text]
    assert [f.tone for f in found] == ["good"]
    assert found[0].line == f"{found[0].text} ({found[0].figures[0]})"
