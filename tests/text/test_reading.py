# ruff: noqa: RUF001
"""Characters that a text front-end cannot read: they are counted, and a text of nothing else is refused."""

import pytest

from retort.config import validate
from retort.errors import DataError
from retort.run_config import PrepareConfig
from retort.text.front_end import CharactersConfig, PhonemesConfig, build_text_front_end
from retort.text.tokenizer import UNK

CHARACTERS = build_text_front_end(CharactersConfig(kind="characters"))
PHONEMES = build_text_front_end(PhonemesConfig(kind="phonemes"))
FOREIGN = ["你好，世界", "привет", "مرحبا", "こんにちは", "שלום", "สวัสดี"]


@pytest.mark.parametrize("text", FOREIGN)
@pytest.mark.parametrize("front_end", [CHARACTERS, PHONEMES])
def test_a_text_of_nothing_that_can_be_read_is_refused(front_end, text):
    with pytest.raises(DataError, match=r"none of the letters of .* can be read .*language en.*trained on"):
        front_end.encode(text)
    reading = front_end.read(text)
    assert reading.num_unread_letters == reading.num_letters == sum(map(str.isalnum, text))
    assert reading.unread_fraction == 1.0
    assert not reading.says_something


@pytest.mark.parametrize("text", ["한국어", "γειά", "안녕 세상"])
def test_characters_know_their_alphabet_and_no_more(text):
    with pytest.raises(DataError, match="none of the letters"):
        CHARACTERS.encode(text)


@pytest.mark.parametrize("front_end", [CHARACTERS, PHONEMES])
def test_what_is_lost_among_what_is_read_is_told(front_end):
    reading = front_end.read("say 你好 now")
    assert reading.unread == "你好"
    assert (reading.num_letters, reading.num_unread_letters) == (8, 2)
    assert list(reading.ids) == front_end.encode("say 你好 now")
    assert front_end.read("Say it now, 3 times: café naïve!").unread == ""


def test_unread_punctuation_is_told_and_refuses_nothing():
    raw = build_text_front_end(CharactersConfig(kind="characters", normalise=False))
    reading = raw.read("¿one?。")
    assert reading.unread == "¿。"
    assert reading.num_unread_letters == 0
    assert raw.encode("¿one?。").count(UNK) == 2


@pytest.mark.parametrize(("voice", "text"), [("ru", "привет"), ("cmn", "你好"), ("de", "straße"), ("ar", "مرحبا")])
def test_a_voice_reads_its_own_script(voice, text):
    front_end = build_text_front_end(PhonemesConfig(kind="phonemes", language=voice, voice=voice))
    reading = front_end.read(text)
    assert reading.num_unread_letters == 0
    assert front_end.encode(text)


def test_an_alphabet_of_its_own_reads_what_is_in_it():
    front_end = build_text_front_end(CharactersConfig(kind="characters", language="de", alphabet=" abeorstß"))
    assert front_end.read("straße").unread == ""
    assert front_end.read("Groß, Übung").unread == "g,üung"


def _text(corpus, **text):
    tree = {"job": "prepare", "output": "o", "codec": {"kind": "mel_rvq"}, "corpus": corpus, "text": text}
    return validate(tree, PrepareConfig, where="test").text


@pytest.mark.parametrize(
    ("corpus", "text", "language", "voice"),
    [
        ({"language": "de"}, {"kind": "characters"}, "de", None),
        ({"language": "de"}, {"kind": "phonemes"}, "de", "de"),
        ({"language": "en-GB"}, {"kind": "phonemes"}, "en-GB", "en-us"),
        ({"language": "de"}, {"kind": "phonemes", "voice": "de+f2"}, "de", "de+f2"),
        ({"language": "de"}, {"kind": "characters", "language": "fr"}, "fr", None),
        ({"language": "de"}, {"kind": "phonemes", "language": "fr"}, "fr", "fr"),
        ({}, {"kind": "phonemes"}, "en", "en-us"),
    ],
)
def test_the_language_of_the_corpus_reaches_the_front_end(corpus, text, language, voice):
    config = _text({"kind": "ljspeech", "path": "x", **corpus}, **text)
    assert config.language == language
    assert getattr(config, "voice", None) == voice


def test_german_is_not_read_as_english():
    front_end = build_text_front_end(_text({"kind": "manifest", "path": "x.csv", "language": "de"}, kind="characters"))
    assert front_end.prepare("Das kostet 3 Euro & mehr") == "das kostet 3 euro & mehr"
