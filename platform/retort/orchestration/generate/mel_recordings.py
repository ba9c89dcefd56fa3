"""What an actor of ``retort generate`` does for mels of recordings: the log-mel that was encoded, and its latents."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retort.audio.files import AudioRejected
from retort.audio.mel_rvq import MelRVQ, soft_floored_log_mel
from retort.config import validate
from retort.data.mels import ROWS, MelRow, MelSetDescription, mel_record, mel_schema
from retort.data.recordings import RecordingLoader
from retort.data.references import read_references
from retort.data.tokens import TokenRow, TokenSet
from retort.data.utterance import Reject, Utterance
from retort.models.weights import load_codec_lm
from retort.nn.precision import pick_dtype
from retort.nn.random import seed_of
from retort.orchestration.chunks import ChunkResult
from retort.orchestration.generate.chunked import computed_in
from retort.orchestration.generate.mel_codec import open_mel_codec
from retort.orchestration.generate.sequences import PromptedModel
from retort.orchestration.outputs import with_results
from retort.run_config import GenerateMelsConfig, PrepareConfig

_LEAST_AGREEMENT = 0.9
"""Codes of a recording that must be those of the token set. Another processor may round a few to their neighbours."""


class RecordedMelsWorker:
    """Does chunks of references.

    Args:
        tree: the run file; its inputs are found, and fetched from a store, on the worker's node.
        prepare: the run file that the token set was made with.
        references: folder of the chunks of references.
        chosen: file with the ids that are asked for.
        description: JSON of the :class:`MelSetDescription` that every row repeats.
    """

    def __init__(
        self, tree: Mapping[str, Any], prepare: Mapping[str, Any], references: Path, chosen: Path, description: str
    ) -> None:
        config = with_results(validate(dict(tree), GenerateMelsConfig, where="generate"))
        prepared = validate(dict(prepare), PrepareConfig, where="prepare")
        torch.set_num_threads(config.pool.threads_per_worker)
        self.config, self.references = config, references
        self.description = MelSetDescription.model_validate_json(description)
        self.device = torch.device("cuda" if config.pool.gpus_per_worker > 0 else "cpu")
        self.dtype = pick_dtype(config.precision, self.device)
        self.prompted = PromptedModel(load_codec_lm(config.lm).model.to(self.device), config.data)
        self.codec: MelRVQ = open_mel_codec(config.data)
        self.loader = RecordingLoader(prepared.audio, self.codec.sample_rate, prepared.corpus)
        self.tokens = TokenSet.open(config.data)
        ids = set(json.loads(chosen.read_text()))
        self.places = {name: place for place, name in enumerate(self.tokens.column("id")) if name in ids}

    @torch.inference_mode()
    def work(self, number: int) -> ChunkResult:
        """One chunk; a recording that is not what it was becomes a reject."""
        import pyarrow as pa

        rejects: list[Reject] = []
        found: list[tuple[TokenRow, Tensor]] = []
        for utterance in read_references(self.references, number):
            if utterance.id not in self.places:
                continue
            row: TokenRow = self.tokens[self.places[utterance.id]]
            try:
                found.append((row, self.mel(utterance, row)))
            except AudioRejected as error:
                where = str(utterance.audio) if isinstance(utterance.audio, Path) else ""
                rejects.append(Reject(row.id, error.code, error.detail, where))
        found.sort(key=lambda pair: (pair[0].num_frames, pair[0].id))
        records = []
        for begin in range(0, len(found), self.config.batch_size):
            records += self._records(found[begin : begin + self.config.batch_size])
        numbers = {
            **computed_in(self.dtype),
            "rows": float(len(records)),
            "mel_frames": float(sum(record["num_frames"] for record in records)),
        }
        return ChunkResult({ROWS: pa.Table.from_pylist(records, schema=mel_schema())}, rejects, numbers)

    def mel(self, utterance: Utterance, row: TokenRow) -> Tensor:
        """The log-mel [T, M] that the row's codes quantise.

        Raises:
            AudioRejected: the recording cannot be read any more, or gives other codes (``changed_recording``).
        """
        mel_TM = soft_floored_log_mel(self.loader.load(utterance), self.codec.config)
        codes_KT = self.codec.encode_log_mel(mel_TM)
        if codes_KT.shape != row.codes_KT.shape:
            detail = f"{codes_KT.shape[1]} codec frames, the token set has {row.num_frames}"
            raise AudioRejected("changed_recording", detail)
        agreement = float((codes_KT == row.codes_KT).float().mean())
        if agreement < _LEAST_AGREEMENT:
            raise AudioRejected("changed_recording", f"{agreement:.0%} of its codes are those of the token set")
        return mel_TM

    def _records(self, found: Sequence[tuple[TokenRow, Tensor]]) -> list[dict[str, Any]]:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            latents = self.prompted.latents([row for row, _ in found])
        made = [
            MelRow(row.id, row.text, row.speaker, row.split, latents_LD, mel_TM, None)
            for (row, mel_TM), latents_LD in zip(found, latents, strict=True)
        ]
        return [mel_record(row, seed_of(self.config.seed, row.id), self.description) for row in made]
