"""What a corpus holds, as numbered chunks of references: the plan of ``retort prepare``, made once by its driver.

References say where the audio is; nothing is decoded here. The plan depends on the corpus alone, not on the workers.
"""

import dataclasses
import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from retort.data.digits import DigitsConfig, digit_strings
from retort.data.leaks import Separation
from retort.data.readers import CorpusConfig, read_corpus
from retort.data.splits import SplitConfig, known_split, with_splits
from retort.data.utterance import Reject, Utterance, read_utterances, write_utterances
from retort.store.commit import write_json_atomic

ROWS_PER_CHUNK = 32
_PLAN, _REJECTS = "plan.json", "rejects.jsonl"


@dataclass(frozen=True)
class ReferencePlan:
    """How the corpus is cut.

    Attributes:
        num_rows: references, in chunks of ``ROWS_PER_CHUNK``.
        num_chunks: number of chunks.
        rejects: rows that the reader refused, by code.
        fit: chunk → places in it of the training rows that a codec is fitted on.
        digest: hash of all references.
        splits: rows by split.
        num_speakers: different speakers.
        num_shared_speakers: speakers with rows in more than one split.
        num_shared_texts: texts in more than one split.
        num_shared_recordings: recordings with rows in more than one split.
        languages: rows by language.
        leak: why the splits cannot be used, in words; None if they can.
    """

    num_rows: int
    num_chunks: int
    rejects: dict[str, int]
    fit: dict[int, list[int]]
    digest: str
    splits: dict[str, int]
    num_speakers: int
    num_shared_speakers: int
    num_shared_texts: int
    num_shared_recordings: int
    languages: dict[str, int]
    leak: str | None

    @property
    def num_rejected(self) -> int:
        """Rows that the reader refused."""
        return sum(self.rejects.values())


def plan_references(
    corpus: CorpusConfig,
    splits: SplitConfig,
    folder: Path,
    *,
    fit_utterances: int,
    on_rows: Callable[[int], None] = lambda _: None,
) -> ReferencePlan:
    """Stream the corpus into chunks of references below ``folder``, or open the plan that is there already.

    Args:
        corpus: where the rows come from.
        splits: for rows whose corpus names none.
        folder: where the plan lies.
        fit_utterances: training rows that a codec is fitted on.
        on_rows: told the number of rows read, now and then.

    Raises:
        DataError: the corpus is missing or not in its layout.
    """
    if not (folder / _PLAN).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _write_plan(corpus, splits, folder, fit_utterances, on_rows)
    tree = json.loads((folder / _PLAN).read_text())
    return ReferencePlan(**{**tree, "fit": {int(chunk): places for chunk, places in tree["fit"].items()}})


@dataclass(frozen=True)
class TrainingRows:
    """The rows of a corpus' train split, in its order; ``digest`` is the hash of all references."""

    rows: list[Utterance]
    digest: str


def training_rows(corpus: CorpusConfig, splits: SplitConfig) -> TrainingRows:
    """References of the recordings that may be trained on, held in memory; what the reader refuses is passed over.

    Raises:
        DataError: the corpus is missing or not in its layout.
    """
    rows: list[Utterance] = []
    digest = hashlib.sha256()
    for given in _rows(corpus):
        known = given if isinstance(given, Reject) else _with_known_split(given, splits)
        if isinstance(known, Reject):
            continue
        (row,) = with_splits([known], splits)
        digest.update(_identity(row))
        if row.split == "train":
            rows.append(row)
    return TrainingRows(rows, digest.hexdigest()[:16])


def forget_plan(folder: Path) -> None:
    """Have the corpus read again by the next run: its reader refused rows, which may be mended meanwhile."""
    (folder / _PLAN).unlink(missing_ok=True)


def read_references(folder: Path, chunk: int) -> list[Utterance]:
    """The references of one chunk, in order."""
    return list(read_utterances(folder / f"{chunk:05d}.parquet"))


def reader_rejects(folder: Path) -> Iterator[Reject]:
    """The rows that the reader refused, in order."""
    with (folder / _REJECTS).open(encoding="utf-8") as file:
        for line in file:
            yield Reject(**json.loads(line))


def _write_plan(
    corpus: CorpusConfig, splits: SplitConfig, folder: Path, fit_utterances: int, on_rows: Callable[[int], None]
) -> None:
    rejects: Counter[str] = Counter()
    fit: list[tuple[bytes, int]] = []  # a heap: the largest hash is on top
    chunk: list[Utterance] = []
    digest = hashlib.sha256()
    separation = Separation(corpus, splits)
    languages: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    count = 0
    with (folder / _REJECTS).open("w", encoding="utf-8") as refused:
        for given in _rows(corpus):
            if isinstance(given, Reject):
                rejects[given.code] += 1
                refused.write(json.dumps(dataclasses.asdict(given)) + "\n")
                continue
            given = _with_known_split(given, splits)
            if isinstance(given, Reject):
                rejects[given.code] += 1
                refused.write(json.dumps(dataclasses.asdict(given)) + "\n")
                continue
            (row,) = with_splits([given], splits)
            assert row.split is not None
            languages[row.language] += 1
            counts[row.split] += 1
            separation.add(row, is_given=given.split is not None)
            if row.split == "train":
                _keep_smallest(fit, row.id, count, fit_utterances)
            digest.update(_identity(row))
            chunk.append(row)
            count += 1
            if len(chunk) == ROWS_PER_CHUNK:
                write_utterances(folder / f"{count // ROWS_PER_CHUNK - 1:05d}.parquet", chunk)
                chunk = []
            if count % 1000 == 0:
                on_rows(count)
    if chunk:
        write_utterances(folder / f"{count // ROWS_PER_CHUNK:05d}.parquet", chunk)
    places: dict[int, list[int]] = {}
    for _, negated in fit:
        places.setdefault(-negated // ROWS_PER_CHUNK, []).append(-negated % ROWS_PER_CHUNK)
    plan = ReferencePlan(
        count,
        -(-count // ROWS_PER_CHUNK),
        dict(rejects),
        {number: sorted(places[number]) for number in sorted(places)},
        digest.hexdigest()[:16],
        dict(sorted(counts.items())),
        separation.num_speakers,
        separation.num_shared_speakers,
        separation.num_shared_texts,
        separation.num_shared_recordings,
        dict(languages.most_common()),
        separation.leak(),
    )
    write_json_atomic(folder / _PLAN, dataclasses.asdict(plan))


def _with_known_split(row: Utterance, config: SplitConfig) -> Utterance | Reject:
    """The row with the split that its corpus means, or why no job could name it."""
    if row.split is None:
        return row
    split = known_split(row.split, config.names)
    if split is None:
        detail = (
            f"the split {row.split!r} is none that is known; say what it means in splits.names, as "
            f"{{{row.split}: test}}"
        )
        return Reject(row.id, "unknown_split", detail, str(row.audio) if isinstance(row.audio, Path) else "")
    return dataclasses.replace(row, split=split)


def _identity(row: Utterance) -> bytes:
    audio = hashlib.sha256(row.audio).hexdigest() if isinstance(row.audio, bytes) else str(row.audio)
    fields = (row.id, row.text, row.speaker, row.language, row.split, audio, row.duration_s, row.start_s, row.end_s)
    return json.dumps(fields).encode() + b"\n"


def _keep_smallest(heap: list[tuple[bytes, int]], row_id: str, place: int, count: int) -> None:
    """Keep the places of the ``count`` rows whose ids hash lowest: a sample that no order changes."""
    digest = hashlib.blake2b(row_id.encode(), digest_size=16).digest()
    inverted = bytes(255 - byte for byte in digest)
    if len(heap) < count:
        heapq.heappush(heap, (inverted, -place))
    else:
        heapq.heappushpop(heap, (inverted, -place))


def _rows(corpus: CorpusConfig) -> Iterator[Utterance | Reject]:
    for row in _corpus(corpus):
        if isinstance(row, Utterance) and isinstance(row.audio, Path):
            # Workers run in other folders.
            row = dataclasses.replace(row, audio=row.audio.absolute())
        yield row


def _corpus(corpus: CorpusConfig) -> Iterator[Utterance | Reject]:
    if not isinstance(corpus, DigitsConfig):
        yield from read_corpus(corpus)
        return
    for string in digit_strings(corpus):
        # Spoken by the workers: a string takes a few milliseconds.
        yield Utterance(string.id, string.text, string.voice, "en", b"", split=string.split)
