"""Let systems say the test strings, and judge what they said: everything of an evaluation but its distribution.

A judge is made from plain values, so that it can live in a Ray actor or in a test.
"""

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from retort.audio.codec import Codec, open_codec
from retort.audio.files import Audio, in_16_bits
from retort.data.tokens import TokenRow, TokenSet
from retort.errors import ConfigError, DataError, RetortError
from retort.evaluation.items import Expected, ItemResult, failed_item
from retort.evaluation.prosody import ProsodyConfig, prosody_of, sample_spread
from retort.evaluation.scoring import Scorers, score_item
from retort.evaluation.service import Asked
from retort.evaluation.slices import SliceName, cut_in_a_word, is_in, without_end
from retort.evaluation.sounds import read_any_sound
from retort.evaluation.speaker import embed
from retort.inference.decoding import Decoding, at_temperature
from retort.inference.speaker import Request, Speaker, Spoken
from retort.inference.voices import Voice, pick_voices, voice_of_codes
from retort.nn.random import seed_of

RECORDINGS_OF_A_VOICE = 8
"""Recordings whose mean embedding stands for a voice, where the token set holds no embeddings."""


@dataclass(frozen=True)
class System:
    """What speaks: the recordings, their way through the codec, a model that is decoded in one way, or a service."""

    name: str
    kind: Literal["recordings", "resynthesis", "model", "endpoint", "black_box"]
    speaker: Speaker | None = None
    decoding: Decoding | None = None
    """None is the plain one of the model's family."""
    service: Asked | None = None

    def at_temperature(self, name: str, temperature: float) -> "System":
        """This model under another name, drawing its tokens at another temperature."""
        assert self.speaker is not None, "only a model has a temperature"
        decoding = at_temperature(self.speaker.decoding(self.decoding), temperature)
        return dataclasses.replace(self, name=name, decoding=decoding)


@dataclass(frozen=True)
class Verdict:
    """One judged utterance with its sound, and the mel [T, M] that it was made from, where a network made one."""

    item: ItemResult
    samples_N: Tensor
    sample_rate: int
    mel_TM: Tensor | None = None


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
        self._prompts: dict[str, Audio | None] = {}
        """Recordings of prompts by their ids: a speaker has one or two of them."""

    @property
    def by_length(self) -> list[str]:
        """Ids of :attr:`rows`, the shortest first, so that those of a piece are of about one length."""
        return sorted(self.rows, key=lambda i: (self.rows[i].num_frames, i))

    def ids_in(self, name: SliceName) -> list[str]:
        """Those of :attr:`rows` that a slice asks for otherwise.

        Raises:
            DataError: there are none.
        """
        found = [row.id for row in self.rows.values() if is_in(name, row, self.prompt_for(row))]
        if not found:
            why = "none of them ends in punctuation" if name == "no_final_punctuation" else "none of them has a prompt"
            raise DataError(f"slices: {name} has nothing of the {len(self.rows)} strings: {why}; leave it out")
        return found

    def refuse_other_encoder(self, name: str) -> None:
        """Refuse to compare voices with the rows' embeddings if another encoder made these.

        Raises:
            DataError: both names and the cure.
        """
        theirs = self.description.speaker_encoder
        if self._embeddings and theirs is not None and theirs != name:
            raise DataError(
                f"speaker_encoder is {name}, but the voices of {self.folder} were embedded by {theirs}; similarities "
                "of different encoders do not compare: evaluate with that one, or prepare the data with this one"
            )

    @property
    def trained_speakers(self) -> frozenset[str]:
        """Who has training rows."""
        return frozenset(self.voices)

    @property
    def expected(self) -> list[Expected]:
        """What every system is asked to say."""
        return [Expected(row.id, row.text, row.speaker) for row in self.rows.values()]

    def prompt_for(self, row: TokenRow) -> Tensor | None:
        """A prompt of the row's speaker, never the row itself; None where the speaker has no other utterance."""
        voice_KP = self.voices.get(row.speaker)
        if voice_KP is not None and not torch.equal(voice_KP, row.codes_KT):
            return voice_KP
        other = self._longest_other(row)
        return None if other is None else other.codes_KT

    def _longest_other(self, row: TokenRow) -> TokenRow | None:
        others = [other for other in self._others if other.speaker == row.speaker and other.id != row.id]
        return max(others, key=lambda other: other.num_frames, default=None)

    def embedding_for(self, row: TokenRow) -> Tensor | None:
        """Mean of the embeddings that training rows of the row's speaker hold, without its own; of L2 norm 1."""
        others = [own_E for name, own_E in self._embeddings.get(row.speaker, ()) if name != row.id]
        if not others:
            return None
        total_E: Tensor = torch.stack(others).sum(0)
        mean_E: Tensor = total_E / total_E.norm()
        return mean_E

    @cached_property
    def _embeddings(self) -> Mapping[str, Sequence[tuple[str, Tensor]]]:
        found: dict[str, list[tuple[str, Tensor]]] = {}
        for row in self._train:
            if row.speaker_embedding is not None:
                found.setdefault(row.speaker, []).append((row.id, torch.tensor(row.speaker_embedding)))
        return found

    @cached_property
    def codec(self) -> Codec:
        """Of the token set."""
        return open_codec(self.folder / "codec")

    def voice_for(self, row: TokenRow, speaker: Speaker, *, is_cut: bool = False) -> Voice | None:
        """The voice that a row asks for, as a speaker takes it: :meth:`prompt_for` in its space.

        None where there is no prompt, or the speaker cannot be told a recording's voice; then its own voice of that
        name counts. ``is_cut`` breaks the prompt off in the middle of a word. A model that hears recordings gets that
        of the longest other string of the speaker, where it is kept, and no prompt that went through the codec.
        """
        prompt_KP, space = self.prompt_for(row), self.description.codec_fingerprint
        if prompt_KP is None:
            return None
        if speaker.voice_space != space and not speaker.abilities.takes_voices:
            return None
        whole = prompt_KP.shape[1]
        if is_cut:
            prompt_KP = cut_in_a_word(self.codec, prompt_KP)
        if speaker.voice_space == space:
            return voice_of_codes(space, prompt_KP)
        recording = self._recorded_prompt(row)
        if recording is None:
            recording = Audio(self.codec.decode(prompt_KP), self.codec.sample_rate)
        elif is_cut:
            left = recording.samples_N.numel() * prompt_KP.shape[1] // whole
            recording = Audio(recording.samples_N[:left], recording.sample_rate)
        return speaker.voice_of(recording)

    def _recorded_prompt(self, row: TokenRow) -> Audio | None:
        """The recording of the longest other string of the row's speaker, where it is kept; training rows have none."""
        other = self._longest_other(row)
        if other is None:
            return None
        if other.id not in self._prompts:
            self._prompts[other.id] = self._kept_recording(other.id)
        return self._prompts[other.id]

    def _kept_recording(self, name: str) -> Audio | None:
        import pyarrow.parquet as pq

        for shard in sorted((self.folder / "audio").glob("*.parquet")):
            kept = pq.read_table(shard, columns=["wav"], filters=[("id", "=", name)]).to_pylist()
            if kept:
                return read_any_sound(kept[0]["wav"])
        return None

    def recordings(self) -> Mapping[str, bytes]:
        """WAV bytes of the rows' recordings, by id."""
        import pyarrow.parquet as pq

        sounds: dict[str, bytes] = {}
        for shard in sorted((self.folder / "audio").glob("*.parquet")):
            for record in pq.read_table(shard, columns=["id", "wav"]).to_pylist():
                if record["id"] in self.rows:
                    sounds[record["id"]] = record["wav"]
        return sounds


class Judge:
    """Speaks and scores test strings."""

    def __init__(
        self,
        strings: TestStrings,
        scorers: Scorers,
        *,
        max_frames: int,
        seed: int,
        naturalness_strings: int | None = None,
        prosody: ProsodyConfig | None = None,
    ) -> None:
        self.strings, self.scorers, self.max_frames, self.seed = strings, scorers, max_frames, seed
        drawn = sorted(strings.rows, key=lambda name: seed_of(seed, f"naturalness {name}"))
        self._natural = frozenset(drawn[:naturalness_strings])
        self._prosodic = frozenset(drawn[: prosody.strings] if prosody is not None else ())
        self._samples = 1 if prosody is None else prosody.samples
        self._recordings: Mapping[str, bytes] | None = None
        self._heard: dict[str, list[tuple[str, Tensor]]] = {}

    def judge(self, system: System, ids: Sequence[str], *, slice_name: SliceName | None = None) -> list[Verdict]:
        """Let ``system`` say the strings ``ids`` in one batch, plainly or as a slice asks for them, and score each."""
        rows = [self.strings.rows[i] for i in ids]
        verdicts = []
        again = self._again(system, [row for row in rows if row.id in self._prosodic and slice_name is None])
        for row, given in zip(rows, self._speak(system, rows, slice_name=slice_name), strict=True):
            spoken = as_a_file(given) if isinstance(given, Spoken) else given
            expected = Expected(row.id, row.text, row.speaker)
            sound = spoken if isinstance(spoken, Spoken) else self._nothing()
            if isinstance(spoken, RetortError):
                item = failed_item(system.name, expected, reason="error", error=str(spoken))
            else:
                scorers = self.scorers if row.id in self._natural else dataclasses.replace(self.scorers, naturalness=())
                item = score_item(system.name, expected, spoken, scorers, voice_E=self.voice(row))
                if row.id in self._prosodic and isinstance(spoken, Spoken):
                    values = {**item.values, **_prosody(row.text, spoken, again.get(row.id, ()))}
                    item = dataclasses.replace(item, values=values)
            verdicts.append(Verdict(item, sound.samples_N, sound.sample_rate, sound.mel_TM))
        return verdicts

    def _nothing(self) -> Spoken:
        return Spoken(torch.zeros(0), self.strings.description.sample_rate)

    def _speak(
        self, system: System, rows: Sequence[TokenRow], *, again: str = "", slice_name: SliceName | None = None
    ) -> Sequence[Spoken | RetortError | None]:
        """The sound of each row, why it cannot be heard, or None if there is none; ``again`` draws other seeds."""
        if slice_name == "no_final_punctuation":
            rows = [dataclasses.replace(row, text=without_end(row.text)) for row in rows]
        match system.kind:
            case "recordings":
                return _one_by_one(lambda some: [self._recording(row) for row in some], rows)
            case "resynthesis":
                codec = self.strings.codec
                return _one_by_one(lambda some: [_resynthesis(codec, row) for row in some], rows)
            case "model":
                return _one_by_one(lambda some: self._synthesise(system, some, again, slice_name), rows)
            case "endpoint" | "black_box":
                assert system.service is not None
                return system.service.speak([self._request(row, again) for row in rows])

    def _again(self, system: System, rows: Sequence[TokenRow]) -> Mapping[str, Sequence[Spoken]]:
        """What a model or a service makes of the same texts with other seeds, by id."""
        found: dict[str, list[Spoken]] = {row.id: [] for row in rows}
        has_others = bool(rows) and system.kind in ("model", "endpoint", "black_box")
        for number in range(1, self._samples if has_others else 1):
            for row, spoken in zip(rows, self._speak(system, rows, again=f" again {number}"), strict=True):
                if isinstance(spoken, Spoken):
                    found[row.id].append(as_a_file(spoken))
        return found

    def _recording(self, row: TokenRow) -> Spoken | None:
        """The sound of a row, or None if there is none.

        Raises:
            AudioRejected: there is nothing to hear in what is there.
        """
        if self._recordings is None:
            self._recordings = self.strings.recordings()
        if row.id not in self._recordings:
            return None
        audio = read_any_sound(self._recordings[row.id])
        return Spoken(audio.samples_N, audio.sample_rate)

    def voice(self, row: TokenRow) -> Tensor | None:
        """Embedding of the voice asked for: of the training rows, or of other recordings of the speaker.

        The row's own recording never takes part, or the recordings would be compared with themselves.
        """
        if self.scorers.encoder is None:
            return None
        mean_E = self.strings.embedding_for(row)
        if mean_E is not None:
            return mean_E
        if row.speaker not in self._heard:
            self._heard[row.speaker] = self._embed_recordings(row.speaker)
        others = [embedding_E for name, embedding_E in self._heard[row.speaker] if name != row.id]
        if not others:
            return None
        total_E: Tensor = torch.stack(others).sum(0)
        heard_E: Tensor = total_E / total_E.norm()
        return heard_E

    def _embed_recordings(self, speaker: str) -> list[tuple[str, Tensor]]:
        assert self.scorers.encoder is not None
        embedded = []
        for other in [r for r in self.strings.rows.values() if r.speaker == speaker][:RECORDINGS_OF_A_VOICE]:
            with contextlib.suppress(DataError):  # silence has no voice, nor has what cannot be read
                spoken = self._recording(other)
                if spoken is not None:
                    embedded.append((other.id, embed(self.scorers.encoder, spoken.samples_N, spoken.sample_rate)))
        return embedded

    def _request(self, row: TokenRow, again: str, voice: Voice | None = None) -> Request:
        return Request(row.text, row.speaker, seed_of(self.seed, row.id + again), voice)

    def _synthesise(
        self, system: System, rows: Sequence[TokenRow], again: str, slice_name: SliceName | None
    ) -> Sequence[Spoken | None]:
        speaker = system.speaker
        assert speaker is not None
        is_cut = slice_name == "cut_prompt"
        voices = [self.strings.voice_for(row, speaker, is_cut=is_cut) for row in rows]
        requests = [self._request(row, again, voice) for row, voice in zip(rows, voices, strict=True)]
        max_seconds = self.max_frames / self.strings.description.frame_rate
        return speaker.speak(requests, speaker.decoding(system.decoding), max_seconds=max_seconds)


def as_a_file(spoken: Spoken) -> Spoken:
    """What a listener would get: a model is judged by the same bits as its recordings, or a service that speaks it."""
    return dataclasses.replace(spoken, samples_N=in_16_bits(spoken.samples_N.detach().cpu().float()))


def _one_by_one(
    speak: Callable[[Sequence[TokenRow]], Sequence[Spoken | None]], rows: Sequence[TokenRow]
) -> Sequence[Spoken | RetortError | None]:
    """What is said of the rows together or, where one of them cannot be said, of each by itself, with its reason."""
    try:
        return speak(rows)
    except (ConfigError, DataError) as error:
        return [error] if len(rows) == 1 else [found for row in rows for found in _one_by_one(speak, [row])]


def _resynthesis(codec: Codec, row: TokenRow) -> Spoken:
    samples_N = codec.decode(row.codes_KT) if row.num_frames else torch.zeros(0)
    return Spoken(samples_N, codec.sample_rate, codes=row.codes_KT)


def _prosody(text: str, spoken: Spoken, again: Sequence[Spoken]) -> dict[str, float]:
    found = prosody_of(spoken.samples_N, spoken.sample_rate, text)
    spread = sample_spread([(sound.samples_N, sound.sample_rate) for sound in (spoken, *again)]) if again else None
    return found if spread is None else {**found, "sample_spread": spread}
