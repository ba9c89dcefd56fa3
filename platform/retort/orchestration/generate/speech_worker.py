"""What an actor of ``retort generate`` does for speech: lines to a black-box teacher, and a look at what it said."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from retort.audio.files import Audio, AudioRejected, flac_bytes, loudness_lufs, wav_bytes
from retort.config import validate
from retort.data.spoken import CORPUS, SpeechDescription, SpokenRow, spoken_record, spoken_schema
from retort.data.utterance import Reject
from retort.evaluation.asr import open_recogniser
from retort.evaluation.stability import assess
from retort.evaluation.wer import word_errors
from retort.inference.black_box.endpoint import EndpointTeacherConfig
from retort.inference.black_box.opening import facts_of, open_black_box
from retort.inference.black_box.teacher import Line, Unspoken
from retort.nn.random import seed_of
from retort.orchestration.api_key import api_key_of
from retort.orchestration.chunks import ChunkResult
from retort.orchestration.generate.speech_plan import PlannedLine, read_plan
from retort.run_config import GenerateSpeechConfig, SpeechFilterConfig


class SpeechWorker:
    """Does chunks of a plan.

    Args:
        tree: the run file.
        plan: file of the plan.
        description: JSON of the :class:`SpeechDescription` that every row repeats.
    """

    def __init__(self, tree: Mapping[str, Any], plan: Path, description: str) -> None:
        config = validate(dict(tree), GenerateSpeechConfig, where="generate")
        torch.set_num_threads(config.pool.threads_per_worker)
        self.config, self.lines = config, read_plan(plan)
        self.description = SpeechDescription.model_validate_json(description)
        is_service = isinstance(config.teacher, EndpointTeacherConfig)
        key = api_key_of(config.teacher) if isinstance(config.teacher, EndpointTeacherConfig) else None
        share = 1.0 / config.pool.size if is_service else 1.0
        self.teacher = open_black_box(config.teacher, key=key, share=share)
        self.filter = SpeechFilter(config.filters)
        self.threads = ThreadPoolExecutor(facts_of(config.teacher).concurrency)

    def work(self, number: int) -> ChunkResult:
        """One chunk; a line that cannot be said, or is not said well, becomes a reject."""
        import pyarrow as pa

        size = self.config.chunk_size
        lines = self.lines[number * size : (number + 1) * size]
        records: list[dict[str, Any]] = []
        rejects: list[Reject] = []
        numbers = {"rows": 0.0, "seconds": 0.0}
        for line, said in zip(lines, self.threads.map(self._said, lines), strict=True):
            row = said if isinstance(said, Reject) else self._row(line, said)
            if isinstance(row, Reject):
                rejects.append(row)
                continue
            records.append(spoken_record(row, self.description))
            numbers["rows"] += 1
            numbers["seconds"] += row.duration_s
            numbers[f"rows/{row.split}"] = numbers.get(f"rows/{row.split}", 0.0) + 1
        return ChunkResult({CORPUS: pa.Table.from_pylist(records, schema=spoken_schema())}, rejects, numbers)

    def _asked(self, line: PlannedLine) -> Line:
        return Line(line.text, line.voice, seed_of(self.config.seed, line.id) % (1 << 31))

    def _said(self, line: PlannedLine) -> Audio | Reject:
        try:
            return self.teacher.speak(self._asked(line))
        except (Unspoken, AudioRejected) as fault:
            return Reject(line.id, fault.code, fault.detail, line.split)

    def _row(self, line: PlannedLine, audio: Audio) -> SpokenRow | Reject:
        loudness = loudness_lufs(audio.samples_N, audio.sample_rate)
        fault = self.filter.fault(line.text, audio, loudness)
        wer = None if fault is not None else self.filter.wer(line.text, audio)
        if fault is None and wer is not None and wer[0] > (self.config.filters.max_wer or 0.0):
            fault = "wer", f"WER {wer[0]:.2f}: heard {wer[1]!r}"
        if fault is not None:
            return Reject(line.id, fault[0], fault[1], line.split)
        encode = flac_bytes if self.config.audio_format == "flac" else wav_bytes
        return SpokenRow(
            id=line.id,
            text=line.text,
            split=line.split,
            voice=line.voice,
            audio=encode(audio.samples_N, audio.sample_rate),
            sample_rate=audio.sample_rate,
            duration_s=audio.duration_s,
            loudness_lufs=round(loudness, 2),
            wer=None if wer is None else round(wer[0], 4),
            settings=self.teacher.settings(self._asked(line)),
        )


class SpeechFilter:
    """Says what is wrong with a recording, by the rules and the names of the evaluation."""

    def __init__(self, filters: SpeechFilterConfig) -> None:
        self.filters = filters
        self.recogniser = None if filters.recogniser is None else open_recogniser(filters.recogniser)

    def fault(self, text: str, audio: Audio, loudness: float) -> tuple[str, str] | None:
        """Code and detail of the first rule that is broken, but for that of the recogniser; None where all hold."""
        found = assess(audio.samples_N, audio.sample_rate, text, config=self.filters.stability)
        if found.reasons:
            detail = (
                f"{found.duration_s:.2f} s, {found.seconds_per_word:.2f} s a word, {found.silence_ratio:.0%} silent, "
                f"{found.clipped_ratio:.1%} at full scale"
            )
            return found.reasons[0], detail
        if loudness < self.filters.min_lufs:
            return "too_quiet", f"{loudness:.1f} LUFS, below {self.filters.min_lufs:g}"
        if loudness > self.filters.max_lufs:
            return "too_loud", f"{loudness:.1f} LUFS, above {self.filters.max_lufs:g}"
        return None

    def wer(self, text: str, audio: Audio) -> tuple[float, str] | None:
        """The word error rate and what was heard, where there is a recogniser."""
        if self.recogniser is None:
            return None
        heard = self.recogniser.transcribe(audio.samples_N, audio.sample_rate)
        return word_errors(text, heard).wer, heard
