"""Text to sound in one process: a model folder with its codec, text front-end and voices.

A trained model's folder is complete: ``config.json`` and ``model.safetensors``, ``codec/``, ``text/`` and
``voices.safetensors`` (one speaker prompt for each training speaker), so training and synthesis cannot differ in them.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from retort.audio.codec import Codec, open_codec, outside_codec
from retort.data.batches import conditions_for
from retort.data.tokens import TokenRow, TokenSet, refuse_mismatch
from retort.errors import ConfigError, DataError
from retort.inference.backends import DecodePrecision
from retort.inference.decode import Decoder
from retort.inference.runner import Plan
from retort.inference.sampling import SamplerConfig
from retort.models.codec_lm import CodecLM
from retort.models.codec_lm_lineage import CodecLMLineage
from retort.models.weights import LoadedCodecLM, load_codec_lm, save_model
from retort.nn.conditions import Conditions
from retort.nn.guidance import Guidance
from retort.nn.precision import Precision, pick_dtype
from retort.text.front_end import TextFrontEnd, open_text_front_end

VOICES_FILE = "voices.safetensors"
MIN_FRAMES_OF_A_VOICE = 40


@dataclass(frozen=True)
class Spoken:
    """One synthesised utterance: samples [N], its codes [K, T], and whether the model ended it itself."""

    samples_N: Tensor
    sample_rate: int
    codes_KT: Tensor
    has_eos: bool


@dataclass(frozen=True)
class Request:
    """What to say, in whose voice, with which seed; ``prompt_KP`` replaces the stored voice of ``speaker``."""

    text: str
    speaker: str
    seed: int
    prompt_KP: Tensor | None = None


class Synthesizer:
    """Speaks with one model; batches of requests share each forward pass."""

    def __init__(
        self,
        loaded: LoadedCodecLM,
        codec: Codec,
        front_end: TextFrontEnd,
        voices: Mapping[str, Tensor],
        *,
        precision: DecodePrecision = "fp32",
    ) -> None:
        self.loaded, self.codec, self.front_end, self.voices = loaded, codec, front_end, dict(voices)
        self.decoder = Decoder(loaded.model, precision=precision)
        self._precision: Precision = precision if precision in ("fp32", "bf16") else "auto"

    @classmethod
    def open(cls, folder: Path, *, precision: DecodePrecision = "fp32", device: str = "cpu") -> "Synthesizer":
        """Open a model folder.

        Args:
            folder: with the model, its codec, text front-end and voices.
            precision: number format of decoding.
            device: where the model runs.

        Raises:
            DataError: a part is missing, the codec is not Retort's, or a part was made with another codec or text
                front-end; both are named.
        """
        from safetensors.torch import load_file

        loaded = load_codec_lm(folder)
        outside = outside_codec(loaded.lineage.codec_fingerprint)
        if outside is not None:
            raise DataError(
                f"{folder} speaks in codes of {outside}, a codec that Retort does not have, so it is mute here; "
                "distil, prune or export it, or import it again with `codec: {kind: saved, path: ...}`"
            )
        if not (folder / VOICES_FILE).is_file():
            raise DataError(f"{folder} has no {VOICES_FILE}, so it cannot speak; train it again with this version")
        codec, front_end = open_codec(folder / "codec"), open_text_front_end(folder / "text")
        cure = "restore the folder that `retort pretrain` or `retort distill` wrote"
        refuse_mismatch("the model", loaded.lineage.codec_fingerprint, "its codec folder", codec.fingerprint(), cure)
        refuse_mismatch("the model", loaded.lineage.text_fingerprint, "its text folder", front_end.fingerprint(), cure)
        if device != "cpu":
            loaded.model.to(device)
        voices = {name: codes.long() for name, codes in load_file(folder / VOICES_FILE).items()}
        return cls(loaded, codec, front_end, voices, precision=precision)

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.loaded.model.heads.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Number format of whole passes over given tokens; decoding may use another one."""
        return pick_dtype(self._precision, self.device)

    def conditions(self, requests: Sequence[Request], *, scale_input: float | None = None) -> Conditions:
        """Conditions of a batch of requests.

        Raises:
            ConfigError: a speaker is unknown, or the scale is not one that the student was trained for.
        """
        texts = [self.front_end.encode(request.text) for request in requests]
        prompts = [r.prompt_KP if r.prompt_KP is not None else self._voice(r.speaker) for r in requests]
        given = conditions_for(texts, prompts, self.codec.num_codebooks)
        scales = self.loaded.model.config.guidance_scales
        if not scales:
            if scale_input is not None:
                raise ConfigError(f"this model takes no guidance scale as an input, {scale_input} was given")
            return given.to(self.device)
        if scale_input is None or scale_input not in scales:
            raise ConfigError(f"this student takes the guidance scale as an input, one of {scales}; got {scale_input}")
        index_B = torch.full((len(requests),), scales.index(scale_input))
        return Conditions(given.text_BL, given.prompt_BKP, given.prompt_mask_BP, index_B).to(self.device)

    def num_columns(self, request: Request) -> int:
        """Columns of the condition of a request.

        Raises:
            DataError: the text has nothing to say.
        """
        has_prompt = self.loaded.model.config.speaker_prompt == "pooled"
        return len(self.front_end.encode(request.text)) + has_prompt

    def _voice(self, speaker: str) -> Tensor:
        if speaker not in self.voices:
            raise ConfigError(f"no voice {speaker!r}; this model has {', '.join(sorted(self.voices))}")
        return self.voices[speaker]

    def plan(
        self,
        request: Request,
        *,
        guidance: Guidance,
        sampler: SamplerConfig,
        max_frames: int,
        scale_input: float | None = None,
    ) -> Plan:
        """What an engine needs to decode one request.

        Raises:
            ConfigError: the guidance, the voice or the scale is not valid for this model.
            DataError: the text has nothing to say.
        """
        self.loaded.lineage.check_guidance(guidance)
        conditions = self.conditions([request], scale_input=scale_input)
        return self.decoder.plans(
            conditions, guidance=guidance, sampler=sampler, seeds=[request.seed], max_frames=max_frames
        )[0]

    def speak(
        self,
        requests: Sequence[Request],
        *,
        guidance: Guidance,
        sampler: SamplerConfig,
        max_frames: int,
        scale_input: float | None = None,
    ) -> list[Spoken]:
        """Synthesise a batch.

        Raises:
            ConfigError: the guidance is not valid for this model (see ``CodecLMLineage.check_guidance``).
        """
        self.loaded.lineage.check_guidance(guidance)
        decoded = self.decoder.decode(
            self.conditions(requests, scale_input=scale_input),
            guidance=guidance,
            sampler=sampler,
            seeds=[request.seed for request in requests],
            max_frames=max_frames,
        )
        return [
            Spoken(self.codec.decode(item.codes_KT), self.codec.sample_rate, item.codes_KT, item.has_eos)
            if item.codes_KT.shape[1]
            else Spoken(torch.zeros(0), self.codec.sample_rate, item.codes_KT, item.has_eos)
            for item in decoded
        ]


def pick_voices(rows: Sequence[TokenRow]) -> dict[str, Tensor]:
    """One prompt per speaker: the first training row, in order of ids, that is long enough, else the longest."""
    voices: dict[str, Tensor] = {}
    for row in rows:
        held = voices.get(row.speaker)
        if held is None or (held.shape[1] < MIN_FRAMES_OF_A_VOICE and row.num_frames > held.shape[1]):
            voices[row.speaker] = row.codes_KT
    return voices


def save_speaking_model(folder: Path, model: CodecLM, lineage: CodecLMLineage, data: Path) -> None:
    """Write a model folder that speaks by itself: the weights, and the codec, text front-end and voices of its data.

    Args:
        folder: where to write.
        model: the trained model.
        lineage: what its weights stand for.
        data: the token set that it was trained on.
    """
    save_model(folder, model, lineage)
    for part in ("codec", "text"):
        if (data / part).is_dir():  # the codec may be an outside one
            shutil.copytree(data / part, folder / part)
    has_prompt = model.config.speaker_prompt == "pooled"
    save_voices(folder, pick_voices(TokenSet.open(data).split("train")) if has_prompt else no_voices())


def no_voices() -> dict[str, Tensor]:
    """The voices of a model without a prompt column: one name, which says nothing."""
    return {"default": torch.zeros(1, 0, dtype=torch.int64)}


def save_voices(folder: Path, voices: Mapping[str, Tensor]) -> None:
    """Write the voices of a model folder: codes [K, T] by name."""
    from safetensors.torch import save_file

    save_file({name: codes.to(torch.int32).contiguous() for name, codes in voices.items()}, folder / VOICES_FILE)
