"""Names of speech tokens against their ids."""

import re
from collections.abc import Sequence

import pytest

from retort.errors import ConfigError
from retort.text.speech_tokens import check_speech_tokens

FIRST = 5


def told(names: Sequence[str | None], count: int | None = None, *, first: int = FIRST, added: bool = True) -> list[str]:
    """Names from id 5 on, behind five letters."""
    tokens = dict(enumerate("abcde"))
    tokens |= {FIRST + i: name for i, name in enumerate(names) if name is not None}
    declared = {name for name in names if name} if added else set()
    return check_speech_tokens(tokens, declared, range(first, first + (len(names) if count is None else count)))


IN_ORDER = {
    "llasa": [f"<|s_{i}|>" for i in range(12)],
    "padded": [f"<|audio_{i:04}|>" for i in range(12)],
    "not from zero": [f"<custom_token_{i}>" for i in range(10, 22)],
    "numbers before": [f"<|c1_{i}|>" for i in range(12)],
    "numbers behind": [f"[{i}:snac24]" for i in range(12)],
    "codebooks": [f"<|c{k}_{i}|>" for k in range(3) for i in range(4)],
    "codebooks in turns": [f"<|c{k}_{i}|>" for i in range(4) for k in range(3)],
    "named codebooks": [f"<{k}-{i}>" for k in ("low", "high") for i in range(6)],
    "hexadecimal": [f"<|s_{i:02x}|>" for i in range(40)],
}


@pytest.mark.parametrize("kind", IN_ORDER)
def test_speech_tokens_in_order_are_taken_without_a_word(kind: str) -> None:
    assert told(IN_ORDER[kind]) == []


@pytest.mark.parametrize("kind", IN_ORDER)
def test_two_that_change_places_are_refused_and_the_first_is_named(kind: str) -> None:
    names = IN_ORDER[kind]
    for place in (1, len(names) // 2 + 1):
        swapped = [*names]
        swapped[place], swapped[place + 1] = names[place + 1], names[place]
        with pytest.raises(ConfigError, match="correct audio") as raised:
            told(swapped)
        if "turns" not in kind:  # there the second name says by which number the codes count
            assert f"id {FIRST + place}, " in str(raised.value)
            assert repr(names[place]) in str(raised.value)


LLASA, BOOKS = IN_ORDER["llasa"], IN_ORDER["codebooks"]
FAULTY = {
    "gap": (
        [*LLASA[:4], *LLASA[5:]],
        "code 4 is id 9, where '<|s_5|>' stands instead of '<|s_4|>', which the vocabulary does not have",
    ),
    "a hole": ([*LLASA[:4], None, *LLASA[5:]], "code 4 is id 9, where no token stands"),
    "another token between": (
        [*LLASA[:4], "<|pad|>", *LLASA[4:]],
        "where '<|pad|>' stands instead of '<|s_4|>', which has the id 10",
    ),
    "twice": ([*LLASA[:4], *LLASA[3:]], "code 4 is id 9, where '<|s_3|>' stands"),
    "backwards": (LLASA[::-1], "code 1 is id 6, where '<|s_10|>' stands instead of '<|s_12|>'"),
    "as text is sorted": (
        sorted(LLASA),
        "code 1 is id 6, where '<|s_10|>' stands instead of '<|s_1|>', which has the id 8",
    ),
    "half a codebook": (BOOKS[:10], "10 codes are no whole number of codebooks, the first has 4"),
    "codebooks of two sizes": ([*BOOKS[:7], *BOOKS[8:]], "'<|c2_0|>' stands instead of '<|c1_3|>'"),
}


@pytest.mark.parametrize("kind", FAULTY)
def test_what_is_out_of_place_is_named(kind: str) -> None:
    names, message = FAULTY[kind]
    with pytest.raises(ConfigError, match=re.escape(message)):
        told(names)


def test_more_codes_than_speech_tokens_and_a_first_that_is_none_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"code 12 is id 17, where no token stands instead of '<\|s_12\|>'"):
        told(IN_ORDER["llasa"], 14)
    with pytest.raises(ConfigError, match=r"audio.first: id 3 is 'd', no speech token like '<\|s_0\|>'"):
        told(IN_ORDER["llasa"], 12, first=3)


def test_what_cannot_be_known_is_told_and_taken() -> None:
    (line,) = told(IN_ORDER["llasa"], 8)
    assert "'<|s_8|>' (id 13)" in line
    (line,) = told(IN_ORDER["llasa"], 8, first=FIRST + 4)
    assert "'<|s_3|>' (id 8)" in line
    (line,) = told([chr(0xE000 + i) for i in range(12)])
    assert "has no number" in line
    (line,) = told([None] * 12)
    assert "names none of the ids 5 to 16" in line
    (line,) = told(["x", *"123456"], added=False)
    assert "has no number" in line
