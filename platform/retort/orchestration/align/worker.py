"""What an actor of ``retort align`` does: recordings and their phones to durations."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from retort.audio.files import AudioRejected
from retort.config import validate
from retort.data.durations import ROWS, DurationRow, duration_record, duration_schema
from retort.data.recordings import RecordingLoader
from retort.data.references import read_references
from retort.data.utterance import Reject, Utterance
from retort.inference.aligning import Misaligned, PhoneAligner
from retort.models.aligner import open_aligner
from retort.orchestration.chunks import ChunkResult
from retort.run_config import AlignConfig
from retort.text import espeak
from retort.text.normalise import normaliser
from retort.text.reading import count_letters

ALIGNER, REFERENCES, GIVEN = "aligner", "references", "given"


def phones_of(utterances: Sequence[Utterance], config: AlignConfig) -> list[tuple[str, ...]]:
    """The phones of each text, as the text front-end would read it; none where there is no letter."""
    written = map(normaliser(config.language), (utterance.text for utterance in utterances))
    # espeak-ng says the names of punctuation that stands alone.
    return espeak.phones_of_all([text if count_letters(text) else "" for text in written], voice=config.voice)


def loader_of(config: AlignConfig) -> RecordingLoader:
    """Gives the samples that are aligned."""
    return RecordingLoader(config.audio, config.mel.sample_rate, config.corpus)


class AlignWorker:
    """Does chunks of references.

    Args:
        tree: the run file.
        work: folder of the references and the aligner.
    """

    def __init__(self, tree: Mapping[str, Any], work: Path) -> None:
        self.config = validate(dict(tree), AlignConfig, where="align")
        torch.set_num_threads(self.config.pool.threads_per_worker)
        self.work_folder, self.loader = work, loader_of(self.config)
        self.aligner = PhoneAligner(open_aligner(work / ALIGNER), self.config.plausible)

    def work(self, number: int) -> ChunkResult:
        """One chunk; a row whose alignment cannot be believed becomes a reject."""
        import pyarrow as pa

        records: list[dict[str, Any]] = []
        rejects: list[Reject] = []
        numbers = {"rows": 0.0, "frames": 0.0, "log_prob": 0.0}
        utterances = sorted(read_references(self.work_folder / REFERENCES, number), key=lambda row: row.id)
        for utterance, phones in zip(utterances, phones_of(utterances, self.config), strict=True):
            try:
                found = self.aligner.align(self.loader.load(utterance), phones)
            except (AudioRejected, Misaligned) as fault:
                where = str(utterance.audio) if isinstance(utterance.audio, Path) else ""
                rejects.append(Reject(utterance.id, fault.code, fault.detail, where))
                continue
            row = DurationRow(utterance.id, utterance.split or "train", found.labels, found.frames, found.log_prob)
            records.append(duration_record(row))
            numbers["rows"] += 1
            numbers["frames"] += sum(found.frames)
            numbers["log_prob"] += found.log_prob
        return ChunkResult({ROWS: pa.Table.from_pylist(records, schema=duration_schema())}, rejects, numbers)
