"""One line per utterance and system, and the files that hold them: ``results.jsonl``.

A missing or failed item is a row, never an absence: a mean over what happened to work is not a measurement.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retort.errors import DataError
from retort.evaluation.wer import NORMALISER_ID, WordErrors, score_text
from retort.store.commit import write_bytes_atomic


@dataclass(frozen=True)
class Expected:
    """What every system was asked to say: the evaluation set's row, whether or not a system delivered it."""

    id: str
    text: str
    speaker: str | None = None


@dataclass(frozen=True)
class Heard:
    """What one recogniser heard of an utterance, and its word errors.

    Attributes:
        recogniser: its name.
        hypothesis: what was heard.
        substitutions: of the word errors, as are ``deletions`` and ``insertions``.
        deletions: see ``substitutions``.
        insertions: see ``substitutions``.
        words: reference words.
        loop: whether it runs in circles (:func:`retort.evaluation.wer.is_loop`).
    """

    recogniser: str
    hypothesis: str
    substitutions: int
    deletions: int
    insertions: int
    words: int
    loop: bool

    @property
    def word_errors(self) -> WordErrors:
        """The counts as :mod:`retort.evaluation.wer` takes them."""
        return WordErrors(self.substitutions, self.deletions, self.insertions, self.words)


@dataclass(frozen=True)
class ItemResult:
    """One utterance of one system.

    Attributes:
        system: name of the system.
        id: of the utterance in the evaluation set.
        speaker: whose voice was asked for.
        text: what should be said.
        hypothesis: what was heard, None where nothing was recognised because there was no audio.
        substitutions: of the word errors, as are ``deletions`` and ``insertions``.
        deletions: see ``substitutions``.
        insertions: see ``substitutions``.
        words: reference words.
        wer: errors per word, a fraction.
        failure: whether any rule was broken.
        failure_reasons: names of :class:`retort.evaluation.stability.Stability`, ``missing`` or ``error``.
        has_eos: whether decoding ended by itself, None where it cannot tell.
        duration_s: of the audio, None without audio.
        speaker_similarity: cosine to the voice asked for, None where it was not or could not be measured.
        tokens: codec frames generated.
        audio_path: of the audio, relative to the results, None where it was not kept.
        audio_sha256: of the samples as 16-bit PCM, None without audio.
        text_sha256: of ``text``.
        recogniser: name of the scorer of words.
        speaker_encoder: name of the scorer of voices.
        normaliser: of the text before scoring.
        error: why there is no audio, no transcript or no similarity, in words.
        values: of the metrics that only some utterances have (:data:`retort.evaluation.metrics.METRICS`), by name.
        loop: whether what was heard runs in circles (:func:`retort.evaluation.wer.is_loop`).
        heard: by each recogniser, by its label, where several listened; the first one is whose words stand above.
    """

    system: str
    id: str
    speaker: str | None
    text: str
    hypothesis: str | None
    substitutions: int
    deletions: int
    insertions: int
    words: int
    wer: float
    failure: bool
    failure_reasons: tuple[str, ...]
    has_eos: bool | None
    duration_s: float | None
    speaker_similarity: float | None
    tokens: int | None
    audio_path: str | None
    audio_sha256: str | None
    text_sha256: str
    recogniser: str | None
    speaker_encoder: str | None
    normaliser: str = NORMALISER_ID
    error: str | None = None
    values: Mapping[str, float] = dataclasses.field(default_factory=dict)
    loop: bool = False
    heard: Mapping[str, Heard] = dataclasses.field(default_factory=dict)

    @property
    def scorers(self) -> tuple[str, ...]:
        """Names of everything that judged the utterance."""
        named = (self.recogniser, *(found.recogniser for found in self.heard.values()), self.speaker_encoder)
        return tuple(dict.fromkeys(name for name in (*named, self.normaliser) if name is not None))

    def heard_by(self, label: str | None) -> Heard | None:
        """What a recogniser heard; None for ``label`` is the first one. None if it was not asked.

        Where there is no sound to hear, every recogniser hears nothing: each word is deleted.
        """
        if label is not None and label in self.heard:
            return self.heard[label]
        if label is not None and self.hypothesis is not None:
            return None
        counts = (self.substitutions, self.deletions, self.insertions, self.words)
        return Heard(self.recogniser or "", self.hypothesis or "", *counts, loop=self.loop)

    @property
    def word_errors(self) -> WordErrors:
        """The counts as :mod:`retort.evaluation.wer` takes them."""
        return WordErrors(self.substitutions, self.deletions, self.insertions, self.words)


def text_sha256(text: str) -> str:
    """SHA-256 of the text in UTF-8."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def failed_item(system: str, expected: Expected, *, reason: str = "missing", error: str | None = None) -> ItemResult:
    """The row of an utterance that a system did not deliver: every word is deleted, so its WER is 1."""
    words = len(score_text(expected.text).split())
    return ItemResult(
        system=system,
        id=expected.id,
        speaker=expected.speaker,
        text=expected.text,
        hypothesis=None,
        substitutions=0,
        deletions=words,
        insertions=0,
        words=words,
        wer=1.0 if words else 0.0,
        failure=True,
        failure_reasons=(reason,),
        has_eos=None,
        duration_s=None,
        speaker_similarity=None,
        tokens=None,
        audio_path=None,
        audio_sha256=None,
        text_sha256=text_sha256(expected.text),
        recogniser=None,
        speaker_encoder=None,
        error=error or "the system delivered no audio for this utterance",
    )


def complete(
    items: Iterable[ItemResult], systems: Sequence[str], expected: Sequence[Expected] | None = None
) -> list[ItemResult]:
    """Check that every system has exactly the expected utterances and add a failed row for each missing one.

    Returns the rows ordered by system, then by utterance as expected. Without ``expected`` the union of all systems'
    utterances is expected.

    Raises:
        DataError: there is nothing to judge; an id appears twice, was not asked for, or has another text than expected;
            or rows were scored by different recognisers, speaker encoders or normalisers, which do not compare.
    """
    rows = list(items)
    if expected is None:
        expected = list({row.id: Expected(row.id, row.text, row.speaker) for row in rows}.values())
    if not expected or not systems:
        raise DataError("no utterances or no systems: an empty evaluation would read as a perfect one")
    wanted = {entry.id: entry for entry in expected}
    if len(wanted) != len(expected):
        raise DataError(f"{len(expected) - len(wanted)} ids of the evaluation set appear twice; make them unique")
    _check_scorers(rows)
    found: dict[tuple[str, str], ItemResult] = {}
    for row in rows:
        _check_row(row, systems, wanted, found)
        found[row.system, row.id] = row
    return [
        found.get((system, entry.id)) or failed_item(system, entry) for system in systems for entry in wanted.values()
    ]


def _check_row(
    row: ItemResult,
    systems: Sequence[str],
    wanted: dict[str, Expected],
    found: dict[tuple[str, str], ItemResult],
) -> None:
    if row.system not in systems:
        raise DataError(f"row {row.id!r} belongs to the system {row.system!r}; the systems are {', '.join(systems)}")
    if row.id not in wanted:
        raise DataError(f"{row.system}: utterance {row.id!r} is not in the evaluation set; remove it")
    if (row.system, row.id) in found:
        raise DataError(f"{row.system}: utterance {row.id!r} appears twice; it would count twice")
    if row.text != wanted[row.id].text:
        raise DataError(
            f"{row.system}: utterance {row.id!r} says {row.text!r}, the evaluation set {wanted[row.id].text!r}; "
            "systems compare only on the same texts"
        )


def _check_scorers(rows: Sequence[ItemResult]) -> None:
    for field in ("recogniser", "speaker_encoder", "normaliser"):
        names = sorted({getattr(row, field) for row in rows} - {None})
        if len(names) > 1:
            raise DataError(f"rows were scored by different {field}s ({', '.join(names)}): score all by one of them")
    others = {tuple((label, row.heard[label].recogniser) for label in sorted(row.heard)) for row in rows
              if row.hypothesis is not None}  # fmt: skip
    if len(others) > 1:
        told = "; ".join(sorted(", ".join(name for _, name in found) or "none" for found in others))
        raise DataError(
            f"rows were heard by different further recognisers ({told}): score all by the same; where a run was taken "
            "up again after one was installed or removed, remove its output and run it from the beginning"
        )


def write_results(path: Path, items: Sequence[ItemResult]) -> None:
    """Write ``results.jsonl``, whole or not at all; its folder is made, as another node may not have it yet.

    Raises:
        DataError: there are no items.
    """
    if not items:
        raise DataError(f"{path}: no results to write; an empty file would read as a finished evaluation")
    lines = [json.dumps(dataclasses.asdict(item), ensure_ascii=False, allow_nan=False) + "\n" for item in items]
    write_bytes_atomic(path, "".join(lines).encode())


def read_results(path: Path) -> list[ItemResult]:
    """Read ``results.jsonl``.

    Raises:
        DataError: the file is missing, empty, or a line of it is not a result; the message names the line.
    """
    try:
        # Not splitlines: a transcript may hold the line separators of Unicode, which JSON leaves as they are.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    items = [_parse(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1) if line.strip()]
    if not items:
        raise DataError(f"{path}: holds no results; run the evaluation again")
    return items


def _parse(line: str, where: str) -> ItemResult:
    names = {field.name for field in dataclasses.fields(ItemResult)}
    try:
        tree: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error}); the file was cut short or edited") from None
    if not isinstance(tree, dict) or set(tree) != names:
        odd = sorted(set(tree) ^ names) if isinstance(tree, dict) else [type(tree).__name__]
        raise DataError(f"{where}: not a result of this version; differing fields: {', '.join(odd)}")
    heard = {label: Heard(**found) for label, found in tree["heard"].items()}
    return ItemResult(**{**tree, "failure_reasons": tuple(tree["failure_reasons"]), "heard": heard})
