import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retort.config import validate
from retort.data import english_words
from retort.data.english import (
    EnglishTexts,
    article,
    compared,
    english_texts,
    past,
    plural,
    progressive,
    third_person,
    vocabulary,
)
from retort.errors import ConfigError


def texts(**changes):
    return english_texts(validate(changes, EnglishTexts, where="test"))


def key(text):
    return tuple(re.findall(r"[a-z]+", text.lower()))


@pytest.fixture(scope="module")
def default():
    return texts()


def of(found, split):
    return [text.text for text in found if text.split == split]


def test_thousands_of_different_words_are_said_about_equally_often(default):
    words = [word for text in of(default, "train") for word in key(text)]
    assert len(set(words)) > 4000
    counts = {word: words.count(word) for word in ("acorn", "zebra", "windows", "whistled", "carried", "boldest")}
    assert max(counts.values()) <= 15
    assert min(counts.values()) >= 1


def test_no_text_is_there_twice_and_splits_share_none(default):
    keys = [key(text.text) for text in default]
    assert len(set(keys)) == len(keys) == 2800
    assert [len(of(default, split)) for split in ("train", "validation", "test")] == [2500, 100, 200]


def test_held_out_sentences_have_patterns_of_their_own(default):
    """What is left of a sentence without its nouns, verbs and the like is in one split alone."""
    small = set(english_words.SMALL_WORDS.split()) | {"did", "please", "nobody", "every", "finally", "some"}

    def skeletons(split):
        sentences = [text for text in of(default, split) if set(key(text)) & small]
        return {tuple(w if w in small else "_" for w in key(text)) for text in sentences}

    first_words = {split: {text.split()[0] for text in of(default, split)} for split in ("train", "test")}
    assert {"Because", "Every", "Why", "After", "Let"} <= first_words["test"]
    assert not skeletons("train") & skeletons("test")


def test_the_seed_decides_and_a_larger_training_part_leaves_the_others_alone(default):
    again, other, larger = texts(), texts(seed=1), texts(train=2600)
    assert again == default
    assert {t.text for t in other}.isdisjoint(of(default, "test"))
    assert of(larger, "test") == of(default, "test")
    assert of(larger, "validation") == of(default, "validation")


@pytest.mark.parametrize(("fraction", "longest"), [(0.0, None), (1.0, 10)])
def test_random_sequences_are_as_many_and_as_long_as_asked_for(fraction, longest):
    found = texts(train=200, random_fraction=fraction)
    lengths = {len(text.text.split()) for text in found}
    if longest:
        assert lengths == set(range(4, longest + 1))
    else:
        starts = {text.text.split()[0] for text in found}
        assert {"The", "Did", "Please", "Nobody"} <= starts


def test_what_cannot_be_made_is_refused():
    with pytest.raises(ConfigError, match="run out; raise max_words"):
        texts(train=10_000, random_fraction=1.0, min_words=1, max_words=1)
    with pytest.raises(ConfigError, match="min_words 5 is above"):
        texts(min_words=5, max_words=4)


@pytest.mark.parametrize(
    ("function", "word", "form"),
    [
        (plural, "fox", "foxes"), (plural, "berry", "berries"), (plural, "valley", "valleys"),
        (plural, "giraffe", "giraffes"),
        (plural, "tomato", "tomatoes"), (plural, "piano", "pianos"), (third_person, "carry", "carries"),
        (third_person, "enjoy", "enjoys"), (past, "arrive", "arrived"), (past, "hurry", "hurried"),
        (past, "play", "played"),
        (progressive, "make", "making"), (progressive, "see", "seeing"), (progressive, "tie", "tying"),
        (article, "hour", "an"), (article, "uniform", "a"), (article, "unusual", "an"), (article, "used", "a"),
    ],
)  # fmt: skip
def test_regular_forms(function, word, form):
    assert function(word) == form


def test_doubled_and_compared_forms():
    assert past("chop", doubles=True) == "chopped"
    assert progressive("run", doubles=True) == "running"
    assert [compared(word, "est") for word in ("big", "large", "happy", "grey", "clean")] == [
        "biggest", "largest", "happiest", "greyest", "cleanest",
    ]  # fmt: skip


def test_lists_hold_no_word_twice_and_words_alone():
    for name in ("NOUNS", "NO_PLURAL", "VERBS", "IRREGULAR_VERBS", "ADJECTIVES", "ADVERBS", "NAMES", "PLACES"):
        words = getattr(english_words, name).split()
        assert len(words) == len(set(words)), name
        assert all(re.fullmatch(r"[A-Za-z]+(\+|/[a-z]+)?", word) for word in words), name
    assert not any(re.search(r"(.)\1\1", word) for word in vocabulary())


@given(st.sampled_from(sorted(vocabulary())))
def test_every_form_is_one_word(word):
    assert re.fullmatch(r"[A-Za-z]+", word)
