"""What an actor of ``retort generate`` does for swapped phone mels: rows in other voices, as long as they were.

The durations of the row are forced upon the teacher, so that the two mels are aligned frame by frame (METHODS.md,
trap 39). A row is made by itself, so that it is the same bits in any chunk.
"""

import dataclasses
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retort.audio.files import in_16_bits
from retort.audio.pitch import f0_track
from retort.config import validate
from retort.data.phone_features import phone_energy, phone_melody
from retort.data.phone_mels import (
    ROWS,
    PhoneMelRow,
    PhoneMelSet,
    PhoneMelSetDescription,
    phone_mel_record,
    phone_mel_schema,
)
from retort.data.prompts import crop_prompt
from retort.data.utterance import Reject
from retort.errors import ConfigError, DataError
from retort.evaluation.asr import open_recogniser
from retort.evaluation.hearing import hear
from retort.evaluation.speaker import similarity
from retort.evaluation.wer import character_errors
from retort.inference.zero_shot_making import MelWish, ZeroShotMaker
from retort.models.zero_shot.timbre import open_timbre_encoder
from retort.nn.random import seed_of
from retort.orchestration.chunks import ChunkResult
from retort.orchestration.outputs import with_results
from retort.run_config import GeneratePhoneMelsConfig, SwappedPhoneMels
from retort.store.commit import write_json_atomic


@dataclass(frozen=True)
class Swap:
    """One row to make.

    Attributes:
        id: of the row.
        source: id of the real row that it says.
        prompt: id of the real row whose voice it is in.
        position: where the prompt lies in that one, in [0, 1).
    """

    id: str
    source: str
    prompt: str
    position: float


def plan_swaps(mels: PhoneMelSet, source: SwappedPhoneMels, *, seed: int) -> list[Swap]:
    """The rows to make, in order of their lengths.

    Which speakers and which of their rows a row gets is a function of its id, the seed, and the other speakers.

    Args:
        mels: of recordings.
        source: what is asked for.
        seed: of the job.

    Raises:
        ConfigError: there are fewer other speakers than voices were asked for.
    """
    train = mels.split("train")
    by_speaker: dict[str, list[str]] = {}
    for row_id, speaker in zip(train.column("id"), train.column("speaker"), strict=True):
        by_speaker.setdefault(speaker, []).append(row_id)
    if len(by_speaker) <= source.pairs_per_row:
        raise ConfigError(
            f"{source.mels} has {len(by_speaker)} speakers in its training rows, so a row can be said in "
            f"{max(0, len(by_speaker) - 1)} other voices, and pairs_per_row asks for {source.pairs_per_row}; lower it, "
            "or give a corpus of more speakers"
        )
    swaps: list[tuple[int, Swap]] = []
    for row_id, speaker, frames in zip(*map(train.column, ("id", "speaker", "num_frames")), strict=True):
        draw = random.Random(f"swap {seed} {row_id}")
        others = [other for other in by_speaker if other != speaker]
        for number, other in enumerate(draw.sample(others, source.pairs_per_row)):
            prompt, position = draw.choice(by_speaker[other]), draw.random()
            swaps.append((frames, Swap(f"{row_id}~{number}", row_id, prompt, position)))
    swaps.sort(key=lambda pair: (pair[0], pair[1].id))
    return [swap for _, swap in swaps]


def write_swaps(path: Path, swaps: Sequence[Swap]) -> None:
    """Write a plan; :func:`read_swaps` reads it."""
    write_json_atomic(path, [dataclasses.astuple(swap) for swap in swaps])


def read_swaps(path: Path) -> list[Swap]:
    """A plan that was written."""
    return [Swap(*fields) for fields in json.loads(path.read_text())]


class SwappedPhoneMelsWorker:
    """Does chunks of a plan.

    Args:
        tree: the run file; its inputs are found, and fetched from a store, on the worker's node.
        plan: file of the plan.
        description: JSON of the :class:`PhoneMelSetDescription` that every row repeats.
    """

    def __init__(self, tree: Mapping[str, Any], plan: Path, description: str) -> None:
        config = with_results(validate(dict(tree), GeneratePhoneMelsConfig, where="generate"))
        assert isinstance(config.source, SwappedPhoneMels)
        torch.set_num_threads(config.pool.threads_per_worker)
        self.config, self.source, self.swaps = config, config.source, read_swaps(plan)
        self.description = PhoneMelSetDescription.model_validate_json(description)
        device = "cuda" if config.pool.gpus_per_worker > 0 else "cpu"
        self.maker = ZeroShotMaker.open(config.source.teacher, device=device)
        self.mels = PhoneMelSet.open(config.source.mels)
        self.encoder = open_timbre_encoder(config.source.timbre_encoder, self.description.mel, device=device)
        self.places = {name: place for place, name in enumerate(self.mels.column("id"))}
        recogniser = config.source.filters.recogniser
        self.recogniser = None if recogniser is None else open_recogniser(recogniser, device=device)

    def work(self, number: int) -> ChunkResult:
        """One chunk; what breaks a rule becomes a reject."""
        import pyarrow as pa

        size = self.source.chunk_size
        records: list[dict[str, Any]] = []
        rejects: list[Reject] = []
        numbers = dict.fromkeys(("asked", "rows", "mel_frames", "phones", "similarity_gain"), 0.0)
        for swap in self.swaps[number * size : (number + 1) * size]:
            numbers["asked"] += 1
            seed = seed_of(self.config.seed, swap.id)
            source, prompt = (self.mels[self.places[name]] for name in (swap.source, swap.prompt))
            row = self.row(swap, source, prompt, seed)
            if isinstance(row, Reject):
                rejects.append(row)
                continue
            records.append(phone_mel_record(row, seed, self.description))
            numbers["rows"] += 1
            numbers["mel_frames"] += len(row.mel_TM)
            numbers["phones"] += len(row.phones)
            numbers["similarity_gain"] += similarity_gain(row.timbre_E, source, prompt)
        return ChunkResult({ROWS: pa.Table.from_pylist(records, schema=phone_mel_schema())}, rejects, numbers)

    def row(self, swap: Swap, source: PhoneMelRow, prompt: PhoneMelRow, seed: int) -> PhoneMelRow | Reject:
        """The source's row in the prompt's voice, or why it is dropped."""
        mel, filters = self.description.mel, self.source.filters
        prompt_SM = crop_prompt(prompt.mel_TM.T, swap.position, self.maker.prompt_max_frames).T
        mel_TM, _ = self.maker.make(
            MelWish(
                phones=self.maker.numbers(source.phones),
                prompt_SM=prompt_SM,
                timbre_E=prompt.timbre_E,
                seed=seed,
                noise_scale=self.source.noise_scale,
                frames_P=source.frames_P,
            )
        )
        if not torch.isfinite(mel_TM.half()).all():
            return Reject(swap.id, "not_finite", "the mel is not numbers, or too large for fp16", source.id)
        # What readers of the set get.
        mel_TM = mel_TM.half().float()
        sound_N = in_16_bits(self.maker.inverter.sound(mel_TM.T))
        try:
            timbre_E = self.encoder.embed(sound_N, mel.sample_rate)
        except DataError as fault:
            return Reject(swap.id, "no_voice", str(fault), source.id)
        gain = similarity_gain(timbre_E, source, prompt)
        if filters.min_similarity_gain is not None and gain <= filters.min_similarity_gain:
            return Reject(swap.id, "other_voice", f"nearer to {prompt.speaker} by {gain:.3f} only", source.id)
        misheard = self._misheard(source.text, sound_N)
        if misheard is not None:
            return Reject(swap.id, "cer", misheard, source.id)
        f0_T = f0_track(sound_N, mel.sample_rate, hop_samples=mel.hop_samples)[: len(mel_TM)]
        log_f0_P, voiced_P = phone_melody(f0_T, source.frames_P)
        return dataclasses.replace(
            source,
            id=swap.id,
            speaker=prompt.speaker,
            mel_TM=mel_TM,
            log_f0_P=log_f0_P,
            voiced_P=voiced_P,
            energy_P=phone_energy(mel_TM, source.frames_P),
            timbre_E=timbre_E,
            source_id=source.id,
            prompt_speaker=prompt.speaker,
        )

    def _misheard(self, text: str, sound_N: Tensor) -> str | None:
        max_cer = self.source.filters.max_cer
        if self.recogniser is None or max_cer is None:
            return None
        try:
            heard = hear(self.recogniser, sound_N, self.description.mel.sample_rate)
        except DataError as fault:  # others may be heard all the same
            return str(fault)
        cer = character_errors(text, heard).wer
        return f"CER {cer:.2f}: heard {heard!r}" if cer > max_cer else None


def similarity_gain(timbre_E: Tensor, source: PhoneMelRow, prompt: PhoneMelRow) -> float:
    """How much nearer a voice is to the prompt's than to the source's, as cosines."""
    return similarity(timbre_E, prompt.timbre_E) - similarity(timbre_E, source.timbre_E)
