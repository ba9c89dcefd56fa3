"""A text of many minutes, said as the product says one: in parts, one after the other, each a row with its figures.

What drifts is seen by the minute: words, the voice, loudness. A recogniser hears one part at a time.
"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field

from retort.audio.files import loudness_lufs
from retort.config import Config
from retort.data.tokens import TokenRow
from retort.errors import DataError, RetortError
from retort.evaluation.items import Expected, ItemResult, failed_item
from retort.evaluation.judge import Judge, System, TestStrings, as_a_file
from retort.evaluation.scoring import score_item
from retort.inference.speaker import NEVER_HEARD, Request, Sound, Speaker, Spoken, Wish, in_parts
from retort.nn.random import seed_of

BEGAN, LOUDNESS = "began_s", "loudness_lufs"
"""What the rows of parts have beside the values of others: where a part begins, and how loud it is."""


class LongTextConfig(Config):
    """A long text, made of the test strings: as sentences, one after the other, and again where they are too few."""

    minutes: float = Field(default=10.0, gt=0)
    """By the length of the recordings of these strings."""
    part_characters: int = Field(default=240, ge=1)
    """Longest text that is said in one go, as in a file of ``retort serve``."""


def text_of(strings: TestStrings, minutes: float) -> str:
    """The test strings as sentences, so many that their recordings last ``minutes``.

    Raises:
        DataError: they last no time at all.
    """
    rows = list(strings.rows.values())
    sentences, left_s = list[str](), 60.0 * minutes
    if not sum(row.num_frames for row in rows):
        raise DataError("long_text: the test strings have no frames, so that nobody knows how long they take")
    while left_s > 0:
        row = rows[len(sentences) % len(rows)]
        sentences.append(row.text if row.text[-1:] in ".!?" else f"{row.text}.")
        left_s -= row.num_frames / strings.description.frame_rate
    return " ".join(sentences)


def judge_long(judge: Judge, system: System, config: LongTextConfig) -> list[ItemResult]:
    """What a model or a service makes of the text, part by part, in one voice; failed parts are rows, too."""
    row = next(iter(judge.strings.rows.values()))
    wish = Wish(Request(text_of(judge.strings, config.minutes), row.speaker, seed_of(judge.seed, "a long text")))
    items, began_s = list[ItemResult](), 0.0
    voice_E, scorers = judge.voice(row), dataclasses.replace(judge.scorers, naturalness=())
    for number, (part, said) in enumerate(_said(judge, system, wish, row, config.part_characters)):
        expected = Expected(f"part-{number:04d}", part.request.text, row.speaker)
        values = {BEGAN: began_s}
        if isinstance(said, RetortError):
            item = failed_item(system.name, expected, reason="error", error=str(said))
        else:
            spoken = as_a_file(said)
            item = score_item(system.name, expected, spoken, scorers, voice_E=voice_E)
            began_s += spoken.samples_N.numel() / spoken.sample_rate
            loudness = loudness_lufs(torch.nan_to_num(spoken.samples_N), spoken.sample_rate)
            values |= {LOUDNESS: loudness} if math.isfinite(loudness) else {}
        items.append(dataclasses.replace(item, values={**item.values, **values}))
    return items


def _said(
    judge: Judge, system: System, wish: Wish, row: TokenRow, part_characters: int
) -> list[tuple[Wish, Spoken | RetortError]]:
    if system.service is not None:
        # A service has limits of its own, so whoever has it read a book asks part by part.
        parts = in_parts(wish, part_characters)
        return list(zip(parts, system.service.speak([part.request for part in parts]), strict=True))
    speaker = system.speaker
    assert speaker is not None
    decoding = speaker.decoding(system.decoding)
    request = dataclasses.replace(wish.request, voice=judge.strings.voice_for(row, speaker))
    wish = dataclasses.replace(wish, request=request, decoding=decoding)
    parts = in_parts(wish, part_characters, lambda text: speaker.read(text).says_something)
    speaker.prepare(decoding)
    heard_until, said = NEVER_HEARD, list[tuple[Wish, Spoken | RetortError]]()
    for part in parts:
        try:
            sounds = _one(speaker, part, heard_until)
        except RetortError as error:
            said.append((part, error))
            continue
        heard_until = sounds[-1].heard_until
        samples_N = torch.cat([sound.samples_N for sound in sounds])
        said.append((part, Spoken(samples_N, speaker.sample_rate, has_eos=sounds[-1].outcome == "said")))
    return said


def _one(speaker: Speaker, part: Wish, heard_until: float) -> list[Sound]:
    """The sounds of one part, streamed while the listener hears the one before."""
    speaker.add(part, heard_until=heard_until)
    sounds = list[Sound]()
    while speaker.num_active:
        sounds += speaker.step()
    return sounds


def by_minute(items: Sequence[ItemResult]) -> dict[str, Any]:
    """Figures of one system's long text: of all of it, and of the parts that begin in each minute.

    Word errors are capped at the words of each part; a loop of a recogniser counts no more.
    """
    minutes: dict[int, list[ItemResult]] = defaultdict(list)
    for item in items:
        minutes[int(item.values[BEGAN] // 60)].append(item)
    rows = [{"minute": minute + 1, **_figures(parts)} for minute, parts in sorted(minutes.items())]
    seconds = sum(item.duration_s or 0.0 for item in items)
    return {"system": items[0].system, "seconds": seconds, **_figures(items), "minutes": rows}


def _figures(parts: Sequence[ItemResult]) -> dict[str, Any]:
    labels = dict.fromkeys(label for part in parts for label in part.heard)
    words = sum(part.words for part in parts) or 1
    errors = {
        f"wer_capped@{label}": sum(found.word_errors.capped for part in parts if (found := part.heard_by(label)))
        for label in labels
    }
    return {
        "parts": len(parts),
        "failures": sum(part.failure for part in parts),
        "wer_capped": sum(part.word_errors.capped for part in parts) / words,
        **{name: count / words for name, count in errors.items()},
        "speaker_similarity": _mean([part.speaker_similarity for part in parts]),
        LOUDNESS: _mean([part.values.get(LOUDNESS) for part in parts]),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None
