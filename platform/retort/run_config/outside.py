"""Models of and for others: a Hugging Face folder → model, and back; a model → a folder that speaks by itself."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from retort.audio.codec import OutsideCodecConfig
from retort.config import Config
from retort.config_faults import UNKNOWN_BRANCH
from retort.inference.bundle.runtimes import Runtime
from retort.location import Location
from retort.models.outside.beside import NumberFormat
from retort.run_config.output import Output
from retort.run_config.prepare import SavedCodec

Token = int | str
"""An id of the outside vocabulary, or a token as ``tokenizer.json`` writes it."""
TemplatePart = str | tuple[int, ...]
"""A part of a template: text with special tokens in it, or ids."""


class SpeechTokensConfig(Config):
    """Which ids of the outside vocabulary are speech."""

    first: Token
    """The first code; the others follow it without a gap."""
    count: int = Field(ge=2)
    eos: Token
    """End of speech."""


class TemplateConfig(Config):
    """What stands around the text. Parts are tokenised one by one, so begin and end them with special tokens."""

    before: TemplatePart = ""
    after: TemplatePart
    """At least one token; the last one is what the model reads before its first code."""
    language: str = "en"
    normalise: bool = False
    """Write numbers and abbreviations out first; most outside models learned raw text."""


class ImportConfig(Config):
    """Llama or Qwen2 checkpoint in Hugging Face layout → model."""

    job: Literal["import"] = "import"
    output: Output
    checkpoint: Path
    """Folder with ``config.json``, safetensors and ``tokenizer.json``."""
    audio: SpeechTokensConfig
    template: TemplateConfig
    null_text: tuple[Token, ...] = ()
    """Tokens whose mean embedding was the text in training wherever the text was dropped. Empty: no null was trained,
    and guidance is refused."""
    codec: Annotated[SavedCodec | OutsideCodecConfig, Field(discriminator="kind")]


class ExportConfig(Config):
    """Imported model, or a student of one → checkpoint in Hugging Face layout."""

    job: Literal["export"] = "export"
    kind: Literal["hugging_face"] = "hugging_face"
    output: Output
    model: Location
    number_format: NumberFormat | Literal["as_imported"] = "as_imported"


class BundleConfig(Config):
    """Zero-shot model → a folder that speaks on CPUs without torch and Ray: ONNX graphs, voices, code and a card."""

    job: Literal["export"] = "export"
    kind: Literal["bundle"]
    output: Output
    model: Location
    note: str = ""
    """Stands in the card, such as what the licence of the recordings allows."""
    runtime: Runtime | None = None
    """Of the graphs; None tries those that are installed and takes the fastest here."""


_EXPORTS = ("hugging_face", "bundle")


def _kind_of(given: Any) -> str | None:
    """The tag of an export; files from before there were bundles say nothing of it."""
    kind = given.get("kind", "hugging_face") if isinstance(given, dict) else given.kind
    return kind if kind in _EXPORTS else None


ExportJob = Annotated[
    Annotated[ExportConfig, Tag("hugging_face")] | Annotated[BundleConfig, Tag("bundle")],
    Discriminator(
        _kind_of, custom_error_type=UNKNOWN_BRANCH, custom_error_message=f"kind: it is one of {', '.join(_EXPORTS)}"
    ),
]
"""Any kind of export, told apart by ``kind``."""
