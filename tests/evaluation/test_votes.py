"""Votes of listeners: what is refused, and what they say."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retort.errors import DataError
from retort.evaluation.votes import VotesFile, preferences, read_votes, sign_test

SENTENCES = [f"u{i}" for i in range(10)]
TRIALS = [(utterance, "teacher", "student") for utterance in SENTENCES]
PAIRS = [("teacher", "student")]


def vote(utterance: str, preferred: str | None, *, swapped: bool = False, **changes: Any) -> dict[str, Any]:
    sides = ["student", "teacher"] if swapped else ["teacher", "student"]
    number = 0 if preferred is None else 1 + sides.index(preferred)
    row = {"order": 1, "utterance": utterance, "first": sides[0], "second": sides[1], "vote": number}
    return row | {"seconds": 2.5, "at": "2026-11-28T12:00:00Z"} | changes


def tree(votes: Sequence[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    head = {"kind": "retort votes", "report": "abc", "listener": "ann", "began": "2026-11-28T12:00:00Z"}
    return {**head, "votes": list(votes), **changes}


def saved(folder: Path, content: Any, name: str = "votes.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def judged(*files: Sequence[dict[str, Any]]) -> dict[str, Any]:
    listeners = [VotesFile.model_validate_json(json.dumps(tree(f, listener=str(i)))) for i, f in enumerate(files)]
    (row,) = preferences(listeners, PAIRS, num_resamples=500)
    return row


def test_votes_count_for_the_system_whatever_side_it_was_on(tmp_path: Path) -> None:
    preferred = ["student"] * 6 + ["teacher"] * 2 + [None] * 2
    votes = [vote(u, p, swapped=i % 2 == 0) for i, (u, p) in enumerate(zip(SENTENCES, preferred, strict=True))]
    files = read_votes([saved(tmp_path, tree(votes))], report="abc", trials=TRIALS)
    (row,) = preferences(files, PAIRS, num_resamples=500)
    assert (row["prefer_a"], row["no_preference"], row["prefer_b"]) == (2, 2, 6)
    assert (row["votes"], row["listeners"], row["utterances"], row["tied_utterances"]) == (10, 1, 10, 2)
    assert row["share_b"] == pytest.approx(0.7)
    low, high = row["ci95"]
    assert 0.3 < low < 0.7 < high < 1.0
    assert row["sign_test_p"] == pytest.approx(2 * (1 + 8 + 28) / 2**8)


def test_a_pair_and_its_mirror_image_say_the_same() -> None:
    votes = [vote(u, "student" if i < 7 else None) for i, u in enumerate(SENTENCES)]
    file = VotesFile.model_validate_json(json.dumps(tree(votes)))
    (row,), (mirrored,) = preferences([file], PAIRS), preferences([file], [("student", "teacher")])
    assert row["share_b"] == pytest.approx(1.0 - mirrored["share_b"])
    assert row["sign_test_p"] == mirrored["sign_test_p"]


def test_more_listeners_of_the_same_sentences_are_not_more_sentences() -> None:
    votes = [vote(u, "student") for u in SENTENCES[:4]]
    row = judged(votes, votes, votes)
    assert (row["votes"], row["listeners"], row["utterances"], row["ci95"]) == (12, 3, 4, None)
    assert row["sign_test_p"] == pytest.approx(2 / 2**4)


@pytest.mark.parametrize(("preferred", "share"), [("student", 1.0), ("teacher", 0.0), (None, 0.5)])
def test_listeners_who_all_agree_are_not_certainty(preferred: str | None, share: float) -> None:
    row = judged([vote(u, preferred) for u in SENTENCES])
    low, high = row["ci95"]
    assert row["share_b"] == share
    assert low <= share <= high
    assert high - low == pytest.approx(1.0 - 0.025 ** (1 / 10))


@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 1.0]), max_size=9))
def test_the_sign_test_is_the_share_of_coin_tosses_that_are_as_lopsided(values: list[float]) -> None:
    signs = [1 if value > 0 else -1 for value in values if value]
    tosses = [abs(sum(toss)) >= abs(sum(signs)) for toss in itertools.product([1, -1], repeat=len(signs))]
    assert sign_test({str(i): value for i, value in enumerate(values)}) == pytest.approx(sum(tosses) / len(tosses))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON .*save it again on the listening page"),
        ([1], "holds a list, not votes"),
        (tree([]), "votes"),
        (tree([vote("u0", None)], report="xyz"), "votes are on the report xyz, this one is abc"),
        (tree([vote("u0", None), vote("u1", None, first="ghost")]), "votes.1: unknown system 'ghost'; .* student, tea"),
        (tree([vote("u99", None)]), "votes.0: teacher and student were not compared on 'u99'"),
        (tree([vote("u0", None, second="teacher")]), "votes.0: teacher and teacher were not compared"),
        (tree([vote("u0", None, vote=3)]), "votes.0.vote"),
        (tree([vote("u0", None, seconds=-1)]), "votes.0.seconds"),
        (tree([{**vote("u0", None), "extra": 1}]), "votes.0.extra: unknown key"),
        (tree([vote("u0", None), vote("u0", None, swapped=True)]), "votes.1: listener ann has judged 'u0'"),
        (tree([vote("u0", None)], kind="ballots"), "kind"),
    ],
)
def test_what_cannot_be_counted_is_refused_with_its_place(tmp_path: Path, content: Any, message: str) -> None:
    path = saved(tmp_path, content)
    with pytest.raises(DataError, match=message) as refused:
        read_votes([path], report="abc", trials=TRIALS)
    assert str(refused.value).startswith(f"{path}: ")


def test_the_same_listener_in_two_files_is_refused(tmp_path: Path) -> None:
    first = saved(tmp_path, tree([vote("u0", None)]))
    longer = saved(tmp_path, tree([vote("u0", None), vote("u1", "student")]), "later.json")
    with pytest.raises(DataError, match=r"later.json: votes.0: .* already, at .*votes.json: votes.0; give each"):
        read_votes([first, longer], report="abc", trials=TRIALS)
    other = saved(tmp_path, tree([vote("u0", None)], listener="bob"), "bob.json")
    assert len(read_votes([first, other], report="abc", trials=TRIALS)) == 2


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent.json: cannot be read"):
        read_votes([tmp_path / "absent.json"], report="abc", trials=TRIALS)
