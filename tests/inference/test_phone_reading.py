import pytest

from retort.errors import DataError
from retort.inference.phone_reading import PhoneReader
from retort.text import espeak

WORDS = "zero one two three four five six seven eight nine"
PHONES = tuple(sorted({phone for found in espeak.phones_of_all([WORDS], voice="en-us") for phone in found}))


@pytest.fixture
def reader():
    return PhoneReader("en-us", "en", PHONES)


def test_phones_are_those_of_the_aligner_with_pauses_at_the_ends_and_between_clauses(reader):
    phones = reader.phones("one two, three.")
    assert [phone for phone in phones if phone] == list(espeak.phones_of_all(["one two, three."], voice="en-us")[0])
    assert (phones[0], phones[-1], phones.count("")) == ("", "", 3)
    assert "" in phones[5:-1]
    assert reader.phones("one. Two; three?").count("") == 4


def test_numbers_are_read_as_they_are_said(reader):
    assert reader.phones("7 9") == reader.phones("seven nine")
    assert reader.read("7").ids == reader.spoken("seven").ids


def test_ids_are_places_in_the_inventory_behind_padding_and_pause(reader):
    reading = reader.read("two")
    assert [("", *PHONES)[number - 1] for number in reading.ids] == list(reader.phones("two"))
    assert (reading.num_letters, reading.num_unread_letters, reading.unread) == (3, 0, "")


def test_a_phone_that_is_known_with_other_stress_is_read_as_that_one_and_others_are_left_out_and_told():
    known = PhoneReader("en-us", "en", ("w", "ʌ", "n"))
    assert known.phones("one") == ("", "w", "ʌ", "n", "")
    assert known.read("one two").unread == "".join(espeak.phones_of_all(["two"], voice="en-us")[0])
    assert known.phones("two") == ()


def test_texts_that_say_nothing_are_refused(reader):
    for text in ("", "...", " ! "):
        with pytest.raises(DataError, match="nothing to speak"):
            reader.spoken(text)
        assert reader.read(text).ids == ()
    strange = espeak.phones_of_all(["你好"], voice="en-us")[0]
    with pytest.raises(DataError, match="none of the letters"):
        PhoneReader("en-us", "en", (*PHONES, *strange)).spoken("你好")
