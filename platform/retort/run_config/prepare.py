"""Corpus → token set."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from retort.audio.codec import AnyCodecConfig
from retort.config import Config
from retort.data.readers import CorpusConfig
from retort.data.readers_ljspeech import LJSpeechConfig
from retort.data.readers_manifest import ManifestConfig
from retort.data.readers_parquet import ParquetConfig
from retort.data.recordings import AudioConfig
from retort.data.splits import SplitConfig
from retort.evaluation.speaker import SpeakerEncoderConfig
from retort.location import Location
from retort.run_config.machines import PoolConfig
from retort.run_config.output import Output
from retort.text.front_end import CharactersConfig, PhonemesConfig
from retort.text.normalise import is_english


class SavedCodec(Config):
    """The codec of an earlier token set or a saved codec folder."""

    kind: Literal["saved"] = "saved"
    path: Location


class SavedText(Config):
    """The text front-end of an earlier token set or of a model, such as an imported one."""

    kind: Literal["saved"] = "saved"
    path: Location


class PrepareConfig(Config):
    """Corpus → token set."""

    job: Literal["prepare"] = "prepare"
    output: Output
    corpus: CorpusConfig
    audio: AudioConfig = AudioConfig()
    codec: Annotated[AnyCodecConfig | SavedCodec, Field(discriminator="kind")]
    codec_fit_utterances: int = Field(default=1000, ge=1)
    """Training utterances that a fitted codec sees."""
    text: Annotated[CharactersConfig | PhonemesConfig | SavedText, Field(discriminator="kind")]
    splits: SplitConfig = SplitConfig()
    speaker_encoder: SpeakerEncoderConfig | None = None
    """Writes an embedding for each row, for similarity scores later; ``None`` writes none."""
    max_unread_fraction: float = Field(default=0.25, ge=0, le=1)
    """Rows are rejected of whose letters the text front-end cannot read a larger share."""
    max_reject_fraction: float = Field(default=0.1, ge=0, le=1)
    pool: PoolConfig = PoolConfig()

    @model_validator(mode="after")
    def _text_is_in_the_language_of_the_corpus(self) -> Self:
        """A front-end whose language is not given takes the one that is given of the corpus, and its voice that one."""
        match self.text:
            case CharactersConfig() | PhonemesConfig() as text:
                # Nobody has seen this object yet, so that it may still change.
                object.__setattr__(self, "text", _in_language(text, self._given_language()))
        return self

    def _given_language(self) -> str | None:
        match self.corpus:
            case LJSpeechConfig() | ManifestConfig() | ParquetConfig() as corpus if (
                "language" in corpus.model_fields_set
            ):
                return corpus.language
        return None  # the others are of one language, or say it row by row


def _in_language(text: CharactersConfig | PhonemesConfig, language: str | None) -> CharactersConfig | PhonemesConfig:
    given = text.model_fields_set
    if language is not None and "language" not in given:
        text = text.replace(language=language)
    match text:
        case PhonemesConfig(language=spoken) if "voice" not in given and not is_english(spoken):
            return text.replace(voice=spoken)
    return text
