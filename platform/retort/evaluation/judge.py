"""Let systems say the test strings, and judge what they said: everything of an evaluation but its distribution.

A judge is made from plain values, so that it can live in a Ray actor or in a test.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from retort.audio.codec import Codec, open_codec
from retort.audio.files import read_audio
from retort.data.batches import CodebookLayout, LMBatch, teacher_forced
from retort.data.tokens import TokenRow, TokenSet
from retort.errors import DataError
from retort.evaluation.confidence import Confidence, ConfidenceAccumulator
from retort.evaluation.items import Expected, ItemResult
from retort.evaluation.scoring import Scorers, Spoken, score_item
from retort.inference.sampling import SamplerConfig
from retort.inference.synthesizer import Request, Synthesizer, pick_voices
from retort.nn.guidance import Guidance
from retort.nn.guided_rows import guided_logits

RECORDINGS_OF_A_VOICE = 8
"""Recordings whose mean embedding stands for a voice, where the token set holds no embeddings."""


@dataclass(frozen=True)
class System:
    """What speaks: the recordings, their way through the codec, or a model under a guidance and a sampler."""

    name: str
    kind: Literal["recordings", "resynthesis", "model"]
    synthesizer: Synthesizer | None = None
    guidance: Guidance | None = None
    sampler: SamplerConfig | None = None
    scale_input: float | None = None


@dataclass(frozen=True)
class Verdict:
    """One judged utterance with its sound."""

    item: ItemResult
    samples_N: Tensor
    sample_rate: int


class TestStrings:
    """The test rows of a token set, the voices asked for, and the original recordings."""

    __test__ = False  # not a class of tests

    def __init__(self, folder: Path, *, split: str, count: int) -> None:
        tokens = TokenSet.open(folder)
        self._train = tokens.split("train")
        self.voices = pick_voices(self._train)
        rows: list[TokenRow] = list(tokens.split(split))
        if split == "train":  # a voice's prompt is never the row itself
            rows = [row for row in rows if not torch.equal(row.codes_KT, self.voices[row.speaker])]
        if len(rows) < count:
            raise DataError(
                f"{folder} has {len(rows)} {split} rows, num_strings asks for {count}; lower it or add rows"
            )
        # Spread over the speakers and lengths, whatever the ids look like; the choice never changes.
        rows.sort(key=lambda row: hashlib.sha256(row.id.encode()).digest())
        self.folder, self.description = folder, tokens.description
        self.rows = {row.id: row for row in sorted(rows[:count], key=lambda row: row.id)}
        self._others = rows
        self.embeddings = _mean_embeddings(self._train)

    @property
    def expected(self) -> list[Expected]:
        """What every system is asked to say."""
        return [Expected(row.id, row.text, row.speaker) for row in self.rows.values()]

    def prompt_for(self, row: TokenRow) -> Tensor | None:
        """A prompt of the row's speaker, never the row itself; None where the speaker has no other utterance."""
        voice_KP = self.voices.get(row.speaker)
        if voice_KP is not None and not torch.equal(voice_KP, row.codes_KT):
            return voice_KP
        others = [other for other in self._others if other.speaker == row.speaker and other.id != row.id]
        return max(others, key=lambda other: other.num_frames).codes_KT if others else None

    def recordings(self) -> Mapping[str, bytes]:
        """WAV bytes of the rows' recordings, by id."""
        import pyarrow.parquet as pq

        sounds: dict[str, bytes] = {}
        for shard in sorted((self.folder / "audio").glob("*.parquet")):
            for record in pq.read_table(shard, columns=["id", "wav"]).to_pylist():
                if record["id"] in self.rows:
                    sounds[record["id"]] = record["wav"]
        return sounds


def _mean_embeddings(rows: Sequence[TokenRow]) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}
    for row in rows:
        if row.speaker_embedding is not None:
            embedding = torch.tensor(row.speaker_embedding)
            sums[row.speaker] = sums.get(row.speaker, torch.zeros_like(embedding)) + embedding
    return {speaker: total / total.norm() for speaker, total in sums.items()}


def seed_of(seed: int, name: str) -> int:
    """Sampling seed of an utterance: the same for every system, independent of its batch."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:7], "big")


class Judge:
    """Speaks and scores test strings."""

    def __init__(self, strings: TestStrings, scorers: Scorers, *, max_frames: int, seed: int) -> None:
        self.strings, self.scorers, self.max_frames, self.seed = strings, scorers, max_frames, seed
        self._codec: Codec = open_codec(strings.folder / "codec")
        self._recordings: Mapping[str, bytes] | None = None
        self._heard: dict[str, list[tuple[str, Tensor]]] = {}

    def judge(self, system: System, ids: Sequence[str]) -> list[Verdict]:
        """Let ``system`` say the strings ``ids`` in one batch, and score each."""
        rows = [self.strings.rows[i] for i in ids]
        verdicts = []
        for row, spoken in zip(rows, self._speak(system, rows), strict=True):
            voice_E = self._voice(row)
            expected = Expected(row.id, row.text, row.speaker)
            item = score_item(system.name, expected, spoken, self.scorers, voice_E=voice_E)
            samples = torch.zeros(0) if spoken is None else spoken.samples_N
            verdicts.append(Verdict(item, samples, self._codec.sample_rate))
        return verdicts

    def _speak(self, system: System, rows: Sequence[TokenRow]) -> list[Spoken | None]:
        match system.kind:
            case "recordings":
                return [self._recording(row) for row in rows]
            case "resynthesis":
                rate = self._codec.sample_rate
                return [Spoken(self._codec.decode(row.codes_KT), rate, codes=row.codes_KT) for row in rows]
            case "model":
                return self._synthesise(system, rows)

    def _recording(self, row: TokenRow) -> Spoken | None:
        if self._recordings is None:
            self._recordings = self.strings.recordings()
        if row.id not in self._recordings:
            return None
        audio = read_audio(self._recordings[row.id])
        return Spoken(audio.samples_N, audio.sample_rate)

    def _voice(self, row: TokenRow) -> Tensor | None:
        """Embedding of the voice asked for: of the training rows, or of other recordings of the speaker.

        The row's own recording never takes part, or the recordings would be compared with themselves.
        """
        if self.scorers.encoder is None:
            return None
        if row.speaker in self.strings.embeddings:
            return self.strings.embeddings[row.speaker]
        if row.speaker not in self._heard:
            self._heard[row.speaker] = self._embed_recordings(row.speaker)
        others = [embedding_E for name, embedding_E in self._heard[row.speaker] if name != row.id]
        if not others:
            return None
        total_E: Tensor = torch.stack(others).sum(0)
        mean_E: Tensor = total_E / total_E.norm()
        return mean_E

    def _embed_recordings(self, speaker: str) -> list[tuple[str, Tensor]]:
        assert self.scorers.encoder is not None
        embedded = []
        for other in [r for r in self.strings.rows.values() if r.speaker == speaker][:RECORDINGS_OF_A_VOICE]:
            spoken = self._recording(other)
            if spoken is not None:
                embedding_E = self.scorers.encoder.embed(spoken.samples_N, spoken.sample_rate)
                embedded.append((other.id, embedding_E))
        return embedded

    def _synthesise(self, system: System, rows: Sequence[TokenRow]) -> list[Spoken | None]:
        assert system.synthesizer is not None
        assert system.guidance is not None
        assert system.sampler is not None
        requests = [
            Request(row.text, row.speaker, seed_of(self.seed, row.id), self.strings.prompt_for(row)) for row in rows
        ]
        said = system.synthesizer.speak(
            requests,
            guidance=system.guidance,
            sampler=system.sampler,
            max_frames=self.max_frames,
            scale_input=system.scale_input,
        )
        return [Spoken(s.samples_N, s.sample_rate, s.has_eos, s.codes_KT) for s in said]


@torch.inference_mode()
def measure_confidence(
    strings: TestStrings, systems: Sequence[System], *, teacher: System | None, batch_size: int
) -> dict[str, Confidence]:
    """Entropy, top-1 probability and KL from ``teacher`` on the real tokens of the test strings, by system.

    Every system sees the same tokens. A teacher with and without guidance are two systems; a student that is surer than
    the unguided teacher may still be less sure than the guided one (METHODS.md 1.3, fact d).
    """
    models = [system for system in systems if system.kind == "model"]
    layout: CodebookLayout | None = None
    sums = {system.name: ConfidenceAccumulator(strings.description.num_codebooks) for system in models}
    rows = sorted(strings.rows.values(), key=lambda row: row.num_frames)
    for begin in range(0, len(rows), batch_size):
        chunk = rows[begin : begin + batch_size]
        teacher_logits = None
        for system in models if teacher is None else [teacher, *(s for s in models if s is not teacher)]:
            assert system.synthesizer is not None
            config = system.synthesizer.loaded.model.config
            layout = CodebookLayout(config.codebook_size, config.codebook_delays)
            batch = _teacher_forced(chunk, strings, system, layout)
            logits = _system_logits(system, batch)
            if system is teacher:
                teacher_logits = logits
            sums[system.name].add(logits, batch.mask_BKS, teacher_BSKV=teacher_logits)
    return {name: total.result() for name, total in sums.items()}


def _teacher_forced(rows: Sequence[TokenRow], strings: TestStrings, system: System, layout: CodebookLayout) -> LMBatch:
    index = None
    if system.scale_input is not None and system.synthesizer is not None:
        index = system.synthesizer.loaded.model.config.guidance_scales.index(system.scale_input)
    return teacher_forced(rows, [strings.prompt_for(row) for row in rows], layout, scale_index=index)


def _system_logits(system: System, batch: LMBatch) -> Tensor:
    assert system.synthesizer is not None
    assert system.guidance is not None
    on_device = batch.to(system.synthesizer.device)
    model, given, inputs = system.synthesizer.loaded.model, on_device.conditions, on_device.inputs_BKS
    device, dtype = system.synthesizer.device.type, system.synthesizer.dtype
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        return guided_logits(model, given, inputs, system.guidance).cpu()
