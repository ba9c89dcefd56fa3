import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retort.errors import DataError
from retort.text.tokenizer import ENGLISH_CHARACTERS, IPA_CHARACTERS, NULL, PAD, UNK, CharacterTokenizer


@pytest.mark.parametrize("alphabet", [ENGLISH_CHARACTERS, IPA_CHARACTERS])
def test_every_text_of_the_alphabet_comes_back(alphabet):
    tokenizer = CharacterTokenizer(alphabet)
    ids = tokenizer.encode(alphabet)
    assert tokenizer.decode(ids) == alphabet
    assert sorted(ids) == list(range(3, tokenizer.vocabulary_size))


@given(st.text())
def test_no_text_makes_a_reserved_id_except_unknown(text):
    tokenizer = CharacterTokenizer(ENGLISH_CHARACTERS)
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert PAD not in ids
    assert NULL not in ids
    assert all(UNK <= index < tokenizer.vocabulary_size for index in ids)


def test_accents_fall_back_to_their_letter_and_strangers_are_unknown():
    tokenizer = CharacterTokenizer(ENGLISH_CHARACTERS)
    assert tokenizer.decode(tokenizer.encode("naïve ж")) == "naive �"
    assert tokenizer.decode([PAD, NULL, *tokenizer.encode("a"), PAD]) == "a"


def test_the_ids_of_the_shipped_alphabets_never_move():
    assert CharacterTokenizer(ENGLISH_CHARACTERS).encode(" abz-") == [3, 15, 16, 40, 14]
    assert CharacterTokenizer(ENGLISH_CHARACTERS).fingerprint() == "93a91d27af02b79d"
    assert CharacterTokenizer(IPA_CHARACTERS).fingerprint() == "4e9a1ce12406d28d"


def test_json_keeps_everything_and_the_fingerprint_tells_alphabets_apart():
    one = CharacterTokenizer(string.ascii_lowercase)
    again = CharacterTokenizer.from_json(one.to_json())
    assert again.alphabet == one.alphabet
    assert again.fingerprint() == one.fingerprint() != CharacterTokenizer(string.ascii_lowercase[::-1]).fingerprint()


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"alphabet": "ab"}', '{"alphabet": "ab", "kind": "characters", "num_reserved": 4}']
)
def test_a_foreign_file_is_refused(text):
    with pytest.raises(DataError, match="the tokenizer"):
        CharacterTokenizer.from_json(text)


def test_bad_alphabets_and_ids_are_refused():
    for alphabet in ("", "aa"):
        with pytest.raises(DataError, match="alphabet"):
            CharacterTokenizer(alphabet)
    with pytest.raises(DataError, match="id 5 is outside the vocabulary of 5"):
        CharacterTokenizer("ab").decode([5])
