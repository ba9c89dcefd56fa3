"""What an actor of ``retort prune`` does: let the teacher say strings without one of its layers."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from retort.config import Config, validate
from retort.data.batches import CodebookLayout, teacher_forced
from retort.evaluation.asr import open_recogniser
from retort.evaluation.judge import Judge, System, TestStrings
from retort.evaluation.layer_importance import MISHEARD, scored_wer
from retort.evaluation.scoring import Scorers
from retort.inference.speech import SpeechEngine
from retort.inference.synthesizer import Synthesizer
from retort.losses.features import valid_columns
from retort.methods.layer_pruning import WHOLE, block_influence, divergence
from retort.models.codec_lm import CodecLM
from retort.orchestration.chunks import ChunkResult
from retort.orchestration.outputs import with_results
from retort.run_config import PruneConfig

SCORES, INFLUENCE = "scores", "influence"


class Sweep(Config):
    """One leave-one-out measurement: what each layer of ``present`` is worth to the others.

    A chunk is one piece of the strings, said without one layer; the first chunks leave none out.
    """

    present: tuple[int, ...]
    left_out: tuple[int, ...]
    """:data:`WHOLE`, then the layers to leave out in turn."""
    pieces: tuple[tuple[str, ...], ...]
    """Ids of the strings."""

    @property
    def num_chunks(self) -> int:
        """Every piece without every layer."""
        return len(self.left_out) * len(self.pieces)

    def chunk(self, number: int) -> tuple[int, tuple[str, ...]]:
        """The layer that is left out, and the strings."""
        layer, piece = divmod(number, len(self.pieces))
        return self.left_out[layer], self.pieces[piece]


class PruneWorker:
    """Does the chunks of a :class:`Sweep`.

    Args:
        tree: the run file; its paths are those of committed results.
        sweep: JSON of the sweep.
    """

    def __init__(self, tree: Mapping[str, Any], sweep: str) -> None:
        config = with_results(validate(dict(tree), PruneConfig, where="prune"))
        torch.set_num_threads(config.pool.threads_per_worker)
        self.config, self.sweep = config, Sweep.model_validate_json(sweep)
        device = "cuda" if config.pool.gpus_per_worker > 0 else "cpu"
        self.teacher = Synthesizer.open(config.teacher, precision=config.precision, device=device)
        self.strings = TestStrings(config.data, split=config.split, count=config.num_strings)
        scorers = Scorers(open_recogniser(config.recogniser), None, config.stability)
        self.judge = Judge(self.strings, scorers, max_frames=config.max_frames, seed=config.seed)
        self._latest: tuple[int, Synthesizer] | None = None

    def work(self, number: int) -> ChunkResult:
        """One chunk: a row for each string, and of the whole model also a row for each string and layer."""
        import pyarrow as pa

        left_out, ids = self.sweep.chunk(number)
        synthesizer = self._without(left_out)
        system = System(str(left_out), "model", SpeechEngine(synthesizer), self.config.decoding)
        items = [verdict.item for verdict in self.judge.judge(system, ids)]
        kl_B, influence_LB = self._teacher_forced(synthesizer.loaded.model, ids)
        scores = [
            {
                "left_out": left_out,
                "id": item.id,
                "wer": item.wer,
                "scored_wer": scored_wer(item),
                "failed": any(reason != MISHEARD for reason in item.failure_reasons),
                "kl": float(kl),
            }
            for item, kl in zip(items, kl_B, strict=True)
        ]
        tables = {SCORES: pa.Table.from_pylist(scores)}
        if left_out == WHOLE:
            influence = [
                {"layer": layer, "id": name, "block_influence": float(value)}
                for layer, row_B in zip(self.sweep.present, influence_LB, strict=True)
                for name, value in zip(ids, row_B, strict=True)
            ]
            tables[INFLUENCE] = pa.Table.from_pylist(influence)
        return ChunkResult(tables, (), {"strings": float(len(ids))})

    @torch.inference_mode()
    def _teacher_forced(self, model: CodecLM, ids: Sequence[str]) -> tuple[Tensor, Tensor]:
        """On the strings' own tokens: KL from the teacher to the model [B], and its blocks' influence [L, B]."""
        shape = self.teacher.loaded.model.config
        rows = [self.strings.rows[name] for name in ids]
        prompts = [self.strings.prompt_for(row) for row in rows]
        layout = CodebookLayout(shape.codebook_size, shape.codebook_delays)
        batch = teacher_forced(rows, prompts, layout).to(self.teacher.device)
        trace = model.trace(batch.conditions, batch.inputs_BKS)
        whole_BSKV = self.teacher.loaded.model(batch.conditions, batch.inputs_BKS)
        valid_BT = valid_columns(trace.columns.prefix_valid_BC, batch.mask_BKS)
        return divergence(whole_BSKV, trace.logits_BSKV, batch.mask_BKS), block_influence(trace, valid_BT)

    def _without(self, left_out: int) -> Synthesizer:
        """The teacher with the layers that are present, but for one; it shares the weights."""
        if self._latest is None or self._latest[0] != left_out:
            self._latest = None  # What the earlier one packed for decoding goes before the next one packs.
            kept = [layer for layer in self.sweep.present if layer != left_out]
            self._latest = left_out, self.teacher.with_layers(kept)
        return self._latest[1]
