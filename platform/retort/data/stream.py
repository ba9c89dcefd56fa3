"""The resumable stream of training batches.

Batch ``n`` of rank ``r`` is a pure function of the seed, so the position of the data is the step number and nothing
else: a run that resumes at step ``n`` sees the very batches that an unbroken run would have seen.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from retort.config import Config
from retort.data.batch_plan import BatchPlan, mix_seed
from retort.data.batches import CodebookLayout, LMBatch, teacher_forced
from retort.data.prompts import PROMPT_MAX_FRAMES, PromptsById, crop_prompt
from retort.data.tokens import TokenRow
from retort.errors import DataError
from retort.nn.guidance import NullCondition


class BatchConfig(Config):
    """How batches are formed, and how often conditions are dropped."""

    max_utterances: int = Field(ge=1)
    """Rows per micro-batch and worker."""
    max_frames: int = Field(ge=1)
    """Longest padded size of a micro-batch, in codec frames summed over its rows."""
    drop_text: float = Field(default=0.0, ge=0, lt=1)
    """Probability that a row's text alone is replaced by its null."""
    drop_speaker: float = Field(default=0.0, ge=0, lt=1)
    """Probability that a row's speaker prompt alone is replaced by its null."""
    drop_both: float = Field(default=0.0, ge=0, lt=1)
    """Probability that both are replaced."""
    prompt_max_frames: int = Field(default=PROMPT_MAX_FRAMES, ge=1)
    """Longest speaker prompt, in codec frames; longer ones are cropped."""
    prompts: Literal["random", "by_id"] = "random"
    """``random`` draws another utterance of the speaker each time; ``by_id`` always takes the same one, the one that
    cached targets were computed with (:mod:`retort.data.prompts`)."""

    @property
    def total_drop(self) -> float:
        """Probability that a row loses any condition."""
        return self.drop_text + self.drop_speaker + self.drop_both

    @property
    def null_conditions(self) -> tuple[NullCondition, ...]:
        """Those that such batches hold; who is trained on them may be guided against them."""
        probabilities: tuple[tuple[NullCondition, float], ...] = (
            ("no_text", self.drop_text),
            ("no_speaker", self.drop_speaker),
            ("null", self.drop_both),
        )
        return tuple(name for name, probability in probabilities if probability > 0)


class BatchStream:
    """Batches of one rank, by number; see the module's docstring.

    Args:
        rows: what is trained on.
        layout: codebooks and delays.
        config: sizes, drops, prompts.
        seed: of everything random.
        rank: which of the workers this is.
        world_size: number of workers.
        prompt_rows: what prompts are taken from; ``None`` is ``rows``. With synthetic rows among them, the real ones.

    Raises:
        DataError: there are no rows, or they would lose all their conditions.
    """

    def __init__(
        self,
        rows: Sequence[TokenRow],
        layout: CodebookLayout,
        config: BatchConfig,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        prompt_rows: Sequence[TokenRow] | None = None,
    ) -> None:
        if len(rows) == 0:
            raise DataError("there are no rows to train on; check the split and the rejects of `retort prepare`")
        if config.total_drop >= 1:
            raise DataError(f"drop_text + drop_speaker + drop_both is {config.total_drop}; it must be below 1")
        self.rows = list(rows)
        self.layout, self.config, self.seed = layout, config, seed
        self.rank, self.world_size = rank, world_size
        self.lengths = [row.num_frames for row in self.rows]
        self.prompt_rows = self.rows if prompt_rows is None else list(prompt_rows)
        self.by_speaker: dict[str, list[int]] = {}
        for i, row in enumerate(self.prompt_rows):
            self.by_speaker.setdefault(row.speaker, []).append(i)
        self._by_id = PromptsById([r.id for r in self.prompt_rows], [r.speaker for r in self.prompt_rows])
        self._plan = BatchPlan(self.lengths, max_rows=config.max_utterances, max_frames=config.max_frames, seed=seed)

    @property
    def unit(self) -> str:
        """What :meth:`num_valid` counts."""
        return "tokens"

    def batch(self, n: int) -> LMBatch:
        """Batch ``n`` (0-based) of this rank."""
        number = n * self.world_size + self.rank
        indices = self._plan.indices(number)
        generator = torch.Generator().manual_seed(mix_seed(self.seed, 1, number))
        return self.build(indices, generator)

    def ids(self, n: int) -> list[str]:
        """Of the rows in batch ``n`` of this rank."""
        return [self.rows[index].id for index in self._plan.indices(n * self.world_size + self.rank)]

    def iterate(self, start: int, stop: int) -> Iterator[LMBatch]:
        """Batches ``start .. stop - 1``."""
        for n in range(start, stop):
            yield self.batch(n)

    def num_valid(self, stop: int) -> int:
        """Valid (utterance, codebook, step) triples in batches ``0 .. stop - 1`` of all ranks together."""
        rows = (index for number in range(stop * self.world_size) for index in self._plan.indices(number))
        # Each frame has a code of each codebook, and each row one end of speech.
        return sum(self.lengths[index] * self.layout.num_codebooks + 1 for index in rows)

    def build(self, indices: Sequence[int], generator: torch.Generator) -> LMBatch:
        """Lay out the given rows; prompts and drops come from ``generator``."""
        config = self.config
        u = torch.rand(len(indices), generator=generator)
        drop_text = (u < config.drop_text + config.drop_both).bool()
        drop_speaker = ((u >= config.drop_text) & (u < config.total_drop)).bool()
        prompts = [self._prompt(i, generator) for i in indices]
        rows = [self.rows[i] for i in indices]
        return teacher_forced(
            rows,
            prompts,
            self.layout,
            drop_text_B=drop_text,
            drop_speaker_B=drop_speaker,
            row_B=torch.tensor(list(indices)),
        )

    def _prompt(self, index: int, generator: torch.Generator) -> Tensor | None:
        """A crop of another utterance of the speaker; None where there is no other."""
        row = self.rows[index]
        if self.config.prompts == "by_id":
            choice = self._by_id.choose(row.id, row.speaker)
            return None if choice is None else self._crop(choice.index, choice.position)
        same = self.by_speaker.get(row.speaker, [])
        pick = int(torch.randint(max(1, len(same)), (1,), generator=generator))
        position = float(torch.rand(1, generator=generator))
        if same and self.prompt_rows[same[pick]].id == row.id:
            pick = (pick + 1) % len(same)
        if not same or self.prompt_rows[same[pick]].id == row.id:
            return None
        return self._crop(same[pick], position)

    def _crop(self, index: int, position: float) -> Tensor:
        return crop_prompt(self.prompt_rows[index].codes_KT, position, self.config.prompt_max_frames)
