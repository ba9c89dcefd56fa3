"""Cut a long text where a speaker would breathe: models are trained on sentences, not on pages."""

from collections.abc import Sequence

_CLOSING = "\"'”’)]»"  # noqa: RUF001 - closing quotes are meant
_ENDS = (".!?…", ",;:—–", None)  # noqa: RUF001 - dashes are meant
"""What ends a sentence, and a clause; any word may be the last one where both leave a part too long."""


def split_text(text: str, max_characters: int) -> list[str]:
    """Parts of at most ``max_characters``, as few as whole sentences allow; joined by spaces they give the words again.

    A sentence that is too long is cut between clauses, a clause between words, a word anywhere. Linear in the text.

    Raises:
        ValueError: ``max_characters`` is not positive.
    """
    if max_characters < 1:
        raise ValueError(f"max_characters must be positive, got {max_characters}")
    return _split(text.split(), max_characters, 0)


def _split(words: Sequence[str], most: int, level: int) -> list[str]:
    whole = " ".join(words)
    if len(whole) <= most:
        return [whole] if whole else []
    if level == len(_ENDS):
        return [whole[i : i + most] for i in range(0, len(whole), most)]
    parts: list[str] = []
    for piece in _pieces(words, _ENDS[level]):
        for part in _split(piece, most, level + 1):
            if parts and len(parts[-1]) + 1 + len(part) <= most:
                parts[-1] += " " + part
            else:
                parts.append(part)
    return parts


def _pieces(words: Sequence[str], marks: str | None) -> list[list[str]]:
    pieces: list[list[str]] = [[]]
    for word in words:
        pieces[-1].append(word)
        if marks is None or word.rstrip(_CLOSING).endswith(tuple(marks)):
            pieces.append([])
    return [piece for piece in pieces if piece]
