# ruff: noqa: RUF001
"""What a text says: a table of written forms, as a person reads them aloud."""

import re

import pytest

from retort.text.front_end import CharactersConfig, PhonemesConfig, build_text_front_end
from retort.text.markdown import plain_text
from retort.text.normalise import normalise, normaliser, unmarked, words


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("### Step", "step"),
        ("Step 1\n- one\n- two", "step one. one. two"),
        ("C#", "c sharp"),
        ("C++", "c plus plus"),
        ("F# minor", "f sharp minor"),
        ("[text](https://a.com)", "text"),
        ("see [the docs](http://x.y/z) now", "see the docs now"),
        ("![a cat](c.png)", "a cat"),
        ("$3.5M", "three point five million dollars"),
        ("$3.5 million", "three point five million dollars"),
        ("¥500", "five hundred yen"),
        ("¥3.5M", "three point five million yen"),
        ("₹1", "one rupee"),
        ("€5.50", "five euros and fifty cents"),
        ("5.50€", "five euros and fifty cents"),
        ("5 €", "five euros"),
        ("-$5", "minus five dollars"),
        ("$-5", "minus five dollars"),
        ("$5/month", "five dollars per month"),
        ("60 km/h", "sixty kilometers per hour"),
        ("123 Main St.", "one hundred twenty three main street."),
        ("on Main St. today", "on main street today"),
        ("He lives at 123 Main St. He left", "he lives at one hundred twenty three main street. he left"),
        ("St. Mary", "saint mary"),
        ("Mary of St. Louis", "mary of saint louis"),
        ("42nd St.", "forty second street."),
        ("5th Ave", "fifth avenue"),
        ("123 Oak Dr., Dr. Smith", "one hundred twenty three oak drive, doctor smith"),
        ("In 1990 Dr. Smith", "in nineteen ninety doctor smith"),
        ("No. 5", "number five"),
        ("no. 5", "number five"),
        ("Nos. 5 and 6", "numbers five and six"),
        ("№ 5", "number five"),
        ("№5", "number five"),
        ("10 kg", "ten kilograms"),
        ("1 kg", "one kilogram"),
        ("10kg", "ten kilograms"),
        ("0.5 kg", "zero point five kilograms"),
        ("5 m", "five meters"),
        ("5 ft", "five feet"),
        ("1 ft", "one foot"),
        ("100 g", "one hundred grams"),
        ("10 MB", "ten megabytes"),
        ("2.4 GHz", "two point four gigahertz"),
        ("72°F", "seventy two degrees fahrenheit"),
        ("20 °C", "twenty degrees celsius"),
        ("90°", "ninety degrees"),
        ("ﬁne", "fine"),
        ("ﬂow", "flow"),
        ("Ｈｅｌｌｏ １２３", "hello one hundred twenty three"),
        ("㎏", "kg"),
        ("5㎏", "five kilograms"),
        ("Ⅳ", "iv"),
        ("1/2 cup", "one half cup"),
        ("2 1/2 cups", "two and one half cups"),
        ("3/4", "three quarters"),
        ("9/11", "nine eleven"),
        ("24/7", "twenty four seven"),
        ("5-10 kg", "five to ten kilograms"),
        ("pages 5–10", "pages five to ten"),
        ("1990-1995", "nineteen ninety to nineteen ninety five"),
        ("covid-19", "covid nineteen"),
        ("2024-01-15", "january fifteenth, twenty twenty four"),
        ("at 5 p.m.", "at five p m"),
        ("5pm", "five p m"),
        ("9:30 AM", "nine thirty a m"),
        ("U.S. economy", "u s economy"),
        ("the U.S.", "the u s."),
        ("Ph.D. student", "p h d student"),
        ("Jan. 5", "january five"),
        ("5 Jan 2024", "five january twenty twenty four"),
        ("May 5", "may five"),
        ("Fig. 3", "figure three"),
        ("p. 7", "page seven"),
        ("pp. 5-7", "pages five to seven"),
        ("vol. 2", "volume two"),
        ("w/o sugar", "without sugar"),
        ("w/ milk", "with milk"),
        ("cats vs. dogs", "cats versus dogs"),
        ("#music", "hashtag music"),
        ("#1", "number one"),
        (".NET", "dot net"),
        ("https://example.com/a/b?x=1.", "example dot com slash a slash b?x equals one."),
        ("a@b.com", "a at b dot com"),
        ("example.com", "example dot com"),
        ("5'10\"", "five feet ten inches"),
        ("10x faster", "ten times faster"),
        ("2x4", "two by four"),
        ("3 × 5", "three by five"),
        ("~5", "about five"),
        ("<5", "less than five"),
        (">= 10", "at least ten"),
        ("±3", "plus or minus three"),
        ("4K video", "four k video"),
        ("10K users", "ten thousand users"),
        ("3M people", "three million people"),
        ("7B model", "seven billion model"),
        ("`code`", "code"),
        ("**bold** text", "bold text"),
        ("*a* _b_ ~~c~~", "a b c"),
        ("snake_case", "snake case"),
        ("1. First\n2. Second", "one. first. two. second"),
        ("a <b>bold</b> c", "a bold c"),
        ("a &amp; b", "a and b"),
        ("> quote", "quote"),
        ("Para one\n\nPara two", "para one. para two"),
        ("line one\nline two", "line one line two"),
        ("2*3*4", "two times three times four"),
        ("2 * 3", "two times three"),
        ("1990s", "nineteen nineties"),
        ("the 90s", "the nineties"),
        ("10s", "tens"),
        ("x³", "x three"),
        ("½ cup", "one half cup"),
        ("™", "trademark"),
        ("100%", "one hundred percent"),
        ("5‰", "five per mille"),
        ("Hello, world!", "hello, world!"),
        ("Mr. Smith", "mister smith"),
        ("Mt. Everest", "mount everest"),
        ("Apple Inc. said", "apple incorporated said"),
        ("J. R. R. Tolkien", "j. r. r. tolkien"),
        ("100 W", "one hundred watts"),
        ("5V", "five volts"),
        ("3 s", "three seconds"),
        ("e.g. this, i.e. that", "for example this, that is that"),
        ("* item", "item"),
        ("3.14", "three point one four"),
        ("1,000,000 m²", "one million square meters"),
        ("code:\n```python\nx = 1\n```\nend", "code: x equals one. end"),
        ("what?! — yes", "what?! - yes"),
        ("- five", "five"),
        ("I said no.", "i said no."),
        ("Is 5 > 3?", "is five more than three?"),
        ("v1.2.3", "v one point two point three"),
        ("Section 2.1.3", "section two point one point three"),
        ("| a | b |\n|---|---|\n| 1 | 2 |", "a. b. one. two"),
        ("$1.2bn and $3tn", "one point two billion dollars and three trillion dollars"),
        ("£3m, €2bn", "three million pounds, two billion euros"),
        ("₹500, ₩1,000 and ₽20", "five hundred rupees, one thousand won and twenty rubles"),
        ("5¢", "five cents"),
        ("1 lb, 2 lbs, 3 oz, 1 mi", "one pound, two pounds, three ounces, one mile"),
        ("ﬀ ﬃ ﬄ ﬆ", "ff ffi ffl st"),
        ("G# minor and F#", "g sharp minor and f sharp"),
        ("No. 10 Downing St., London", "number ten downing street, london"),
        ("At 10 Park Ave. and 5 Elm Blvd.", "at ten park avenue and five elm boulevard."),
        ("St. James St. is old", "saint james street is old"),
        ("see [a](b) and [c][d]\n\n[d]: http://e", "see a and c"),
        ("1. one\n2. two\n   - three", "one. one. two. two. three"),
        ("Title\n=====\n\nText", "title. text"),
        ("**Note:** *all* `of` ~~it~~", "note: all of it"),
        ("A line<br>and <!-- hidden --> more", "a line and more"),
        ("«Oui», „ja“, 「はい」", '"oui", "ja", "はい"'),
        ("3 ≥ 2 ≠ 1", "three at least two is not equal to one"),
        ("€5–€10", "five euros to ten euros"),
    ],
)
def test_golden(text: str, said: str) -> None:
    assert normalise(text) == said
    assert normalise(said) == said


def test_version_1_stays_what_models_were_trained_with() -> None:
    old, new = normaliser("en", 1), normaliser("en", 2)
    for text, said in (
        ("### Step", "number number number step"),
        ("C#", "c number"),
        ("[text](http://a.b)", "(text)(http: a.b)"),
        ("$3.5M", "three point five dollars m"),
        ("123 Main St.", "one hundred twenty three main saint"),
        ("No. 5", "no. five"),
        ("10 kg", "ten kg"),
        ("¥5 № 6 ﬁ", "five six ﬁ"),
    ):
        assert old(text) == said
        assert new(text) != said
    assert normaliser("de", 1)("# A\n\n3 Äpfel") == "# a 3 äpfel"
    with pytest.raises(ValueError, match="no version 3"):
        normaliser("en", 3)


@pytest.mark.parametrize(
    "text", ["zero", "one two three", "nine eight seven six five", "he said, at last: yes!", "it's a well-known song"]
)
def test_plain_words_are_the_same_in_both_versions(text: str) -> None:
    assert normalise(text) == words(text) == text


def test_other_languages_lose_their_marks_and_keep_their_words() -> None:
    assert unmarked("# Über\n\n**Drei** Äpfel für 3 €") == "über. drei äpfel für 3 €"
    assert normaliser("fr")("Voir [ici](http://a.b), ﬁn.") == "voir ici, fin."
    assert normaliser("zh")("# 标题\n\n内容。") == "标题. 内容。"


@pytest.mark.parametrize("language", ["en", "en-GB", "en_US", "EN", "eng"])
def test_every_tag_of_english_is_english(language: str) -> None:
    assert normaliser(language)("3 kg") == "three kilograms"


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("One\n\nTwo", "One. Two"),
        ("One!\n \nTwo", "One! Two"),
        ('He said "Yes."\n\nShe left', 'He said "Yes." She left'),
        ("a broken\n\nline", "a broken line"),
        ("One\u2029Two", "One. Two"),
        ("- a\r\n- b", "a. b"),
        ("a * b and c_d", "a * b and c_d"),
        ("if a <b and c> d", "if a <b and c> d"),
        ("1984. It was", "1984. It was"),
        ("\\*not\\*", "*not*"),
        ("", ""),
    ],
)
def test_marks_go_and_blocks_are_apart(text: str, plain: str) -> None:
    assert plain_text(text) == plain


@pytest.mark.parametrize("config", [CharactersConfig(kind="characters"), PhonemesConfig(kind="phonemes")])
def test_front_ends_say_it_so(config: CharactersConfig | PhonemesConfig) -> None:
    front_end = build_text_front_end(config)
    said = "step number five: three point five million dollars"
    assert front_end.encode("### Step No. 5: $3.5M") == front_end.encode(said)
    assert front_end.read("¥5, № 6 and ﬁn").unread == ""


@pytest.mark.parametrize(
    "unit",
    ["[", "*a ", "a_", "<a ", "`", "1,", "$1 ", "A.", "www.", "St. ", "> ", "[a](", "| a ", "&a;", "a@b.", "1 A "],
)
def test_a_page_of_marks_is_read_in_seconds_and_not_in_days(unit: str) -> None:
    assert not re.search(r"\d", normalise(unit * (40_000 // len(unit))))
