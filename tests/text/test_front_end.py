# ruff: noqa: RUF001
import json

import pytest

from retort.config import validate
from retort.errors import ConfigError, DataError
from retort.run_config import PrepareConfig
from retort.text.front_end import (
    CharactersConfig,
    PhonemesConfig,
    build_text_front_end,
    open_text_front_end,
)
from retort.text.tokenizer import ENGLISH_CHARACTERS, NULL, PAD, UNK

PREPARE = {
    "job": "prepare",
    "output": "o",
    "corpus": {"kind": "digits", "num_strings": 9},
    "codec": {"kind": "mel_rvq"},
}
CONFIGS = [CharactersConfig(kind="characters"), PhonemesConfig(kind="phonemes")]


@pytest.mark.parametrize("config", CONFIGS)
def test_saved_and_opened_it_is_the_same(config, tmp_path):
    front_end = build_text_front_end(config)
    front_end.save(tmp_path / "model")
    opened = open_text_front_end(tmp_path / "model")
    text = "Dr. Who (no. 11) didn't pay $3.50 — why?"
    assert opened.encode(text) == front_end.encode(text)
    assert opened.fingerprint() == front_end.fingerprint()
    assert opened.config == config
    assert opened.vocabulary_size == front_end.vocabulary_size


def test_every_choice_changes_the_fingerprint():
    configs = [
        *CONFIGS,
        CharactersConfig(kind="characters", normalise=False),
        CharactersConfig(kind="characters", language="de"),
        CharactersConfig(kind="characters", alphabet="abc"),
        PhonemesConfig(kind="phonemes", voice="de"),
    ]
    assert len({build_text_front_end(config).fingerprint() for config in configs}) == len(configs)


def test_characters_are_the_normalised_text():
    front_end = build_text_front_end(CONFIGS[0])
    assert front_end.decode(front_end.encode("It's 3 O'CLOCK!")) == "it's three o'clock!"
    plain = build_text_front_end(CharactersConfig(kind="characters", normalise=False))
    assert plain.prepare(" It's\0 3\ud800\n") == "It's 3"


def test_phonemes_keep_punctuation_and_know_every_symbol():
    front_end = build_text_front_end(CONFIGS[1])
    assert front_end.prepare("Hello, world (yes)!") == "həlˈoʊ, wˈɜːld (jˈɛs)!"
    text = "The quick brown fox jumps over the lazy dog; measure thirty-three vision pages, button, uh-oh?"
    ids = front_end.encode(text)
    assert not {PAD, NULL, UNK} & set(ids)
    assert front_end.decode(ids) == front_end.prepare(text)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("text", ["", " \n", "😀", "\u200b"])
def test_nothing_to_speak_is_refused(config, text):
    with pytest.raises(DataError, match="nothing to speak"):
        build_text_front_end(config).encode(text)


def test_unknown_kinds_and_voices_are_refused():
    with pytest.raises(ConfigError, match="bpe"):
        validate({**PREPARE, "text": {"kind": "bpe"}}, PrepareConfig, where="run")
    with pytest.raises(ConfigError, match="no voice 'nowhere'"):
        build_text_front_end(PhonemesConfig(kind="phonemes", voice="nowhere"))


def test_a_front_end_that_would_give_other_ids_is_refused_with_both_sides(tmp_path):
    front_end = build_text_front_end(CONFIGS[1])
    front_end.save(tmp_path)
    path = tmp_path / "text_front_end.json"
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({**tree, "phonemizer": "espeak-ng 1.50", "fingerprint": "0123456789abcdef"}))
    with pytest.raises(DataError, match=rf"0123456789abcdef .*'espeak-ng 1\.50'.*{front_end.fingerprint()}"):
        open_text_front_end(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"config": {"kind": "bpe"}}'])
def test_a_damaged_file_is_named(text, tmp_path):
    (tmp_path / "text_front_end.json").write_text(text)
    with pytest.raises(DataError, match=r"text_front_end\.json: not a text front-end"):
        open_text_front_end(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        open_text_front_end(tmp_path)


# As it was written by version 1, with the ids that it gave.
_OF_VERSION_1 = {
    "config": {"kind": "characters", "language": "en", "normalise": True, "alphabet": ENGLISH_CHARACTERS},
    "normaliser_version": 1,
    "phonemizer": "",
    "tokenizer": {"kind": "characters", "num_reserved": 3, "alphabet": ENGLISH_CHARACTERS},
    "fingerprint": "b93211e849682691",
}
_IDS_OF_VERSION_1 = [
    18, 29, 17, 34, 29, 32, 3, 37, 22, 29, 5, 3, 28, 29, 4, 3, 19, 26, 19, 36, 19, 28, 3, 14, 3, 34, 22, 32, 19, 19, 3,
    30, 29, 23, 28, 34, 3, 20, 23, 36, 19, 3, 18, 29, 26, 26, 15, 32, 33, 3, 27,
]  # fmt: skip


def test_a_front_end_of_version_1_gives_the_ids_and_the_fingerprint_that_it_gave(tmp_path):
    (tmp_path / "text_front_end.json").write_text(json.dumps(_OF_VERSION_1))
    old = open_text_front_end(tmp_path)
    assert old.fingerprint() == "b93211e849682691"
    assert old.encode("Dr. Who, no. 11 – $3.5M") == _IDS_OF_VERSION_1
    # Saved again, with a student of that model, it stays of version 1.
    old.save(tmp_path / "again")
    again = open_text_front_end(tmp_path / "again")
    assert again.fingerprint() == old.fingerprint()
    assert again.encode("Dr. Who, no. 11 – $3.5M") == _IDS_OF_VERSION_1
    new = build_text_front_end(old.config)
    assert new.fingerprint() != old.fingerprint()
    assert new.encode("Dr. Who, no. 11 – $3.5M") != _IDS_OF_VERSION_1
    assert new.encode("one two three") == old.encode("one two three")


@pytest.mark.parametrize("version", [0, 3, "2", None])
def test_a_normaliser_that_is_not_here_is_named(version, tmp_path):
    (tmp_path / "text_front_end.json").write_text(json.dumps({**_OF_VERSION_1, "normaliser_version": version}))
    with pytest.raises(DataError, match=rf"version {version} of the normaliser, this installation has 1 to 2"):
        open_text_front_end(tmp_path)
