import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retort.errors import DataError
from retort.evaluation.items import (
    Expected,
    ItemResult,
    complete,
    failed_item,
    read_results,
    text_sha256,
    write_results,
)
from retort.evaluation.wer import word_errors


def item(system="a", utterance="u1", text="one two", hypothesis=None, **changes):
    hypothesis = text if hypothesis is None else hypothesis
    counts = word_errors(text, hypothesis)
    row = ItemResult(
        system=system,
        id=utterance,
        speaker="ann",
        text=text,
        hypothesis=hypothesis,
        substitutions=counts.substitutions,
        deletions=counts.deletions,
        insertions=counts.insertions,
        words=counts.words,
        wer=counts.wer,
        failure=counts.wer > 0.5,
        failure_reasons=("wer",) if counts.wer > 0.5 else (),
        has_eos=True,
        duration_s=1.0,
        speaker_similarity=0.75,
        tokens=40,
        audio_path=None,
        audio_sha256="0" * 64,
        text_sha256=text_sha256(text),
        recogniser="asr",
        speaker_encoder="sv",
    )
    return dataclasses.replace(row, **changes)


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=30), st.one_of(st.none(), st.floats(-1, 1)))
def test_rows_survive_the_file(tmp_path_factory, text, similarity):
    path = tmp_path_factory.mktemp("results") / "results.jsonl"
    rows = [item(text=text, hypothesis=text, speaker_similarity=similarity), failed_item("b", Expected("u1", text))]
    write_results(path, rows)
    assert read_results(path) == rows


def test_missing_utterances_become_failures_in_order():
    expected = [Expected("u1", "one two"), Expected("u2", "three"), Expected("u3", "four five")]
    rows = complete([item(utterance="u3", text="four five"), item(utterance="u1")], ["a", "b"], expected)
    assert [(row.system, row.id) for row in rows] == [(s, u) for s in "ab" for u in ("u1", "u2", "u3")]
    missing = rows[1]
    assert missing.failure
    assert missing.failure_reasons == ("missing",)
    assert (missing.wer, missing.deletions, missing.words) == (1.0, 1, 1)
    assert [row.failure for row in rows] == [False, True, False, True, True, True]


def test_what_one_system_said_is_expected_of_all():
    rows = complete([item("a", "u1"), item("b", "u2")], ["a", "b"])
    assert [(row.system, row.id, row.failure) for row in rows] == [
        ("a", "u1", False),
        ("a", "u2", True),
        ("b", "u1", True),
        ("b", "u2", False),
    ]


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([item(), item()], "'u1' appears twice"),
        ([item(utterance="u9")], "'u9' is not in the evaluation set"),
        ([item(text="other")], "says 'other'"),
        ([item(system="c")], "belongs to the system 'c'"),
        ([item(), item("b", recogniser="other")], "different recognisers"),
        ([item(), item("b", speaker_encoder="other")], "different speaker_encoders"),
        ([item(), item("b", normaliser="other")], "different normalisers"),
    ],
)
def test_rows_that_do_not_belong_together_are_refused(rows, complaint):
    with pytest.raises(DataError, match=complaint):
        complete(rows, ["a", "b"], [Expected("u1", "one two")])


def test_an_evaluation_of_nothing_is_refused(tmp_path):
    with pytest.raises(DataError, match="no utterances"):
        complete([], ["a"])
    with pytest.raises(DataError, match="twice"):
        complete([], ["a"], [Expected("u1", "one"), Expected("u1", "one")])
    with pytest.raises(DataError, match="no results to write"):
        write_results(tmp_path / "results.jsonl", [])
    assert not (tmp_path / "results.jsonl").exists()


def test_damaged_files_are_refused_with_the_line(tmp_path):
    path = tmp_path / "results.jsonl"
    write_results(path, [item(), item(utterance="u2")])
    whole = path.read_text()
    path.write_text(whole[:-20])
    with pytest.raises(DataError, match="line 2"):
        read_results(path)
    path.write_text(json.dumps({**json.loads(whole.splitlines()[0]), "wre": 1}) + "\n")
    with pytest.raises(DataError, match="wre"):
        read_results(path)
    path.write_text("\n")
    with pytest.raises(DataError, match="holds no results"):
        read_results(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_results(tmp_path / "nowhere.jsonl")
