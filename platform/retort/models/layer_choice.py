"""Which of a teacher's layers stay: what `retort prune` decides, and a student starts from."""

from pathlib import Path
from typing import Literal

from retort.config import Config, read_record
from retort.errors import ConfigError, DataError
from retort.store.results import result_of

LAYERS_FILE = "layers.json"
Criterion = Literal["wer", "block_influence", "kl", "stride", "random"]


class LayerChoice(Config):
    """``layers.json``: which layers of a teacher stay, by criterion and by their number."""

    teacher_fingerprint: str
    num_layers: int
    """Of the teacher."""
    criterion: Criterion
    """The one that the job was asked for, with the number of layers that it was asked for."""
    num_kept: int
    kept: dict[Criterion, dict[int, tuple[int, ...]]]
    recogniser: str
    """What the word error rates were measured with."""

    def layers(self, criterion: Criterion | None = None, num_kept: int | None = None) -> tuple[int, ...]:
        """The layers that stay; by default those that the job was asked for.

        Raises:
            ConfigError: there is no choice of so many layers.
        """
        by_count = self.kept.get(criterion or self.criterion, {})
        count = num_kept or self.num_kept
        if count not in by_count:
            raise ConfigError(
                f"the pruning holds no choice of {count} layers by {criterion or self.criterion}; "
                f"it has {', '.join(map(str, sorted(by_count)))}"
            )
        return by_count[count]


def read_choice(folder: Path) -> LayerChoice:
    """The choice of layers that `retort prune` wrote.

    Raises:
        DataError: the folder holds none.
    """
    path = result_of(folder) / LAYERS_FILE
    if not path.is_file():
        raise DataError(f"{folder} has no {LAYERS_FILE}: not the output of `retort prune`; correct student.layers")
    return read_record(path, LayerChoice, cure="run `retort prune` again")
