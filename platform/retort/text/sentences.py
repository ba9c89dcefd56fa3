"""Cut a long text where a speaker would breathe: models are trained on sentences, not on pages."""

import re
from collections.abc import Callable, Iterator

_OPENING = "\"'“‘([«¿¡「『"  # noqa: RUF001 - quotes are meant
_CLOSING = "\"'”’)]»」』"  # noqa: RUF001
# A word may be a whole Chinese or Japanese page: there a mark ends it without a space.
_WIDE_ENDS, _WIDE_CLAUSES = "。！？｡", "，、；："  # noqa: RUF001
_ENDS = tuple(".!?…؟۔।॥" + _WIDE_ENDS)  # noqa: RUF001
_CLAUSES = tuple(",;:—–،؛" + _WIDE_CLAUSES)  # noqa: RUF001
_PARAGRAPHS = re.compile(r"(?:\r\n?|\n)[^\S\r\n]*(?:(?:\r\n?|\n)[^\S\r\n]*)+|\u2029")
_WIDE = f"[{_WIDE_ENDS}{_WIDE_CLAUSES}]"
_WORDS = re.compile(rf"[^\s{_WIDE[1:-1]}]*{_WIDE}+[{re.escape(_CLOSING)}]*|\S+")
_LINKS = re.compile(r"\[[^\[\]]{0,300}\]\([^()\s]{0,1000}\)")
_ABBREVIATIONS = frozenset({
    "mr", "mrs", "ms", "mx", "dr", "prof", "st", "mt", "ft", "sr", "jr", "gen", "col", "lt", "sgt", "capt", "cpt",
    "maj", "cmdr", "adm", "rev", "hon", "pres", "gov", "sen", "rep", "messrs", "mme", "mlle", "hr", "fr", "sra", "srta",
    "dra", "vs", "cf", "al", "fig", "eq", "vol", "ch", "sec", "pp", "ed", "eds", "e.g", "i.e", "viz", "approx", "dept",
    "est", "inc", "corp",
})  # fmt: skip
"""After which a capital letter begins no sentence."""
_BEFORE_NUMBERS = frozenset({
    "no", "nos", "fig", "figs", "eq", "vol", "ch", "p", "pp", "sec", "art", "approx", "ca", "jan", "feb", "mar", "apr",
    "jun", "jul", "aug", "sep", "sept", "oct", "nov", "dec",
})  # fmt: skip


def split_text(text: str, max_characters: int) -> list[str]:
    """Parts of at most ``max_characters``, as few as whole sentences allow, none over the end of a paragraph.

    The parts are stretches of the text, in order and without the space around them: nothing but space is lost. A
    sentence that is too long is cut between clauses, a clause between words, a word anywhere; a link of Markdown stays
    whole if it fits, or its address would be read. Linear in the text.

    Raises:
        ValueError: ``max_characters`` is not positive.
    """
    if max_characters < 1:
        raise ValueError(f"max_characters must be positive, got {max_characters}")
    if len(text.strip()) <= max_characters:
        return [text.strip()] if text.strip() else []
    return [part for paragraph in _PARAGRAPHS.split(text) for part in _split(paragraph, max_characters, 0)]


def _split(text: str, most: int, level: int) -> list[str]:
    text = text.strip()
    if len(text) <= most:
        return [text] if text else []
    if level == len(_LEVELS):
        return [text[i : i + most] for i in range(0, len(text), most)]
    is_end, keeps_links = _LEVELS[level]
    parts: list[tuple[int, int]] = []  # stretches of the text
    for start, end in _pieces(text, is_end, keeps_links=keeps_links):
        if parts and end - parts[-1][0] <= most:
            parts[-1] = parts[-1][0], end
        else:
            parts.append((start, end))
    return [part for start, end in parts for part in _split(text[start:end], most, level + 1)]


def _pieces(text: str, is_end: Callable[[str, str], bool], *, keeps_links: bool) -> Iterator[tuple[int, int]]:
    words = list(_WORDS.finditer(text))
    links: Iterator[re.Match[str]] = _LINKS.finditer(text) if keeps_links else iter(())
    link = next(links, None)
    start = 0
    for index, word in enumerate(words):
        following = words[index + 1][0] if index + 1 < len(words) else ""
        while link is not None and link.end() <= word.end():
            link = next(links, None)
        is_inside = link is not None and link.start() < word.end()
        if not following or (not is_inside and is_end(word[0], following)):
            yield start, word.end()
            start = words[index + 1].start() if following else word.end()


def _ends_sentence(word: str, following: str) -> bool:
    bare = word.rstrip(_CLOSING)
    if not bare.endswith(_ENDS):
        return False
    if not bare.endswith(".") or bare.endswith("..") or bare != word:
        return True
    begin = following.lstrip(_OPENING)[:1]
    name = bare[:-1].lstrip(_OPENING)
    if begin.isdigit():
        return name.lower() not in _BEFORE_NUMBERS
    if begin.islower() and ("." in name or name.lower() == "etc"):
        return False
    is_initial = len(name) == 1 and name.isalpha() and name != "I"
    return not (is_initial or name.lower() in _ABBREVIATIONS)


_LEVELS: tuple[tuple[Callable[[str, str], bool], bool], ...] = (
    (_ends_sentence, True),
    (lambda word, _: word.rstrip(_CLOSING).endswith(_CLAUSES), True),
    (lambda *_: True, True),
    (lambda *_: True, False),
)
"""After which words a text may be cut (those that end a sentence, else a clause, else any), and if links stay whole."""
