import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retort.config import validate
from retort.data.splits import SplitConfig, assign_split, with_splits
from retort.data.utterance import Utterance
from retort.errors import ConfigError

_FRACTIONS = {"test_fraction": 0.1, "validation_fraction": 0.2, "seed": 3}


def _row(name, *, text="x", speaker="s", audio=None, split=None):
    return Utterance(name, text, speaker, "en", audio or name.encode(), split=split)


def test_fractions_are_kept_and_the_seed_reshuffles():
    splits = [assign_split(f"utt-{i}", **_FRACTIONS) for i in range(10_000)]
    assert splits.count("test") / 10_000 == pytest.approx(0.1, abs=0.015)
    assert splits.count("validation") / 10_000 == pytest.approx(0.2, abs=0.02)
    assert splits != [assign_split(f"utt-{i}", **{**_FRACTIONS, "seed": 4}) for i in range(10_000)]


def test_the_assignment_is_pinned():
    # A change here would move utterances between the splits of every prepared corpus.
    assert [assign_split(f"LJ001-{i:04d}", **_FRACTIONS) for i in range(12)] == [
        "train",
        "train",
        "train",
        "validation",
        "train",
        "validation",
        "validation",
        "train",
        "train",
        "validation",
        "test",
        "train",
    ]


@settings(max_examples=50)
@given(st.text(), st.floats(0, 0.4), st.floats(0, 0.4))
def test_a_larger_test_fraction_keeps_the_test_ids(name, small, more):
    if assign_split(name, test_fraction=small, validation_fraction=0.1, seed=0) == "test":
        assert assign_split(name, test_fraction=small + more, validation_fraction=0.1, seed=0) == "test"


def test_by_speaker_and_by_text_keep_together_what_belongs_together():
    rows = [_row(f"{s}-{i}", speaker=f"spk{s}", text=f"Text {i}") for s in range(40) for i in range(5)]
    for by, key in (("speaker", "speaker"), ("text", "text")):
        groups = {}
        for row in with_splits(rows, SplitConfig(by=by, test_fraction=0.3, validation_fraction=0.2)):
            groups.setdefault(getattr(row, key), set()).add(row.split)
        assert all(len(splits) == 1 for splits in groups.values())
        assert len(set.union(*groups.values())) > 1
    split = next(with_splits(rows, SplitConfig(by="speaker"))).split
    assert split == assign_split("speaker:spk0", test_fraction=0.05, validation_fraction=0.05, seed=0)


def test_a_split_of_the_corpus_is_kept():
    assert next(with_splits([_row("a", split="test")], SplitConfig(test_fraction=0.0))).split == "test"


def test_fractions_that_leave_nothing_are_refused():
    with pytest.raises(ConfigError, match="nothing to train on"):
        validate({"test_fraction": 0.5, "validation_fraction": 0.5}, SplitConfig, where="run")
