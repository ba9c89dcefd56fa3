"""Preferences and gates in words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retort.errors import ConfigError, QualityGateError
from retort.evaluation.metrics import OBJECTIVES
from retort.evaluation.pareto import figures_of
from retort.evaluation.preference import Constraint, check_gate, choose, parse_gate, parse_preference


def candidate(wer: float, speed: float | None = 100.0, parameters: float = 1e6) -> dict[str, float | None]:
    return figures_of({"wer_corpus": wer, "tokens_per_second": speed, "parameters": parameters})


@pytest.mark.parametrize(
    ("text", "constraints", "order"),
    [
        ("wer<=0.2, fastest", [("wer", "<=", 0.2)], ["tokens_per_second"]),
        ("fastest", [], ["tokens_per_second"]),
        (" wer <= 20% ,parameters< 1.5M,smallest, best  wer", [("wer", "<=", 0.2), ("parameters", "<", 1.5e6)],
         ["parameters", "wer"]),
        ("tokens_per_second>80k, memory<=2e2, lightest", [("tokens_per_second", ">", 8e4), ("memory", "<=", 200)],
         ["memory"]),
    ],
)  # fmt: skip
def test_terms_are_read(text: str, constraints: list[tuple[str, str, float]], order: list[str]) -> None:
    found = parse_preference(text)
    assert [(c.name, c.relation) for c in found.constraints] == [(name, relation) for name, relation, _ in constraints]
    assert [c.bound for c in found.constraints] == pytest.approx([bound for *_, bound in constraints])
    assert list(found.order) == order


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wre<=0.2, fastest", "unknown figure 'wre'; did you mean 'wer'"),
        ("wer<=0.2, fastes", "did you mean 'fastest'"),
        ("wer=0.2, fastest", "'wer=0.2' is not understood"),
        ("wer<=0.2.1, fastest", "'0.2.1' is not a number"),
        ("wer<=0.2", "does not say which is best"),
        ("", "does not say which is best"),
    ],
)
def test_what_cannot_be_read_is_told_with_the_nearest(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_preference(text)


def test_a_gate_is_constraints_alone() -> None:
    assert [str(c) for c in parse_gate("wer<=30%, failure_rate<0.1")] == ["wer<=0.3", "failure_rate<0.1"]
    for text in ("fastest", "wer<=0.3, fastest", ""):
        with pytest.raises(ConfigError, match="is not a gate"):
            parse_gate(text)


def test_a_gate_on_the_distance_from_the_target_is_judged_by_the_worse_end_of_its_interval() -> None:
    gate = parse_gate("target_kl<=0.02")
    near, far = ({"target_kl": 0.013, "target_kl_ci95": [0.012, high]} for high in (0.014, 0.021))
    assert [check.passed for check in check_gate(gate, near)] == [True]
    assert [check.passed for check in check_gate(gate, far)] == [False]
    assert not check_gate(gate, {"target_kl": None, "target_kl_ci95": None})[0].passed, "it was not measured"


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.3]), st.sampled_from([None, 1.0, 2.0])), min_size=1, max_size=8))
def test_the_choice_is_the_best_that_satisfies_the_constraints(rows: list[tuple[float, float | None]]) -> None:
    candidates = [candidate(wer, speed) for wer, speed in rows]
    fit = [(-speed, wer, i) for i, (wer, speed) in enumerate(rows) if wer <= 0.2 and speed is not None]
    preference = parse_preference("wer<=0.2, fastest, best wer")
    if fit:
        assert choose(candidates, preference) == min(fit)[2]
    else:
        with pytest.raises(QualityGateError, match="none of"):
            choose(candidates, preference)


def test_no_candidate_names_the_nearest_value() -> None:
    with pytest.raises(QualityGateError, match=r"the lowest wer is 0\.25"):
        choose([candidate(0.25), candidate(0.4)], parse_preference("wer<=0.2, fastest"))


@pytest.mark.parametrize("relation", ["<=", "<", ">=", ">"])
@given(st.floats(-2, 2), st.floats(-2, 2))
def test_relations_are_those_of_numbers(relation: str, value: float, bound: float) -> None:
    expected = {"<=": value <= bound, "<": value < bound, ">=": value >= bound, ">": value > bound}[relation]
    assert Constraint("wer", relation, bound).holds(value) == expected
    assert not Constraint("wer", relation, bound).holds(None)


def test_a_gate_judges_by_the_worse_end_of_the_interval() -> None:
    system = {"wer_corpus": 0.2, "wer_ci95": [0.15, 0.26], "failure_rate": 0.0, "failure_rate_ci95": None}
    system |= {"parameters": 10}
    close, wide, at_least, few, size = check_gate(
        parse_gate("wer<=0.25, wer<=0.26, wer>=0.15, failure_rate<=0.5, parameters<=10"), system
    )
    assert (close.passed, wide.passed, at_least.passed, few.passed, size.passed) == (False, True, True, False, True)
    assert str(close) == "wer<=0.25: not passed (wer is 0.2, with 95 % confidence no worse than 0.26)"
    assert "too few utterances" in str(few)
    assert "not measured" in str(check_gate(parse_gate("memory<=5"), system)[0])


def test_every_objective_can_be_asked_for() -> None:
    for name in OBJECTIVES:
        assert parse_preference(f"best {name}").order == (name,)


@pytest.mark.parametrize(
    ("interval", "passed"), [({"rtf_ci95": [0.1, 0.3]}, False), ({"rtf_ci95": None}, True), ({}, True)]
)
def test_speed_is_judged_by_the_worse_end_of_its_interval_where_it_has_one(
    interval: dict[str, list[float] | None], passed: bool
) -> None:
    (check,) = check_gate(parse_gate("rtf<=0.25"), {"rtf": 0.2, **interval})
    assert check.passed is passed
