"""Batches of phone mels with prompts, as resumable as those of tokens (:mod:`retort.data.stream`).

A row's prompt is another recording of the voice that is to be heard, never the row itself, which would leak its content
and prosody (METHODS.md, trap 38). In the second stage of self-distillation, a share of the rows has as source what the
teacher said in another voice, frame by frame the same (METHODS.md 4.3).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from retort.config import Config
from retort.data.batch_plan import BatchPlan, mix_seed
from retort.data.phone_mels import PhoneMelRow, PhoneMelSet
from retort.errors import DataError
from retort.nn.phone_conditions import SpokenPhones, VoicePrompt, voice_prompts
from retort.nn.phone_numbers import phone_numbers

Direction = Literal["synth_source", "synth_target"]
"""Whether a swapped mel is what the model hears, or what it is to say (METHODS.md 4.3)."""
_SHOWN = 5


class PhoneMelBatchConfig(Config):
    """How batches of phone mels are formed."""

    max_utterances: int = Field(ge=1)
    """Rows per micro-batch and worker."""
    max_frames: int = Field(ge=1)
    """Longest padded size of a micro-batch, in mel frames summed over its rows."""
    prompt_max_frames: int = Field(default=160, ge=1)
    """Longest prompt, in mel frames; of a longer recording a part is taken."""


@dataclass(frozen=True)
class PhoneMelBatch:
    """One batch.

    Attributes:
        spoken: phones, and how they are spoken in the target.
        voice: the prompt, of the target's voice.
        source_BTM: natural-log mel that the content is taken from; 0 beyond a row's end.
        target_BTM: natural-log mel to say; 0 beyond a row's end.
        mask_BT: True where there is a frame, in source and target.
        speaker_B: number of the target's speaker.
        swapped_B: True where source and target are in different voices.
        row_B: index of each row in the set.
    """

    spoken: SpokenPhones
    voice: VoicePrompt
    source_BTM: Tensor
    target_BTM: Tensor
    mask_BT: Tensor
    speaker_B: Tensor
    swapped_B: Tensor
    row_B: Tensor

    @property
    def num_valid(self) -> Tensor:
        """Number of valid mel frames."""
        return self.mask_BT.sum()

    def to(self, device: torch.device) -> "PhoneMelBatch":
        """Move every tensor."""
        return PhoneMelBatch(
            self.spoken.to(device),
            self.voice.to(device),
            self.source_BTM.to(device),
            self.target_BTM.to(device),
            self.mask_BT.to(device),
            self.speaker_B.to(device),
            self.swapped_B.to(device),
            self.row_B.to(device),
        )


@dataclass(frozen=True)
class Lesson:
    """One row of a batch: what is heard, what is to be said, and the recording whose voice it is in."""

    source: PhoneMelRow
    target: PhoneMelRow
    prompt_SM: Tensor
    timbre_E: Tensor


@dataclass(frozen=True)
class Swaps:
    """What a teacher said of the rows in other voices.

    Attributes:
        rows: their ``source_id`` names the rows.
        share: probability that a row uses one, where it has one.
        direction: which side of a pair they are.
    """

    rows: PhoneMelSet
    share: float
    direction: Direction


def phone_mel_batch(
    lessons: Sequence[Lesson], inventory: Sequence[str], speaker_B: Sequence[int], row_B: Sequence[int]
) -> PhoneMelBatch:
    """Lessons of unequal length as one batch; see :class:`PhoneMelBatch`."""
    targets = [lesson.target for lesson in lessons]
    lengths_B = torch.tensor([len(row.mel_TM) for row in targets])
    spoken = SpokenPhones(
        _padded([torch.tensor(phone_numbers(row.phones, inventory)) for row in targets]),
        _padded([row.frames_P for row in targets]),
        _padded([row.log_f0_P for row in targets]),
        _padded([row.voiced_P for row in targets]),
        _padded([row.energy_P for row in targets]),
    )
    return PhoneMelBatch(
        spoken,
        voice_prompts([lesson.prompt_SM for lesson in lessons], [lesson.timbre_E for lesson in lessons]),
        _padded([lesson.source.mel_TM for lesson in lessons]),
        _padded([row.mel_TM for row in targets]),
        torch.arange(int(lengths_B.max())) < lengths_B[:, None],
        torch.tensor(speaker_B),
        torch.tensor([lesson.source.speaker != lesson.target.speaker for lesson in lessons]),
        torch.tensor(row_B),
    )


def _padded(rows: Sequence[Tensor]) -> Tensor:
    return pad_sequence(list(rows), batch_first=True)


class PhoneMelStream:
    """Batches of one rank, by number: batch ``n`` is a pure function of the seed.

    Args:
        rows: what is trained on; recordings.
        config: sizes.
        seed: of the order, of prompts, and of which rows are swapped.
        swaps: what a teacher said of the rows; None in the first stage.
        rank: which of the workers this is.
        world_size: number of workers.

    Raises:
        DataError: there are no rows, or a speaker has a single one, beside which there is no prompt.
    """

    def __init__(
        self,
        rows: PhoneMelSet,
        config: PhoneMelBatchConfig,
        *,
        seed: int,
        swaps: Swaps | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.rows, self.config, self.seed, self.swaps = rows, config, seed, swaps
        self.rank, self.world_size = rank, world_size
        self.lengths: list[int] = rows.column("num_frames")
        self._ids: list[str] = rows.column("id")
        self._speakers: list[str] = rows.column("speaker")
        self.by_speaker = check_prompts(rows)
        self._numbers = {speaker: number for number, speaker in enumerate(sorted(self.by_speaker))}
        self._swapped = {} if swaps is None else _usable(swaps, self._ids, self.by_speaker)
        self._plan = BatchPlan(self.lengths, max_rows=config.max_utterances, max_frames=config.max_frames, seed=seed)

    @property
    def unit(self) -> str:
        """What :meth:`num_valid` counts."""
        return "mel_frames"

    @property
    def swapped_share(self) -> float:
        """Of the rows, how many a swapped one stands for on average: a row whose swaps were all dropped has none."""
        if self.swaps is None:
            return 0.0
        return self.swaps.share * sum(name in self._swapped for name in self._ids) / len(self._ids)

    def batch(self, n: int) -> PhoneMelBatch:
        """Batch ``n`` (0-based) of this rank."""
        number = n * self.world_size + self.rank
        indices = self._plan.indices(number)
        draw = random.Random(mix_seed(self.seed, 3, number))
        lessons = [self._lesson(index, draw) for index in indices]
        speakers = [self._numbers[lesson.target.speaker] for lesson in lessons]
        return phone_mel_batch(lessons, self.rows.description.phones, speakers, indices)

    def ids(self, n: int) -> list[str]:
        """Of the rows in batch ``n`` of this rank."""
        return [self._ids[index] for index in self._plan.indices(n * self.world_size + self.rank)]

    def num_valid(self, stop: int) -> int:
        """Valid mel frames in batches ``0 .. stop - 1`` of all ranks together."""
        return sum(self.lengths[i] for number in range(stop * self.world_size) for i in self._plan.indices(number))

    def _lesson(self, index: int, draw: random.Random) -> Lesson:
        source = target = self.rows[index]
        # Drawn for every row, so that a row without a swapped one changes nothing for those after it.
        coin, pick = draw.random(), draw.random()
        others = self._swapped.get(self._ids[index], ())
        if self.swaps is not None and others and coin < self.swaps.share:
            swapped = self.swaps.rows[others[int(pick * len(others))]]
            source, target = (swapped, source) if self.swaps.direction == "synth_source" else (source, swapped)
        prompt = self.rows[self._prompt_of(index, target.speaker, draw.random())]
        start = int(draw.random() * max(1, len(prompt.mel_TM) - self.config.prompt_max_frames + 1))
        prompt_SM = prompt.mel_TM[start : start + self.config.prompt_max_frames]
        return Lesson(source, target, prompt_SM, prompt.timbre_E)

    def _prompt_of(self, index: int, speaker: str, position: float) -> int:
        """Another recording of a speaker than ``index``."""
        choices = [other for other in self.by_speaker[speaker] if other != index]
        return choices[int(position * len(choices))]


def check_prompts(rows: PhoneMelSet) -> dict[str, list[int]]:
    """The rows of each speaker, of whom each has two at least.

    Raises:
        DataError: there are no rows, or a speaker has a single one.
    """
    if len(rows) == 0:
        raise DataError("there are no phone mels to train on; check the split and the rejects of `retort generate`")
    by_speaker: dict[str, list[int]] = {}
    for index, speaker in enumerate(rows.column("speaker")):
        by_speaker.setdefault(speaker, []).append(index)
    lonely = sorted(speaker for speaker, indices in by_speaker.items() if len(indices) == 1)
    if lonely:
        shown = ", ".join(lonely[:_SHOWN])
        raise DataError(
            f"{len(lonely)} speakers have a single training row ({shown}), and a prompt is another recording; "
            "leave them out of the corpus, or add recordings of theirs"
        )
    return by_speaker


def _usable(swaps: Swaps, ids: Sequence[str], by_speaker: dict[str, list[int]]) -> dict[str, list[int]]:
    """Swapped rows by the id of their real one, as far as that is trained on and the voice has a prompt."""
    known = set(ids)
    found: dict[str, list[int]] = {}
    sources, speakers = swaps.rows.column("source_id"), swaps.rows.column("speaker")
    for index, (source, speaker) in enumerate(zip(sources, speakers, strict=True)):
        if source in known and speaker in by_speaker:
            found.setdefault(source, []).append(index)
    if not found and swaps.share > 0:
        raise DataError("no swapped row is of a training row; give the set that `retort generate` made of these data")
    return found
