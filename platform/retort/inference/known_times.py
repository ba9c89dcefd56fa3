"""Alignments that need no aligner: times that somebody else knows, as phones of the text front-end in frames.

espeak-ng tells when it says each phone. The Montreal Forced Aligner (McAuliffe et al., Interspeech 2017) writes a
TextGrid for each recording, with other phones: words are found again by their letters, and within each the phones of
the text front-end share its time as the grid's own do.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from retort.inference.aligning import Alignment, Misaligned, PlausibilityConfig, check_alignment
from retort.text.espeak import Span, Speech

_TOLERANCE = 1e-6
"""Of a frame: times are written with six digits or so."""
_SHOWN = 4


def in_frames(spans: Sequence[Span], num_frames: int, frame_rate: float, limits: PlausibilityConfig) -> Alignment:
    """Phones and pauses that fill a recording, from phones and pauses that have times.

    Args:
        spans: in order and without overlaps; what is between them, before the first and after the last, is a pause.
        num_frames: of the recording.
        frame_rate: per second; frame ``t`` is centred on ``t / frame_rate``.
        limits: of a plausible alignment.

    Raises:
        Misaligned: other_recording, too_many_phones, long_phone or squeezed_phones.
    """
    labels: list[str] = []
    frames: list[int] = []
    place = 0
    for span in [*_with_gaps(spans), None]:
        end = num_frames if span is None else min(num_frames, _first(span.end_s, frame_rate))
        label = "" if span is None else span.label
        if span is not None and _first(span.start_s, frame_rate) > num_frames:
            raise Misaligned("other_recording", f"{label} begins at {span.start_s:.2f} s, after the recording's end")
        if label:
            end = max(end, place + 1)
        if end > place:
            if labels and not label and not labels[-1]:
                frames[-1] += end - place
            else:
                labels.append(label)
                frames.append(end - place)
            place = end
    if place > num_frames:
        raise Misaligned("too_many_phones", f"{sum(map(bool, labels))} phones for {num_frames} frames")
    found = Alignment(tuple(labels), tuple(frames), frame_rate, 0.0)
    check_alignment(found, limits)
    return found


def _first(seconds: float, frame_rate: float) -> int:
    """The first frame whose centre is not before that."""
    return math.ceil(seconds * frame_rate - _TOLERANCE)


def _with_gaps(spans: Sequence[Span]) -> list[Span]:
    filled: list[Span] = []
    end_s = 0.0
    for span in spans:
        if span.start_s > end_s:
            filled.append(Span("", end_s, span.start_s))
        filled.append(span)
        end_s = span.end_s
    return filled


@dataclass(frozen=True)
class Grid:
    """What a TextGrid says of a recording: words and phones in order, empty where there is a pause."""

    words: Sequence[Span]
    phones: Sequence[Span]


def spans_of(grid: Grid, said: Speech) -> list[Span]:
    """Phones of the text front-end with the times of a grid.

    Args:
        grid: of the recording.
        said: the same text by espeak-ng, for which phones belong to which word.

    Raises:
        Misaligned: other_words, with the first place where they differ.
    """
    theirs = [word for word in grid.words if _letters(word.label)]
    ours = [word for word in said.words if _letters(word.label)]
    found: list[Span] = []
    for ours_here, theirs_here in _alike(ours, theirs):
        start_s, end_s = theirs_here[0].start_s, theirs_here[-1].end_s
        labels = [p.label for p in said.phones if p.label and ours_here[0].start_s <= p.start_s < ours_here[-1].end_s]
        known = [p for p in grid.phones if p.label and start_s <= p.start_s < end_s] or [Span("", start_s, end_s)]
        found += _shared(labels, [*(p.start_s for p in known), known[-1].end_s])
    return found


def _alike(ours: Sequence[Span], theirs: Sequence[Span]) -> list[tuple[list[Span], list[Span]]]:
    """The least groups of words that have the same letters, such as "well known" and "well-known"."""
    groups: list[tuple[list[Span], list[Span]]] = []
    left, right = list(ours), list(theirs)
    while left or right:
        mine: list[Span] = []
        other: list[Span] = []
        a = b = ""
        while not a or a != b:
            side, text, taken = (left, a, mine) if len(a) <= len(b) else (right, b, other)
            if not side:
                shown = [
                    " ".join(word.label for word in words[:_SHOWN]) for words in ((*mine, *left), (*other, *right))
                ]
                raise Misaligned("other_words", f"the text has {shown[0]!r} where the grid has {shown[1]!r}")
            taken.append(side.pop(0))
            text += _letters(taken[-1].label)
            a, b = (text, b) if taken is mine else (a, text)
        groups.append((mine, other))
    return groups


def _letters(label: str) -> str:
    return "".join(letter for letter in label.casefold() if letter.isalnum())


def _shared(labels: Sequence[str], edges_s: Sequence[float]) -> list[Span]:
    """Labels between edges: one each where they are as many, else as far along the edges as along the labels."""
    if not labels:
        return []

    def edge(number: int) -> float:
        place = number * (len(edges_s) - 1) / len(labels)
        whole = min(int(place), len(edges_s) - 2)
        return edges_s[whole] + (place - whole) * (edges_s[whole + 1] - edges_s[whole])

    return [Span(label, edge(number), edge(number + 1)) for number, label in enumerate(labels)]
