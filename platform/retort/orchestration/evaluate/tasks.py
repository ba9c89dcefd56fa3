"""What there is to judge: every system's strings in pieces, the slices of them, the long text, other temperatures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from retort.evaluation.items import ItemResult
from retort.evaluation.judge import TestStrings
from retort.evaluation.long_text import LongTextConfig, by_minute
from retort.evaluation.results import BootstrapConfig
from retort.evaluation.slices import SliceName, sum_up
from retort.evaluation.temperatures import TemperaturesConfig, at, at_best
from retort.orchestration.evaluate.pieces import Piece
from retort.run_config import EvaluateConfig, SystemConfig
from retort.run_config.evaluate import SPEAKING


@dataclass(frozen=True)
class PlainTask:
    """Some strings of one system, asked for plainly, or as a slice has it."""

    system: str
    number: int
    ids: tuple[str, ...]
    slice_name: SliceName | None = None

    def piece(self, folder: Path) -> Piece:
        """Where it is written."""
        below = folder if self.slice_name is None else folder / "slices" / self.slice_name
        return Piece(below, self.system, self.number)


@dataclass(frozen=True)
class LongTask:
    """The long text of one system."""

    system: str
    config: LongTextConfig

    def piece(self, folder: Path) -> Piece:
        """Where it is written; another text is another piece."""
        asked = f"{self.config.minutes:g}-{self.config.part_characters}"
        return Piece(folder / "long_text" / asked, self.system, 0)


@dataclass(frozen=True)
class ChoosingTask:
    """Some of the strings that choose a temperature, said by one system at one of them."""

    system: str
    config: TemperaturesConfig
    temperature: float
    number: int
    ids: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the system at this temperature."""
        return at(self.system, self.temperature)

    def piece(self, folder: Path) -> Piece:
        """Where it is written; of other strings it is another piece."""
        strings = f"{self.config.split}-{self.config.num_strings}"
        return Piece(folder / "temperatures" / strings / f"{self.temperature:g}", self.system, self.number)


@dataclass(frozen=True)
class BestTask:
    """Some strings of one system, asked for plainly at the temperature that was chosen for it."""

    system: str
    temperature: float
    number: int
    ids: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the system at its best."""
        return at_best(self.system)

    def piece(self, folder: Path) -> Piece:
        """Where it is written; at another temperature it is another piece."""
        return Piece(folder / "best" / f"{self.temperature:g}", self.system, self.number)


Task = PlainTask | LongTask | BestTask
"""What the report tells of; what was said to choose is told in the choice."""


def tasks_of(config: EvaluateConfig, strings: TestStrings) -> list[Task]:
    """Everything there is to judge, the plain strings first.

    Raises:
        DataError: a slice has no strings.
    """
    every = strings.by_length
    tasks: list[Task] = [task for system in config.systems for task in _in_pieces(config, system.name, every)]
    for name in config.slices:
        among = frozenset(strings.ids_in(name))
        ids = [i for i in every if i in among]
        tasks += [task for s in config.systems if _takes(s, name) for task in _in_pieces(config, s.name, ids, name)]
    if config.long_text is not None:
        tasks += [LongTask(s.name, config.long_text) for s in config.systems if s.kind in SPEAKING]
    return tasks


def _takes(system: SystemConfig, name: SliceName) -> bool:
    match name:
        case "no_final_punctuation":
            return system.kind in SPEAKING
        case "cut_prompt":
            return system.kind == "model"


def _in_pieces(
    config: EvaluateConfig, system: str, ids: Sequence[str], name: SliceName | None = None
) -> list[PlainTask]:
    return [PlainTask(system, number, piece, name) for number, piece in enumerate(pieces_of(ids, config.batch_size))]


def pieces_of(ids: Sequence[str], size: int) -> list[tuple[str, ...]]:
    """``ids`` in their order, ``size`` in each piece, fewer in the last."""
    return [tuple(ids[begin : begin + size]) for begin in range(0, len(ids), size)]


@dataclass(frozen=True)
class Judged:
    """Rows of everything: of the plain strings, of each slice, and of the parts of each system's long text."""

    items: Sequence[ItemResult]
    slices: dict[SliceName, list[ItemResult]]
    long_text: dict[str, list[ItemResult]]

    def summary_of_slices(self, bootstrap: BootstrapConfig) -> tuple[dict[str, object], ...]:
        """See :func:`retort.evaluation.slices.sum_up`."""
        return tuple(row for name, rows in self.slices.items() for row in sum_up(name, self.items, rows, bootstrap))

    def summary_of_long_text(self) -> tuple[dict[str, object], ...]:
        """See :func:`retort.evaluation.long_text.by_minute`."""
        return tuple(by_minute(rows) for rows in self.long_text.values())


def read_judged(config: EvaluateConfig, folder: Path, tasks: Sequence[Task]) -> Judged:
    """What was judged of all tasks, with the distances of mels to those of the reference.

    Raises:
        DataError: the reference has another length.
    """
    found = Judged([], {name: [] for name in config.slices}, {})
    plain: list[ItemResult] = []
    for task in tasks:
        match task:
            case LongTask():
                found.long_text[task.system] = task.piece(folder).read(None)
            case PlainTask(slice_name=None):
                plain += task.piece(folder).read(config.mel_reference)
            case BestTask():
                plain += task.piece(folder).read(None)
            case PlainTask(slice_name=str(name)):
                found.slices[name] += task.piece(folder).read(None)
    return Judged(plain, found.slices, found.long_text)
