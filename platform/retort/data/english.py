"""The embedded English texts: sentences of several patterns, and random word sequences that cover the sounds.

They mean little and are grammatical; thousands of different words are in them, each about as often as the others of
its kind. Validation and test sentences have patterns that no training sentence has, so that what is measured on them is
not a pattern that was learned by heart.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, model_validator

from retort.config import Config
from retort.data import english_words
from retort.data.splits import Split
from retort.errors import ConfigError

_VOWELS = "aeiou"
_MAX_DRAWS = 1000
_SLOT = re.compile(r"\{(\w+)\}")

# noun, plural, verb and its forms, adjective, more and most, adverb, person, city or country, number
_TRAINING = (
    "the {adjective} {noun} {past} the {plural} in {place}.",
    "{name} {past} {an_adjective} {noun} {adverb}.",
    "my {noun} and your {noun} are {adjective} and {adjective}.",
    "did {name} really {verb} those {adjective} {plural}?",
    "{number} {plural} {past} behind the {adjective} {noun}.",
    "she likes {ing} {plural}, but he {present} {plural} {adverb}.",
    "{name} and {name} {past} from {place} to {place}.",
    "when the {noun} {past}, the {plural} were {ing} {adverb}.",
    "please {verb} the {noun} before you {verb} the {adjective} {plural}!",
    "nobody in {place} {present} {an_adjective} {noun} without {an_noun}.",
    "the {noun} is {adjective}, {adjective}, and never {adjective}.",
    "if you {verb} {number} {plural}, I will {verb} the {noun}.",
    "what a {superlative} {noun}, said {name} {adverb}.",
    "there were {number} {plural} and {an_noun} near the {noun}.",
)
_HELD_OUT: Mapping[str, tuple[str, ...]] = {
    "validation": (
        "we {adverb} {past} our {plural} at the {noun}.",
        "is {name} {comparative} than the {noun} from {place}?",
        "{ing} {plural} made the {adjective} {noun} {verb}.",
        "they want to {verb} {number} {adjective} {plural}.",
    ),
    "test": (
        "because it {past} in {place}, {name} had to {verb} the {noun}.",
        "every {noun} {present} its {adjective} {plural}.",
        "why are the {plural} of {place} so {adjective} about {ing}?",
        "after {number} hours the {noun} finally {past} {an_noun}.",
        "I thought that {name} would {verb} {an_adjective} {noun} there.",
        "neither the {noun} nor the {plural} could {verb} {adverb}.",
        "{an_noun} which {present} is {comparative} than {number} {plural}.",
        "let us {verb} some {plural} while the {noun} is {adjective}.",
    ),
}


class EnglishTexts(Config):
    """Sentences and random word sequences; no text of one split is in another."""

    kind: Literal["english"] = "english"
    train: int = Field(default=2500, ge=1)
    """Training texts."""
    validation: int = Field(default=100, ge=0)
    test: int = Field(default=200, ge=0)
    random_fraction: float = Field(default=0.25, ge=0, le=1)
    """Share of each split's texts that are random words, ``min_words`` to ``max_words`` of them."""
    min_words: int = Field(default=4, ge=1)
    max_words: int = Field(default=10, ge=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_words > self.max_words:
            raise ValueError(f"min_words {self.min_words} is above max_words {self.max_words}")
        return self


@dataclass(frozen=True)
class Text:
    """What to say, and the split that it belongs to."""

    text: str
    split: Split


def english_texts(config: EnglishTexts) -> list[Text]:
    """The texts, training first; the same configuration gives the same list, and no text is there twice.

    Raises:
        ConfigError: there are not so many different texts.
    """
    seen: set[str] = set()
    found: list[Text] = []
    # The held-out ones are drawn first, so that a larger training part leaves them as they are.
    parts: tuple[tuple[Split, int, Sequence[str]], ...] = (
        ("test", config.test, _HELD_OUT["test"]),
        ("validation", config.validation, _HELD_OUT["validation"]),
        ("train", config.train, _TRAINING),
    )
    for split, count, patterns in parts:
        rng = random.Random(f"english {config.seed} {split}")
        decks = _Decks(rng)
        made: list[Text] = []
        for number in range(count):
            randoms = int((number + 1) * config.random_fraction)
            is_random = randoms > int(number * config.random_fraction)
            pattern = None if is_random else patterns[(number - randoms) % len(patterns)]
            made.append(Text(_new(pattern, decks, rng, config, seen), split))
        found = made + found
    return found


def vocabulary() -> frozenset[str]:
    """Every word form that the texts are made of, as it is written inside a sentence."""
    return frozenset(word for forms in _FORMS.values() for word in forms())


def _new(pattern: str | None, decks: "_Decks", rng: random.Random, config: EnglishTexts, seen: set[str]) -> str:
    for _ in range(_MAX_DRAWS):
        if pattern is None:
            words = [decks.draw("any") for _ in range(rng.randint(config.min_words, config.max_words))]
            text = " ".join(words) + "."
        else:
            text = _SLOT.sub(lambda slot: decks.draw(slot[1]), pattern)
        text = text[0].upper() + text[1:]
        key = " ".join(re.findall(r"[a-z]+", text.lower()))
        if key not in seen:
            seen.add(key)
            return text
    raise ConfigError(
        f"random texts of {config.min_words} to {config.max_words} words run out; raise max_words or ask for fewer"
    )


class _Decks:
    """Draws each kind of word like cards: none comes again before all others of its kind did."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._left: dict[str, list[str]] = {}

    def draw(self, kind: str) -> str:
        """A word; ``an_`` in front of a kind asks for its article, too."""
        if kind.startswith("an_"):
            word = self.draw(kind.removeprefix("an_"))
            return f"{article(word)} {word}"
        left = self._left.get(kind)
        if not left:
            left = self._left[kind] = sorted(_FORMS[kind]())
            self._rng.shuffle(left)
        return left.pop()


def article(word: str) -> str:
    """``a`` or ``an``, by the sound that the word begins with."""
    if word.startswith(("hour", "honest")):
        return "an"
    if word.startswith(("uni", "use", "usu", "euro", "one", "eu")) and not word.startswith("unin"):
        return "a"
    return "an" if word[0] in _VOWELS else "a"


def plural(noun: str) -> str:
    """The regular plural."""
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in _VOWELS:
        return noun[:-1] + "ies"
    if noun in _PLURAL_IN_ES:
        return noun + "es"
    return noun + "s"


def third_person(verb: str) -> str:
    """As ``carries`` of ``carry``."""
    return plural(verb)


def past(verb: str, *, doubles: bool = False) -> str:
    """The regular past tense."""
    if verb.endswith("e"):
        return verb + "d"
    if verb.endswith("y") and verb[-2] not in _VOWELS:
        return verb[:-1] + "ied"
    return verb + (verb[-1] if doubles else "") + "ed"


def progressive(verb: str, *, doubles: bool = False) -> str:
    """As ``making`` of ``make``."""
    if verb.endswith("ie"):
        return verb[:-2] + "ying"
    if verb.endswith("e") and not verb.endswith(("ee", "oe", "ye")):
        return verb[:-1] + "ing"
    return verb + (verb[-1] if doubles else "") + "ing"


def compared(adjective: str, ending: str) -> str:
    """The adjective with ``er`` or ``est``."""
    if adjective.endswith("e"):
        return adjective + ending[1:]
    if adjective.endswith("y") and adjective[-2] not in _VOWELS:
        return adjective[:-1] + "i" + ending
    doubles = adjective[-1] not in "wxy" and adjective[-1] not in _VOWELS and adjective[-2] in _VOWELS
    return adjective + (adjective[-1] if doubles and adjective[-3:-2] not in tuple(_VOWELS) else "") + ending


_PLURAL_IN_ES = frozenset({"potato", "tomato", "hero", "mango", "echo", "volcano", "buffalo"})
_DOUBLING_IRREGULAR = frozenset({"begin", "dig", "forget", "run", "sit", "spin", "swim", "win"})


def _nouns() -> list[str]:
    return english_words.NOUNS.split() + [
        word for word in english_words.NO_PLURAL.split() if word not in _PLURAL_ALREADY
    ]


_PLURAL_ALREADY = frozenset({"people", "police", "scissors", "trousers"})


def _plurals() -> list[str]:
    single = frozenset(english_words.NO_PLURAL.split())
    return [plural(noun) for noun in english_words.NOUNS.split() if noun not in single] + sorted(_PLURAL_ALREADY)


def _regular() -> list[tuple[str, bool]]:
    return [(verb.removesuffix("+"), verb.endswith("+")) for verb in english_words.VERBS.split()]


def _irregular() -> list[tuple[str, str]]:
    pairs = [pair.partition("/") for pair in english_words.IRREGULAR_VERBS.split()]
    return [(verb, was) for verb, _, was in pairs]


def _verbs() -> list[str]:
    return [verb for verb, _ in _regular()] + [verb for verb, _ in _irregular()]


def _pasts() -> list[str]:
    return [past(verb, doubles=doubles) for verb, doubles in _regular()] + [was for _, was in _irregular()]


def _progressives() -> list[str]:
    regular = [progressive(verb, doubles=doubles) for verb, doubles in _regular()]
    return regular + [progressive(verb, doubles=verb in _DOUBLING_IRREGULAR) for verb, _ in _irregular()]


def _short_adjectives() -> list[str]:
    """Those of one syllable, or of two that end with y: longer ones take ``more``."""
    return [
        word
        for word in english_words.ADJECTIVES.split()
        if word not in _UNCOMPARED and (_syllables(word) == 1 or (_syllables(word) == 2 and word.endswith("y")))
    ]


_UNCOMPARED = frozenset({
    "dear", "real", "ready", "single", "double", "whole", "annual", "likely", "lively",
    "civil", "equal", "final", "ideal", "idle", "legal", "local", "royal", "tragic", "upset",
    "mean", "raw", "sour", "true", "wooden", "able", "entire", "absent", "actual", "bare", "grand", "little", "loyal",
    "purple", "shy",
})  # fmt: skip


def _syllables(word: str) -> int:
    return max(1, len(re.findall(r"[aeiouy]+", word.removesuffix("e"))))


def _any() -> list[str]:
    kinds = ("noun", "plural", "verb", "past", "present", "ing", "adjective", "comparative", "superlative", "adverb")
    return sorted({word for kind in (*kinds, "name", "place", "number", "small") for word in _FORMS[kind]()})


_FORMS: Mapping[str, Callable[[], list[str]]] = {
    "noun": lambda: sorted(set(_nouns()) - _PLURAL_ALREADY),
    "plural": _plurals,
    "verb": _verbs,
    "past": _pasts,
    "present": lambda: [third_person(verb) for verb in _verbs()],
    "ing": _progressives,
    "adjective": english_words.ADJECTIVES.split,
    "comparative": lambda: [compared(word, "er") for word in _short_adjectives()],
    "superlative": lambda: [compared(word, "est") for word in _short_adjectives()],
    "adverb": english_words.ADVERBS.split,
    "name": english_words.NAMES.split,
    "place": english_words.PLACES.split,
    "number": english_words.NUMBERS.split,
    "small": english_words.SMALL_WORDS.split,
    "any": _any,
}
