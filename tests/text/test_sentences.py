# ruff: noqa: RUF001
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
        ("Then I met Dr. Johnson. He left.", 24, ["Then I met Dr. Johnson.", "He left."]),
        ("We saw Mr. J. R. Smith vs. Prof. Lee. It ended.", 40, ["We saw Mr. J. R. Smith vs. Prof. Lee.", "It ended."]),
        ('"Ask (Mrs. Robinson)." So she did.', 24, ['"Ask (Mrs. Robinson)."', "So she did."]),
        ("Read No. 5 on p. 7. Then vol. 2.", 20, ["Read No. 5 on p. 7.", "Then vol. 2."]),
        ("I said no. Seven came.", 14, ["I said no.", "Seven came."]),
        ("Take some, e.g. one, etc. as you like. Go.", 40, ["Take some, e.g. one, etc. as you like.", "Go."]),
        ("It was I. Then you.", 12, ["It was I.", "Then you."]),
        ("one two. three four.", 10, ["one two.", "three", "four."]),
        ("你好。世界！好吗？", 4, ["你好。", "世界！", "好吗？"]),
        ("他说：「你好。」然后走了。", 10, ["他说：「你好。」", "然后走了。"]),
        ("第一，第二，第三。", 4, ["第一，", "第二，", "第三。"]),
        ("مرحبا؟ نعم، نعم. لا۔ كلا", 10, ["مرحبا؟", "نعم، نعم.", "لا۔ كلا"]),
        ("यह एक है। यह दो है॥ तीन", 12, ["यह एक है।", "यह दो है॥", "तीन"]),
        ("One.\n\nTwo three", 13, ["One.", "Two three"]),
        ("A title\r\n \r\nIts text.\u2029More.", 20, ["A title", "Its text.", "More."]),
        ("one two\nthree. Four", 15, ["one two\nthree.", "Four"]),
        ("Do [a. B](http://x.y). Go.", 24, ["Do [a. B](http://x.y).", "Go."]),
        ("One, two, [a, b, c](x) and, so on", 14, ["One, two,", "[a, b, c](x)", "and,", "so on"]),
        ("one two [three four](x) five", 17, ["one two", "[three four](x)", "five"]),
        ("one [two three](and/more)", 10, ["one", "[two", "three](and", "/more)"]),
        ("one [two. Three] (four)", 10, ["one [two.", "Three]", "(four)"]),
    ],
)
def test_cuts_are_where_a_speaker_would_breathe(text: str, most: int, parts: list[str]) -> None:
    assert split_text(text, most) == parts


@given(st.text(alphabet='ab .,!?"\nDr。，\u2029[]()', max_size=200), st.integers(1, 30))
def test_nothing_is_lost_and_nothing_is_too_long(text: str, most: int) -> None:
    parts = split_text(text, most)
    assert all(0 < len(part) <= most for part in parts)
    assert "".join("".join(parts).split()) == "".join(text.split())


@given(
    st.lists(st.sampled_from(["a", "b.", "c,", "[d. E](f)", "[g, h i](j/k.l)!", "Dr."]), max_size=40),
    st.integers(16, 60),
)
def test_a_link_that_fits_is_in_one_part(words: list[str], most: int) -> None:
    parts = split_text(" ".join(words), most)
    for link in ("[d. E](f)", "[g, h i](j/k.l)!"):
        assert sum(part.count(link) for part in parts) == words.count(link)


def test_a_length_that_holds_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="must be positive, got 0"):
        split_text("one", 0)


@pytest.mark.parametrize(
    "unit", ["a", "Dr. ", "\n\n", "。", '."', "a\n \n", "\n ", "x,", "A. ", "，", "[a. ", "[a. b](c) "]
)
def test_a_million_characters_are_cut_in_a_few_seconds_and_not_in_days(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    assert "".join("".join(split_text(text, 50)).split()) == "".join(text.split())
