"""What ``retort prepare`` tells a person, beside its figures."""

from collections.abc import Iterator, Mapping

from retort.run_config import PrepareConfig, SavedText
from retort.text.front_end import PhonemesConfig
from retort.text.normalise import is_english

_SHOWN = 8


def unread_cure(config: PrepareConfig) -> str:
    """What helps against characters that the text front-end cannot read."""
    match config.text:
        case SavedText():
            return "take the text front-end of a model of this language, or make one with another text.kind"
        case PhonemesConfig():
            return "set text.voice to a voice of this language"
    return "add them to text.alphabet, or use text.kind: phonemes with a voice of this language"


def told_languages(languages: Mapping[str, int], config: PrepareConfig, reads: str) -> Iterator[str]:
    """Says which rows are in another language than the one that the front-end ``reads``."""
    others = {name: count for name, count in languages.items() if not _same(name, reads)}
    if others:
        told = ", ".join(f"{count} in {name}" for name, count in list(others.items())[:_SHOWN])
        cure = "" if isinstance(config.text, SavedText) else "; set text.language if that is wrong"
        yield f"rows in another language: {told}; the text front-end reads {reads}{cure}"


def _same(one: str, other: str) -> bool:
    return (is_english(one) and is_english(other)) or one.replace("_", "-").lower().split("-")[0] == other.split("-")[0]


def told_unread(unread: Mapping[str, int], config: PrepareConfig) -> Iterator[str]:
    """Says which characters of the rows that were kept are unknown ids to whoever is trained on them."""
    if unread:
        told = ", ".join(f"{char} {count}" for char, count in list(unread.items())[:_SHOWN])
        yield (
            f"characters that the text front-end cannot read, in rows that were kept: {told}"
            f"{' and others' if len(unread) > _SHOWN else ''}; {unread_cure(config)}"
        )
