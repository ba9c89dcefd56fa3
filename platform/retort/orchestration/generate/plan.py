"""What ``retort generate`` asks the teacher for: chunks of real rows, and texts with speakers to sample.

The plan depends on the run file and the token set alone, so it is the same in every run and for every pool.
"""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar, assert_never

from retort.data.digits import DIGIT_WORDS
from retort.data.rows import read_lines
from retort.data.tokens import TokenSet
from retort.data.utterance import Reject
from retort.errors import DataError
from retort.evaluation.wer import score_text
from retort.run_config import CorpusTexts, DigitTexts, FileTexts, GenerateConfig, TextSource
from retort.store.commit import write_bytes_atomic

T = TypeVar("T")

BATCHES_PER_CHUNK = 4
"""Teacher-forced batches in one chunk; a sampled batch is a chunk of its own, since it takes so much longer."""
_MAX_DRAWS = 1000


@dataclass(frozen=True)
class Ask:
    """One sequence to sample."""

    id: str
    text: str
    speaker: str


@dataclass(frozen=True)
class GenerationPlan:
    """Chunks in order: first those of real rows (places in the training split), then those to sample."""

    forced: Sequence[Sequence[int]]
    sampled: Sequence[Sequence[Ask]]
    rejects: Sequence[Reject]

    @property
    def num_chunks(self) -> int:
        """Chunks of both kinds."""
        return len(self.forced) + len(self.sampled)

    def write(self, path: Path) -> None:
        """Write it for the workers."""
        tree = {
            "forced": [list(chunk) for chunk in self.forced],
            "sampled": [[asdict(ask) for ask in chunk] for chunk in self.sampled],
            "rejects": [asdict(reject) for reject in self.rejects],
        }
        write_bytes_atomic(path, json.dumps(tree).encode())

    @classmethod
    def read(cls, path: Path) -> "GenerationPlan":
        """Read what :meth:`write` wrote."""
        tree = json.loads(path.read_bytes())
        sampled = [[Ask(**ask) for ask in chunk] for chunk in tree["sampled"]]
        return cls(tree["forced"], sampled, [Reject(**reject) for reject in tree["rejects"]])


def plan_generation(config: GenerateConfig, tokens: TokenSet) -> GenerationPlan:
    """Plan a run on a token set.

    Raises:
        DataError: there are no training rows, or no text that may be sampled.
    """
    train = tokens.split("train")
    if len(train) == 0:
        raise DataError(f"{config.data} has no training rows; check the splits of `retort prepare`")
    forced: list[list[int]] = []
    if config.teacher_forced:
        # Similar lengths share a batch, which saves padding.
        ids, frames = train.column("id"), train.column("num_frames")
        order = sorted(range(len(train)), key=lambda place: (frames[place], ids[place]))
        forced = cut(order, config.batch_size * BATCHES_PER_CHUNK)
    sampled, rejects = plan_asks(config.texts, tokens, config.data, count=config.num_sampled, seed=config.seed)
    return GenerationPlan(forced, cut(sampled, config.batch_size), rejects)


def cut(items: Sequence[T], size: int) -> list[list[T]]:
    """Pieces of at most ``size`` items."""
    return [list(items[begin : begin + size]) for begin in range(0, len(items), size)]


def plan_asks(
    texts: TextSource, tokens: TokenSet, where: Path, *, count: int, seed: int
) -> tuple[list[Ask], list[Reject]]:
    """The sequences to sample, in order of the lengths of their texts, and the texts that may not be used.

    Args:
        texts: where the texts come from.
        tokens: the token set, whose speakers say them and whose held-out texts are left out.
        where: its folder, for messages.
        count: how many.
        seed: decides which text and speaker each of them gets.

    Raises:
        DataError: there is no text that may be sampled.
    """
    if count == 0:
        return [], []
    taken = {name for name in tokens.column("id") if name.startswith("sampled-")}
    if taken:
        raise DataError(f"{where} has a row {min(taken)!r}; sampled sequences get such ids, rename the row")
    train, held_out = tokens.split("train"), _held_out(tokens)
    known, rejects = _texts(texts, seed, train, held_out, where)
    speakers = train.column("speaker")
    asks = []
    for number in range(count):
        match texts:
            case DigitTexts():
                text = _digits(texts, held_out, seed, number)
            case _:
                text = known[number % len(known)]
        speaker = speakers[_hash(f"{seed} speaker {number}") % len(speakers)]
        asks.append(Ask(f"sampled-{number:07d}", text, speaker))
    asks.sort(key=lambda ask: (len(ask.text), ask.id))
    return asks, rejects


def _held_out(tokens: TokenSet) -> set[str]:
    pairs = zip(tokens.column("text"), tokens.column("split"), strict=True)
    return {score_text(text) for text, split in pairs if split != "train"}


def _texts(
    source: TextSource, seed: int, train: TokenSet, held_out: set[str], where: Path
) -> tuple[list[str], list[Reject]]:
    """The texts to take turns with, in an order that the seed decides; digit strings are drawn one by one instead."""
    rejects: list[Reject] = []
    match source:
        case CorpusTexts():
            texts = sorted(set(train.column("text")))
        case FileTexts(path=path):
            if not path.is_file():
                raise DataError(f"{path}: no such file; texts.path is a text file with one utterance a line")
            texts = []
            for number, line in read_lines(path):
                if score_text(line) in held_out:
                    place = f"{path}:{number}"
                    rejects.append(Reject(place, "held_out_text", "the token set holds this text out", place))
                else:
                    texts.append(line.strip())
            if not texts:
                raise DataError(f"{path}: {len(rejects)} texts, all of them held out by {where}; give others")
        case DigitTexts():
            texts = []
        case _:
            assert_never(source)
    texts.sort(key=lambda text: _hash(f"{seed} {text}"))
    return texts, rejects


def _digits(config: DigitTexts, held_out: set[str], seed: int, number: int) -> str:
    rng = random.Random(f"generate {seed} {number}")
    for _ in range(_MAX_DRAWS):
        text = " ".join(rng.choices(DIGIT_WORDS, k=rng.randint(config.min_digits, config.max_digits)))
        if text not in held_out:
            return text
    raise DataError(
        f"nearly every string of {config.min_digits} to {config.max_digits} digits is held out; raise texts.max_digits"
    )


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", errors="replace"), digest_size=8).digest(), "big")
