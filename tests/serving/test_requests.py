"""Bodies of requests: strict, told by field, and text that can be spoken."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retort.serving.errors import ApiError
from retort.serving.requests import SpeechRequest, clean_text, parse_speech_request, without_repeats

GOOD = {"model": "small", "input": "one two", "voice": "alice"}


def parse(body: bytes | dict[str, object], *, limit: int = 4096) -> SpeechRequest:
    return parse_speech_request(body if isinstance(body, bytes) else json.dumps(body).encode(), max_characters=limit)


def fault(body: bytes | dict[str, object], *, limit: int = 4096) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(body, limit=limit)
    assert caught.value.status == 400
    assert caught.value.body()["error"]["type"] == "invalid_request_error"
    return caught.value


def test_the_fields_of_the_openai_api_and_ours() -> None:
    request = parse(
        {
            **GOOD, "voice": {"id": "bob"}, "response_format": "wav", "speed": 2, "stream_format": "sse",
            "instructions": "gently", "seed": 7, "language": "en", "max_seconds": 3,
        }
    )  # fmt: skip
    assert (request.voice_id, request.response_format, request.speed, request.seed) == ("bob", "wav", 2.0, 7)
    plain = parse(GOOD)
    assert (plain.voice_id, plain.response_format, plain.speed, plain.stream_format) == ("alice", "mp3", 1.0, "audio")


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"speed": "1"}, "speed", "speed: Input should be a valid number, got '1'"),
        ({"speed": 0}, "speed", "greater than or equal to 0.25, got 0"),
        ({"speed": 5}, "speed", "less than or equal to 4, got 5"),
        ({"speed": True}, "speed", "valid number"),
        ({"speed": 10**400}, "speed", "less than or equal to 4"),
        ({"speed": 10**350}, "speed", "less than or equal to 4"),
        ({"speed": -(10**4000)}, "speed", "greater than or equal to 0.25"),
        ({"max_seconds": 10**400 - 1}, "max_seconds", "less than or equal to 600"),
        ({"seed": 2**63}, "seed", "less than or equal to 9223372036854775807"),
        ({"seed": 10**400}, "seed", "seed: "),
        ({"response_format": "exe"}, "response_format", "got 'exe'"),
        ({"stream_format": "tcp"}, "stream_format", "got 'tcp'"),
        ({"ref_audio": "http://169.254.169.254/"}, "ref_audio", "unknown field ref_audio"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"seed": 1.5}, "seed", "valid integer"),
        ({"voice": {"id": "a", "path": "/etc/passwd"}}, "path", "unknown field path"),
        ({"voice": 3}, "voice", "voice"),
        ({"max_seconds": 0}, "max_seconds", "greater than 0"),
        ({"input": 5}, "input", "valid string"),
    ],
)
def test_a_fault_names_its_field(change: dict[str, object], param: str, message: str) -> None:
    error = fault({**GOOD, **change})
    assert error.param == param
    assert message in error.message


@pytest.mark.parametrize("change", [{"\ud800": 1}, {"a\udfff": None}, {"voice": {"id": "alice", "\ud800": 1}}])
def test_a_key_that_is_no_text_is_refused_by_every_server(change: dict[str, object]) -> None:
    body = json.dumps({**GOOD, **change}).encode()
    for lenient in (False, True):
        with pytest.raises(ApiError, match="holds half of a surrogate pair") as caught:
            parse_speech_request(body, max_characters=10, lenient=lenient)
        assert caught.value.status == 400
        json.dumps(caught.value.body(), ensure_ascii=False).encode()


def test_a_number_longer_than_python_reads_names_its_field() -> None:
    error = fault(b'{"model": "m", "input": "one", "voice": "v", "max_seconds": ' + b"9" * 60_000 + b"}")
    assert error.param == "max_seconds"
    assert error.message == "max_seconds: Input should be less than or equal to 600, got inf"


@pytest.mark.parametrize("name", ["model", "input", "voice"])
def test_a_missing_field_is_named(name: str) -> None:
    error = fault({key: value for key, value in GOOD.items() if key != name})
    assert (error.param, error.message) == (name, f"the field {name} is missing")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is not JSON"),
        (b"[]", "must be a JSON object, got list"),
        (b'{"model": "a", "model": "b"}', "the key model is given twice"),
        (b'{"speed": NaN}', "NaN is not JSON"),
        (b'{"input": "\xff"}', "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_bodies_that_are_no_requests(body: bytes, message: str) -> None:
    assert message in fault(body).message


def test_many_keys_are_looked_at_once_each() -> None:
    """A body of the largest size must not hold up the requests beside it."""
    compared = 0

    class Name(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

    names = [f"key{number}" for number in range(500)]
    assert without_repeats([(Name(name), 0) for name in names]) == dict.fromkeys(names, 0)
    assert compared < 10 * len(names)
    many = {f"key{number}": 0 for number in range(8000)}
    assert fault({**GOOD, **many}).message == "unknown field key0"
    assert fault(json.dumps(many)[:-1].encode() + b', "key7": 1}').message == "the key key7 is given twice"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "nothing to say"), ("   \n", "nothing to say"), ("!?...", "nothing to say"),
        ("\U0001f600", "nothing to say"),
        ("x" * 11, "11 characters, at most 10"), ("a\x00b", "U+0000"), ("a\x1b[31m", "U+001B"), ("a\u202eb", "U+202E"),
        ("\u200b" * 5, "nothing to say"), ("a\ud800", "surrogate"),
    ],
)  # fmt: skip
def test_text_that_cannot_be_spoken_is_refused(text: str, message: str) -> None:
    error = fault({**GOOD, "input": text}, limit=10)
    assert error.param == "input"
    assert message in error.message


@pytest.mark.parametrize(
    "document",
    ["<speak>" + "<p>" * 64 + "one" + "</p>" * 64 + "</speak>", ' <?xml version="1.0"?>\n<SPEAK version="1">a'],
)
def test_ssml_is_refused_rather_than_read_aloud(document: str) -> None:
    error = fault({**GOOD, "input": document}, limit=1000)
    assert (error.status, error.param) == (400, "input")
    assert "SSML" in error.message
    for plain in ("a <speak> b", "<speaker> one", "one [pause:999999s] two"):
        assert parse({**GOOD, "input": plain}).input == plain


def test_composed_and_decomposed_text_are_the_same_request() -> None:
    assert parse({**GOOD, "input": "cafe\u0301"}).input == parse({**GOOD, "input": "caf\u00e9"}).input
    assert parse({**GOOD, "input": "one\u200b two"}).input == "one two"


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_no_body_is_answered_by_anything_but_a_request_or_an_error(body: bytes) -> None:
    message = ""
    try:
        parse(body)
    except ApiError as error:
        message = error.message
    assert message.isprintable()


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_cleaning_is_idempotent(text: str) -> None:
    try:
        cleaned = clean_text(text, max_characters=100)
    except ApiError:
        return
    assert clean_text(cleaned, max_characters=200) == cleaned


@pytest.mark.parametrize("unit", ["a.", "9", "@", "((((", "\u0301"])
def test_cleaning_takes_linear_time(unit: str) -> None:
    def seconds(length: int) -> float:
        text = "a" + unit * (length // len(unit))
        best = float("inf")
        for _ in range(5):
            begin = time.thread_time()  # not the wall's: others may use the machine
            clean_text(text, max_characters=10**7)
            best = min(best, time.thread_time() - begin)
        return best

    assert seconds(400_000) < 9 * seconds(100_000)


@pytest.mark.parametrize("gap", ["\x0b", "\x0c", "\x85", "\u2066", "\u2069"])
def test_breaks_and_isolates_in_a_text_are_spaces(gap: str) -> None:
    assert clean_text(f"one{gap}two", max_characters=100) == "one two"
