"""Text to sound in one process: a model folder with its codec, text front-end and voices.

A trained model's folder is complete: ``config.json`` and ``model.safetensors``, ``codec/``, ``text/`` and
``voices.safetensors`` (one speaker prompt for each training speaker), so training and synthesis cannot differ in them.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from retort.audio.codec import Codec, open_codec, outside_codec
from retort.data.batches import conditions_for
from retort.data.tokens import TokenSet, refuse_mismatch
from retort.errors import ConfigError, DataError
from retort.inference.backends import DecodePrecision
from retort.inference.decode import Decoded, Decoder
from retort.inference.decoding import CodecLMDecoding, Decoding
from retort.inference.runner import Plan
from retort.inference.speaker import Facts, Request, Spoken
from retort.inference.voices import CODES, VOICES_FILE, load_voices, no_voices, pick_voices, save_voices
from retort.models.codec_lm import CodecLM, count_parameters
from retort.models.codec_lm_lineage import CodecLMLineage
from retort.models.initialise import bypass
from retort.models.weights import CONFIG_FILE, WEIGHTS_FILE, LoadedCodecLM, LoadedModel, load_codec_lm, save_model
from retort.nn.conditions import Conditions
from retort.nn.guidance import TwoTermGuidance
from retort.nn.precision import Precision, pick_dtype
from retort.text.front_end import TextFrontEnd, open_text_front_end


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
        self._decode_precision = precision
        self._precision: Precision = precision if precision in ("fp32", "bf16") else "auto"

    def with_layers(self, kept: Sequence[int]) -> "Synthesizer":
        """The same model without its other layers, untrained; the weights are shared."""
        loaded = LoadedModel(bypass(self.loaded.model, kept), self.loaded.lineage, self.loaded.fingerprint)
        return Synthesizer(loaded, self.codec, self.front_end, self.voices, precision=self._decode_precision)

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
        return cls.beside(load_codec_lm(folder), folder, precision=precision, device=device)

    @classmethod
    def beside(
        cls, loaded: LoadedCodecLM, folder: Path, *, precision: DecodePrecision = "fp32", device: str = "cpu"
    ) -> "Synthesizer":
        """What :meth:`open` gives, of a model that is loaded already.

        Raises:
            DataError: see :meth:`open`.
        """
        outside = outside_codec(loaded.lineage.codec_fingerprint)
        if outside is not None:
            raise DataError(
                f"{folder} speaks in codes of {outside}, a codec that Retort does not have, so it is mute here; "
                "distil, prune or export it, or import it again with `codec: {kind: saved, path: ...}`"
            )
        voices = load_voices(folder)
        codec, front_end = open_codec(folder / "codec"), open_text_front_end(folder / "text")
        cure = "restore the folder that `retort pretrain` or `retort distill` wrote"
        made = loaded.lineage
        refuse_mismatch("codec", "the model", made.codec_fingerprint, "its codec folder", codec.fingerprint(), cure)
        refuse_mismatch(
            "text front-end", "the model", made.text_fingerprint, "its text folder", front_end.fingerprint(), cure
        )
        if device != "cpu":
            loaded.model.to(device)
        return cls(loaded, codec, front_end, voices, precision=precision)

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.loaded.model.heads.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Number format of whole passes over given tokens; decoding may use another one."""
        return pick_dtype(self._precision, self.device)

    @property
    def facts(self) -> Facts:
        """What it is."""
        loaded = self.loaded
        layers, size = loaded.model.config.num_layers, count_parameters(loaded.model)
        return Facts(loaded.fingerprint, "codec_lm", loaded.lineage, size, layers)

    @property
    def codec_fingerprint(self) -> str:
        """Of the codec whose codes the model speaks, and takes voices in."""
        return self.loaded.lineage.codec_fingerprint

    @property
    def has_prompt(self) -> bool:
        """Whether a voice changes what it says."""
        return self.loaded.model.config.speaker_prompt == "pooled"

    @property
    def guidance_scales(self) -> tuple[float, ...] | None:
        """See :class:`~retort.inference.speaker.Abilities`."""
        given, lineage = self.loaded.model.config.guidance_scales, self.loaded.lineage
        if given:
            return given
        return None if lineage.distilled_at is None and "null" in lineage.trained_drops else ()

    def decoding(self, wanted: Decoding | None) -> CodecLMDecoding:
        """How it decodes when ``wanted`` is asked for; None is unguided, at temperature 1.

        Raises:
            ConfigError: it is of another family, or its guidance or scale is not valid for this model.
        """
        decoding = _of_family(wanted)
        self.loaded.lineage.check_guidance(decoding.guidance.build())
        scales = self.loaded.model.config.guidance_scales
        if not scales and decoding.scale is not None:
            raise ConfigError(f"this model takes no guidance scale as an input, {decoding.scale} was given")
        if scales and decoding.scale not in scales:
            raise ConfigError(
                f"this student takes the guidance scale as an input, one of {scales}; got {decoding.scale}"
            )
        return decoding

    def decoding_at(self, guidance_scale: float) -> CodecLMDecoding:
        """Plain decoding at a guidance scale: the model's input where it takes one, else against both conditions.

        Raises:
            ConfigError: see :meth:`decoding`.
        """
        if self.loaded.model.config.guidance_scales:
            return self.decoding(CodecLMDecoding(scale=guidance_scale))
        if guidance_scale == 1.0:
            return CodecLMDecoding()
        return self.decoding(CodecLMDecoding(guidance=TwoTermGuidance(scale=guidance_scale)))

    def conditions(self, requests: Sequence[Request], decoding: CodecLMDecoding) -> Conditions:
        """Conditions of a batch of requests, decoded as :meth:`decoding` allows.

        Raises:
            ConfigError: a speaker is unknown, or a voice is in another codec.
            DataError: a text has nothing to say.
        """
        texts = [self.front_end.encode(request.text) for request in requests]
        given = conditions_for(texts, [self.prompt(request) for request in requests], self.codec.num_codebooks)
        if decoding.scale is None:
            return given.to(self.device)
        scales = self.loaded.model.config.guidance_scales
        index_B = torch.full((len(requests),), scales.index(decoding.scale))
        return Conditions(given.text_BL, given.prompt_BKP, given.prompt_mask_BP, index_B).to(self.device)

    def prompt(self, request: Request) -> Tensor:
        """The codes [K, P] of the voice of a request.

        Raises:
            ConfigError: the speaker is unknown, or the voice is in another codec.
        """
        if request.voice is not None:
            return request.voice.tensor(CODES, self.codec_fingerprint)
        if request.speaker not in self.voices:
            raise ConfigError(f"no voice {request.speaker!r}; this model has {', '.join(sorted(self.voices))}")
        return self.voices[request.speaker]

    def plan(self, request: Request, decoding: CodecLMDecoding, *, max_frames: int) -> Plan:
        """What an engine needs to decode one request as :meth:`decoding` allows.

        Raises:
            ConfigError: the voice is not valid for this model.
            DataError: the text has nothing to say.
        """
        return self.decoder.plans(
            self.conditions([request], decoding),
            guidance=decoding.guidance.build(),
            sampler=decoding.sampler,
            seeds=[request.seed],
            max_frames=max_frames,
        )[0]

    def decode(self, requests: Sequence[Request], decoding: CodecLMDecoding, *, max_frames: int) -> list[Decoded]:
        """The codes of a batch, decoded as :meth:`decoding` allows.

        Raises:
            ConfigError: see :meth:`conditions`.
            DataError: a text has nothing to say.
        """
        return self.decoder.decode(
            self.conditions(requests, decoding),
            guidance=decoding.guidance.build(),
            sampler=decoding.sampler,
            seeds=[request.seed for request in requests],
            max_frames=max_frames,
        )

    def speak(self, requests: Sequence[Request], decoding: Decoding | None, *, max_frames: int) -> list[Spoken]:
        """Synthesise a batch.

        Raises:
            ConfigError: see :meth:`decoding` and :meth:`conditions`.
            DataError: a text has nothing to say.
        """
        decoded = self.decode(requests, self.decoding(decoding), max_frames=max_frames)
        rate, silence = self.codec.sample_rate, torch.zeros(0)
        return [
            Spoken(
                self.codec.decode(item.codes_KT) if item.codes_KT.shape[1] else silence,
                rate,
                item.has_eos,
                item.codes_KT,
            )
            for item in decoded
        ]


def _of_family(wanted: Decoding | None) -> CodecLMDecoding:
    match wanted:
        case None:
            return CodecLMDecoding()
        case CodecLMDecoding():
            return wanted
        case _:
            raise ConfigError(f"this model is a codec_lm, its decoding was given as kind: {wanted.kind}")


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


def carry_speaking_model(source: Path, folder: Path) -> None:
    """Copy what a model folder speaks with, and nothing of the artifact that it lies in."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG_FILE, WEIGHTS_FILE, VOICES_FILE):
        shutil.copyfile(source / name, folder / name)
    for part in ("codec", "text"):
        shutil.copytree(source / part, folder / part)
