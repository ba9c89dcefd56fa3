"""Training an aligner on recordings and their texts alone: first CTC, then its own alignments, made better in rounds.

CTC (Graves et al., ICML 2006) learns which phones there are and marks each with a peak of a frame or two; where a phone
begins it does not learn. So its best paths become labels, the frames between two peaks going to the nearer one unless
nothing is heard in them, and the network learns the labels frame by frame; its best paths, which have no peaks any
more, are the labels of the next round (Viterbi training).
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from retort.audio.mel import MelConfig
from retort.config import Config
from retort.errors import DataError
from retort.inference.aligning import Misaligned, best_path
from retort.models.aligner import PAUSE, Aligner, AlignerConfig, normalised, without_stress
from retort.training.fit import PlainOptimizer, fit
from retort.training.schedule import OptimizerConfig
from retort.training.seam import NoTeacher, StepOutput

_IGNORED = -100
_QUIET_NATS = 9.0


class TrainAlignerConfig(Config):
    """How an aligner is trained."""

    kind: Literal["train"] = "train"
    utterances: int = Field(default=600, ge=1)
    """Training rows of the corpus that it learns from, by the hash of their ids."""
    dim: int = Field(default=128, ge=1)
    flat_steps: int = Field(default=100, ge=0)
    """With all phones of a recording equally long. Without them CTC may find pauses alone for hundreds of steps."""
    ctc_steps: int = Field(default=300, ge=1)
    rounds: int = Field(default=3, ge=1)
    """Of alignment and learning from it."""
    frame_steps: int = Field(default=80, ge=1)
    """Of each round."""
    batch_size: int = Field(default=16, ge=1)
    learning_rate: float = Field(default=2e-3, gt=0)
    seed: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class SpokenPhones:
    """A recording's log-mel [T, M], and the phones that are said in it."""

    mel_TM: Tensor
    phones: tuple[str, ...]


@dataclass(frozen=True)
class AlignerBatch:
    """Recordings side by side.

    Attributes:
        mel_BTM: normalised, zero beyond the ends.
        frames_B: of each.
        classes: phones of each [S].
        labels_BT: the class of each frame, where it is known; what is beyond the ends is ignored.
    """

    mel_BTM: Tensor
    frames_B: Tensor
    classes: Sequence[Tensor]
    labels_BT: Tensor | None

    @property
    def num_valid(self) -> Tensor:
        """Frames."""
        return self.frames_B.sum()

    def to(self, device: torch.device) -> Self:
        """The same batch; aligners are small, and learn where they are."""
        del device
        return self


class AlignerObjective(nn.Module):
    """CTC where only the phones are known, cross-entropy where each frame's class is."""

    def __init__(self, student: Aligner) -> None:
        super().__init__()
        self.student = student

    def forward(self, batch: AlignerBatch, targets: None) -> StepOutput:
        """The loss in nats a frame."""
        del targets
        log_probs_BTC = self.student(batch.mel_BTM)
        if batch.labels_BT is None:
            lengths_B = torch.tensor([len(classes) for classes in batch.classes])
            total = functional.ctc_loss(
                log_probs_BTC.transpose(0, 1), torch.cat(list(batch.classes)), batch.frames_B, lengths_B,
                blank=PAUSE, reduction="sum", zero_infinity=True,
            )  # fmt: skip
            loss = total / batch.num_valid
        else:
            loss = functional.nll_loss(log_probs_BTC.flatten(0, 1), batch.labels_BT.flatten(), ignore_index=_IGNORED)
        return StepOutput(loss, {"loss": loss.detach()})


def train_aligner(
    rows: Sequence[SpokenPhones],
    config: TrainAlignerConfig,
    *,
    voice: str,
    mel: MelConfig,
    on_step: Callable[[int, int, float], None] = lambda *_: None,
) -> Aligner:
    """Train an aligner; the same rows and configuration give the same one.

    Args:
        rows: recordings; those with fewer frames than phones are left out.
        config: see there.
        voice: of espeak-ng, that gave the phones.
        mel: of the rows.
        on_step: told steps done, steps in all, and the loss.

    Raises:
        DataError: no row can be learned from.
    """
    rows = [row for row in rows if 0 < 2 * len(row.phones) <= len(row.mel_TM)]
    if not rows:
        raise DataError("no recording has phones, and frames enough for them; check the corpus and the language")
    inventory = tuple(sorted({phone for row in rows for phone in without_stress(row.phones)}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = Aligner(AlignerConfig(voice=voice, phones=inventory, mel=mel, dim=config.dim))
    trainer = _Trainer(model, rows, config, on_step)
    if config.flat_steps:
        trainer.learn(config.flat_steps, trainer.flat())
    trainer.learn(config.ctc_steps, None)
    for _ in range(config.rounds):
        trainer.learn(config.frame_steps, trainer.labels())
    return model.eval()


class _Trainer:
    """One aligner, and the rows that it learns from."""

    def __init__(
        self,
        model: Aligner,
        rows: Sequence[SpokenPhones],
        config: TrainAlignerConfig,
        on_step: Callable[[int, int, float], None],
    ) -> None:
        self.model, self.config, self.on_step, self.done = model, config, on_step, 0
        self.total = config.flat_steps + config.ctc_steps + config.rounds * config.frame_steps
        number = {phone: place for place, phone in enumerate(model.config.phones, start=PAUSE + 1)}
        rows = sorted(rows, key=lambda row: len(row.mel_TM))  # similar lengths share a batch
        self.mels = [normalised(row.mel_TM) for row in rows]
        self.quiet = [_is_quiet(row.mel_TM) for row in rows]
        self.classes = [torch.tensor([number[phone] for phone in without_stress(row.phones)]) for row in rows]
        self.random = random.Random(f"aligner {config.seed}")

    def learn(self, steps: int, labels: Sequence[Tensor | None] | None) -> None:
        """Some steps, by CTC or from the labels of frames."""
        config = OptimizerConfig(learning_rate=self.config.learning_rate, warmup_steps=min(30, steps // 2))
        objective = AlignerObjective(self.model.train())
        optimizer = PlainOptimizer(objective, config, steps)
        fit(objective, NoTeacher(), self._batches(steps, labels), optimizer, self._told)

    def _told(self, step: int, out: StepOutput) -> None:
        del step
        self.done += 1
        self.on_step(self.done, self.total, float(out.loss.detach()))

    def _batches(
        self, steps: int, labels: Sequence[Tensor | None] | None
    ) -> Iterator[tuple[AlignerBatch, Tensor | None]]:
        size = self.config.batch_size
        starts = range(0, len(self.mels), size)
        for _ in range(steps):
            start = self.random.choice(starts)
            places = range(start, min(start + size, len(self.mels)))
            yield self._batch(places, labels), None

    def _batch(self, places: range, labels: Sequence[Tensor | None] | None) -> AlignerBatch:
        mels = [self.mels[place] for place in places]
        known = None
        if labels is not None:
            found = [_known(labels[place], len(mel)) for place, mel in zip(places, mels, strict=True)]
            known = nn.utils.rnn.pad_sequence(found, batch_first=True, padding_value=_IGNORED)
        return AlignerBatch(
            nn.utils.rnn.pad_sequence(mels, batch_first=True),
            torch.tensor([len(mel) for mel in mels]),
            [self.classes[place] for place in places],
            known,
        )

    def flat(self) -> list[Tensor | None]:
        """The phones of each recording equally long over the frames in which something is heard; None for too few."""
        return [equally_long(classes_S, quiet_T) for classes_S, quiet_T in zip(self.classes, self.quiet, strict=True)]

    @torch.no_grad()
    def labels(self) -> list[Tensor | None]:
        """The class of each frame on the best path, between peaks that of the nearer phone; None without a path."""
        self.model.eval()
        found: list[Tensor | None] = []
        for mel_TM, classes_S, quiet_T in zip(self.mels, self.classes, self.quiet, strict=True):
            try:
                path_T, _ = best_path(self.model(mel_TM[None])[0], classes_S)
            except Misaligned:
                found.append(None)
                continue
            found.append(filled(path_T, quiet_T))
        return found


def _known(labels_T: Tensor | None, num_frames: int) -> Tensor:
    """Labels, or as many that say nothing."""
    return torch.full((num_frames,), _IGNORED) if labels_T is None else labels_T


def equally_long(classes_S: Tensor, quiet_T: Tensor) -> Tensor | None:
    """A class for each frame [T]: a pause where nothing is heard, and the rest shared by the phones in their order.

    It is the flat start of systems that learn phones from texts alone (Young et al., The HTK Book). None where there
    are fewer frames than phones.
    """
    heard = torch.where(~quiet_T)[0]
    if len(heard) < len(classes_S):
        return None
    labels_T = torch.full_like(quiet_T, PAUSE, dtype=torch.long)
    labels_T[heard] = classes_S[torch.arange(len(heard)) * len(classes_S) // len(heard)]
    return labels_T


def filled(path_T: Tensor, quiet_T: Tensor) -> Tensor:
    """The path with its pauses given to the nearer phone, but for the frames in which nothing is heard."""
    frames = torch.arange(len(path_T))
    phones = frames[path_T != PAUSE]
    after = torch.searchsorted(phones, frames).clamp(max=len(phones) - 1)
    before = (after - 1).clamp(min=0)
    is_nearer_after = (phones[after] - frames).abs() <= (frames - phones[before]).abs()
    nearest = torch.where(is_nearer_after, phones[after], phones[before])
    given = torch.where(path_T != PAUSE, path_T, path_T[nearest])
    return torch.where((path_T == PAUSE) & quiet_T, PAUSE, given)


def _is_quiet(mel_TM: Tensor) -> Tensor:
    """Frames [T] far below the loudest."""
    power_T = mel_TM.exp().square().sum(dim=1).clamp(min=1e-12).log()
    return power_T < power_T.max() - _QUIET_NATS
