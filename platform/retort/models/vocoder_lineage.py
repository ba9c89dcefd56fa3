"""What a vocoder's weights stand for."""

from pydantic import Field

from retort.config import Config


class VocoderLineage(Config):
    """What a vocoder's weights stand for: any mels of its kind, whoever makes them."""

    method: str = Field(min_length=1)
    """``kind`` of the method that trained it."""
    corpus_digest: str
    """Of the references whose recordings it was trained on."""
    adversarial: bool = False
    """Whether a discriminator judged it."""
