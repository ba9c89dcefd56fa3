import pytest
from hypothesis import given
from hypothesis import strategies as st

from retort.text.sentences import split_text


def test_short_texts_stay_whole() -> None:
    assert split_text("One. Two! Three?", 40) == ["One. Two! Three?"]
    assert split_text("  \n ", 40) == []


@pytest.mark.parametrize(
    ("text", "most", "parts"),
    [
        ("One two. Three four. Five.", 20, ["One two. Three four.", "Five."]),
        ('He said "No." Then he left.', 14, ['He said "No."', "Then he left."]),
        ("Slowly, and then, all at once.", 16, ["Slowly,", "and then,", "all at once."]),
        ("one two three four", 9, ["one two", "three", "four"]),
        ("unbreakable", 4, ["unbr", "eaka", "ble"]),
    ],
)
def test_cuts_are_where_a_speaker_would_breathe(text: str, most: int, parts: list[str]) -> None:
    assert split_text(text, most) == parts


@given(st.text(alphabet='ab .,!?"\n', max_size=200), st.integers(1, 30))
def test_nothing_is_lost_and_nothing_is_too_long(text: str, most: int) -> None:
    parts = split_text(text, most)
    assert all(0 < len(part) <= most for part in parts)
    assert "".join("".join(parts).split()) == "".join(text.split())


def test_a_length_that_holds_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="must be positive, got 0"):
        split_text("one", 0)
