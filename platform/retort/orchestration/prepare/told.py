"""What ``retort prepare`` tells a person, beside its figures."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from retort.data.readers import understood
from retort.data.references import ReferencePlan
from retort.data.utterance import Reject
from retort.run_config import PrepareConfig, SavedText
from retort.text.front_end import PhonemesConfig
from retort.text.normalise import is_english

_SHOWN = 8
_MOST_CHARACTERS = 300


def told_corpus(plan: ReferencePlan, config: PrepareConfig) -> Iterator[str]:
    """Says what was understood of the corpus, before the work starts."""
    columns = understood(config.corpus)
    if columns is not None:
        cure = "; say `columns` if that is wrong" if columns else ""
        yield f"corpus: {columns}{cure}"
    languages = ", ".join(list(plan.languages)[:_SHOWN])
    yield (
        f"corpus: {plan.num_rows} rows of {plan.num_speakers} speakers in {languages or 'no language'}; "
        f"splits: {_counted(plan.splits)}"
    )


def told_leaks(plan: ReferencePlan) -> Iterator[str]:
    """Says what splits share, and may."""
    for kind, count, known in (
        ("speaker", plan.num_shared_speakers, "voices"),
        ("text", plan.num_shared_texts, "texts"),
        ("recording", plan.num_shared_recordings, "recordings"),
    ):
        if count:
            yield (
                f"{kind}s in more than one split: {count}; tests are of known {known} "
                f"(splits.by: {kind} keeps them apart)"
            )


def first_rejects(rejects: Iterable[Reject]) -> list[str]:
    """The first reject of each reason, the most frequent reason first, with its place and what helps."""
    firsts: dict[str, Reject] = {}
    counts: Counter[str] = Counter()
    for reject in rejects:
        counts[reject.code] += 1
        firsts.setdefault(reject.code, reject)
    return [
        f"{code} ({count}), as {firsts[code].id or 'a row'} at {firsts[code].where or 'an unknown place'}: "
        f"{firsts[code].detail[:_MOST_CHARACTERS]}"
        for code, count in counts.most_common(_SHOWN)
    ]


def told_end(figures: Mapping[str, Any], rejects: Iterable[Reject]) -> Iterator[str]:
    """Says what became of the rows."""
    yield f"kept {figures['rows_kept']} of {figures['rows_read']} rows; splits: {_counted(figures['splits'])}"
    yield from (f"rejected: {line}" for line in first_rejects(rejects))


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


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
