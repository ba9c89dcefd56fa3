"""Whether the speech tokens of an outside vocabulary stand in it as our codes do: in order and without a gap.

A checkpoint says so nowhere, but its tokens have names with numbers in them, such as ``<|s_0|>``. A wrong order gives a
model that computes and says something else.
"""

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from operator import itemgetter

from retort.errors import ConfigError

_DECIMAL, _HEX = re.compile(r"[0-9]+"), re.compile(r"(?<![0-9A-Za-z])[0-9A-Fa-f]+(?![0-9A-Za-z])")
_CURE = (
    "speech tokens must have ids that follow one another in the order of the codes: correct audio.first and "
    "audio.count, or write tokenizer.json and the rows of the embedding in that order"
)


@dataclass(frozen=True)
class _Name:
    """A token's name in two parts: its number, and all the rest."""

    rest: tuple[str, str]
    number: int


def check_speech_tokens(tokens: Mapping[int, str], added: Set[str], codes: range) -> list[str]:
    """Compare the names of the speech tokens with their ids.

    Several codebooks may follow one another, each numbered anew.

    Args:
        tokens: name of each id of ``tokenizer.json``.
        added: tokens that were added to the vocabulary as a whole, as speech tokens are.
        codes: ids that are said to be speech.

    Returns:
        What should be told, though it is no fault.

    Raises:
        ConfigError: a token is out of place; the first one is named, with what belongs there.
    """
    names = [tokens.get(i) for i in codes]
    if not any(names):
        return [f"tokenizer.json names none of the ids {codes[0]} to {codes[-1]}, so their order is taken as it is"]
    if names[0] is None or not re.search(r"\d", names[0]):
        numbered = next((name for name in names if name and re.search(r"\d", name) and name in added), None)
        if numbered is not None and names[0] not in added:
            raise ConfigError(f"audio.first: id {codes[0]} is {names[0]!r}, no speech token like {numbered!r}; {_CURE}")
        return [
            f"the first speech token, {names[0]!r}, has no number, so that the order of the codes is taken as it is"
        ]
    faults = [fault for base in (10, 16) if (fault := _first_fault(names, codes, tokens, base)) is not None]
    if len(faults) == 2:
        raise ConfigError(f"audio: {max(faults, key=itemgetter(0))[1]}; {_CURE}")  # of the reading that goes further
    return _neighbours(names, codes, tokens)


class _Numbers:
    """Reads the number in a token's name, decimal or hexadecimal; of several, the one by which the codes count."""

    def __init__(self, names: list[str | None], base: int) -> None:
        self._digits, self._base = _DECIMAL if base == 10 else _HEX, base
        # The one that changes first counts the codes, or else the last.
        first, second = ([*self._digits.finditer(name)] if name else [] for name in names[:2])
        changed = [
            i - len(first) for i, (a, b) in enumerate(zip(first, second, strict=False)) if a.group() != b.group()
        ]
        self._place = changed[0] if len(first) == len(second) and len(changed) == 1 else -1

    def of(self, name: str | None) -> _Name | None:
        found = [*self._digits.finditer(name)] if name else []
        if name is None or len(found) < -self._place:
            return None
        number = found[self._place]
        return _Name((name[: number.start()], name[number.end() :]), int(number.group(), self._base))


def _first_fault(names: list[str | None], codes: range, tokens: Mapping[int, str], base: int) -> tuple[int, str] | None:
    numbers = _Numbers(names, base)
    first = numbers.of(names[0])
    if first is None:
        return 0, f"id {codes[0]} is {names[0]!r}, which has no number"
    book, size, begin, seen = first, 0, 0, {first.rest}
    for i, name in enumerate(names):
        wanted = _Name(book.rest, book.number + i - begin)
        found = numbers.of(name)
        if found == wanted:
            continue
        is_next_book = found is not None and found.rest not in seen and found.number == first.number
        if found is not None and is_next_book and size in (0, i - begin):
            book, size, begin = found, i - begin, i
            seen.add(found.rest)
            continue
        places = ((at, other) for at, other in tokens.items() if numbers.of(other) == wanted)
        at, other = next(places, (None, f"{wanted.rest[0]}{wanted.number}{wanted.rest[1]}"))
        where = "which the vocabulary does not have" if at is None else f"which has the id {at}"
        stands = "no token" if name is None else repr(name)
        return i, f"code {i} is id {codes[i]}, where {stands} stands instead of {other!r}, {where}"
    if size and len(names) - begin != size:
        return begin, f"{len(codes)} codes are no whole number of codebooks, the first has {size}"
    return None


def _neighbours(names: list[str | None], codes: range, tokens: Mapping[int, str]) -> list[str]:
    """Tokens right before and after the codes that are numbered like them: perhaps a wrong ``first`` or ``count``."""
    numbers, told = _Numbers(names, 10), []
    for edge, at, step in ((names[0], codes.start - 1, -1), (names[-1], codes.stop, 1)):
        ours = numbers.of(edge)
        if ours is not None and numbers.of(tokens.get(at)) == _Name(ours.rest, ours.number + step):
            told.append(
                f"{tokens[at]!r} (id {at}) goes on in the numbering of the codes and is none of them; see audio"
            )
    return told
