"""Markdown, as chat models write it, to plain text: the marks go, what they stand around stays."""

import itertools
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

# Without one of these a text is what it looks like, but for its paragraphs.
_MARKED = re.compile(
    r"[*_`\[\]~|\\]|^\s{0,3}(?:#{1,6}\s|>[>\sA-Za-z]|[-+]\s|\d{1,9}[.)]\s|-{3,}|={3,})|&#?\w+;|<[/!a-zA-Z]", re.M
)
_PARAGRAPHS = re.compile(r"\n[^\S\n]*\n\s*|\u2029")
_NEW_LINES = re.compile(r"\r\n?")
_TAGS = re.compile(r"</?[a-zA-Z][a-zA-Z0-9-]{0,30}(?:\s[^<>=]{0,60}=[^<>]{0,500})?\s?/?>|<!--[^<>]{0,1000}-->")
# Between digits a star multiplies, and emphasises nothing; an underscore in a word joins.
_TIMES = re.compile(r"(?<=\d)[^\S\n]?\*[^\S\n]?(?=\d)")
_ENDED = (*".!?:;,…。！？؟۔।", "—")  # noqa: RUF001 - marks of other scripts are meant
_CLOSING = "\"'”’)]»"  # noqa: RUF001 - closing quotes are meant


def plain_text(text: str) -> str:
    """Return ``text`` without Markdown, on one line; a block that others follow ends with a mark, so that one pauses.

    Links keep their text and pictures their description; code is read as it stands.
    """
    text = _NEW_LINES.sub("\n", text)
    is_marked = _MARKED.search(text) is not None
    blocks = [" ".join(block.split()) for block in (_blocks(text) if is_marked else _PARAGRAPHS.split(text))]
    blocks = [block for block in blocks if block]
    ended = [
        # What goes on in small letters is a line that was broken, not a paragraph.
        block if _is_ended(block) or (not is_marked and following[0].islower()) else f"{block}."
        for block, following in itertools.pairwise(blocks)
    ]
    return " ".join([*ended, *blocks[-1:]])


def _is_ended(block: str) -> bool:
    return block.rstrip(_CLOSING).endswith(_ENDED)


def _blocks(text: str) -> Iterator[str]:
    number = ""
    for block in _parser().parse(_TIMES.sub(" times ", text)):
        match block.type:
            case "list_item_open" if block.info:
                number = f"{block.info}. "
            case "inline":
                yield number + _TAGS.sub(" ", "".join(_inline(block.children or [])))
                number = ""
            case "fence" | "code_block":
                # The word after the fence names a language, unless it is all there is.
                yield block.content if block.content.strip() else block.info
            case "list_item_close":
                yield number
                number = ""


def _inline(tokens: list[Any]) -> Iterator[str]:
    for token in tokens:
        match token.type:
            case "text" | "code_inline":
                yield token.content
            case "softbreak" | "hardbreak":
                yield " "
            case "image":
                yield f" {token.content} "


@cache
def _parser() -> Any:
    from markdown_it import MarkdownIt

    # Tags are text here: what looks like one, as "a <b and c> d", may be none. Line starts are no code.
    return MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"]).disable(["code", "html_block"])
