"""What an actor of ``retort align`` does: recordings and their phones to durations, by an aligner or by known times."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, assert_never

import torch
from torch import Tensor

from retort.audio.files import AudioRejected
from retort.config import validate
from retort.data.digits import DigitsConfig, digit_strings, speak_string
from retort.data.durations import ROWS, DurationRow, duration_record, duration_schema
from retort.data.recordings import RecordingLoader
from retort.data.references import read_references
from retort.data.utterance import Reject, Utterance
from retort.inference.aligning import Alignment, Misaligned, PhoneAligner
from retort.inference.known_times import in_frames, spans_of
from retort.inference.text_grids import TextGrids
from retort.methods.phone_alignment import TrainAlignerConfig
from retort.models.aligner import open_aligner
from retort.orchestration.chunks import ChunkResult
from retort.run_config import AlignConfig, EspeakTimes, SavedAligner, TextGridTimes
from retort.text import espeak
from retort.text.normalise import normaliser
from retort.text.reading import count_letters

ALIGNER, REFERENCES, GIVEN = "aligner", "references", "given"
_NORMAL_PACE = 175


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
        self._align = self._way()

    def work(self, number: int) -> ChunkResult:
        """One chunk; a row whose alignment cannot be believed becomes a reject."""
        import pyarrow as pa

        records: list[dict[str, Any]] = []
        rejects: list[Reject] = []
        numbers = {"rows": 0.0, "frames": 0.0, "log_prob": 0.0}
        utterances = sorted(read_references(self.work_folder / REFERENCES, number), key=lambda row: row.id)
        for utterance, phones in zip(utterances, phones_of(utterances, self.config), strict=True):
            try:
                found = self._align(utterance, self.loader.load(utterance), phones)
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

    def _way(self) -> Callable[[Utterance, Tensor, Sequence[str]], Alignment]:
        """What tells the durations of a recording's phones."""
        match self.config.aligner:
            case TrainAlignerConfig() | SavedAligner():
                aligner = PhoneAligner(open_aligner(self.work_folder / ALIGNER), self.config.plausible)
                return lambda _, samples_N, phones: aligner.align(samples_N, phones)
            case TextGridTimes(folder=folder):
                grids = TextGrids(folder)

                def by_grid(utterance: Utterance, samples_N: Tensor, phones: Sequence[str]) -> Alignment:
                    if utterance.start_s is not None or utterance.end_s is not None:
                        raise Misaligned("segment", "it is a part of a recording, and grids are of whole ones")
                    (written,) = map(normaliser(self.config.language), [utterance.text])
                    said = espeak.speak(written, voice=self.config.voice, words_per_minute=_NORMAL_PACE)
                    return self._known(spans_of(grids.of(utterance), said), samples_N, phones)

                return by_grid
            case EspeakTimes():
                assert isinstance(self.config.corpus, DigitsConfig)
                pace = self.config.corpus.words_per_minute
                strings = {string.id: string for string in digit_strings(self.config.corpus)}
                return lambda utterance, samples_N, phones: self._known(
                    speak_string(strings[utterance.id], words_per_minute=pace).phones, samples_N, phones
                )
            case _:
                assert_never(self.config.aligner)

    def _known(self, spans: Sequence[espeak.Span], samples_N: Tensor, phones: Sequence[str]) -> Alignment:
        """Known times in frames, if they are of the phones that the text front-end reads.

        Raises:
            Misaligned: other_phones, or see :func:`in_frames`.
        """
        told = [span.label for span in spans if span.label]
        if told != list(phones):
            raise Misaligned("other_phones", f"times of {' '.join(told)[:80]}, and the text is {' '.join(phones)[:80]}")
        mel = self.config.mel
        return in_frames(spans, 1 + samples_N.numel() // mel.hop_samples, mel.frame_rate, self.config.plausible)
