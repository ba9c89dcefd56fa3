"""What a served application is: models, limits, keys. One YAML file, or the arguments of a Ray Serve application."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from retort.audio.provenance import ProvenanceConfig
from retort.config import Config, validate
from retort.inference.backends import DecodePrecision
from retort.inference.decoding import Decoding
from retort.inference.speech import GuardConfig
from retort.location import Location


class ServedModel(Config):
    """One model behind one name."""

    name: str = Field(min_length=1, max_length=256)
    """What clients send as ``model``."""
    path: Location
    """Output of ``retort pretrain`` or ``retort distill``."""
    decoding: Decoding | None = None
    """``None`` is the plain way of the model's family."""
    languages: tuple[str, ...] = ("en",)
    part_characters: int = Field(default=240, ge=1)
    """Longest text that is said in one go. A longer one is cut between sentences: train on what you serve."""
    precision: DecodePrecision = "fastest"
    slots: int = Field(default=16, ge=1, le=1024)
    """Utterances that a replica speaks at once."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of a replica's steps."""
    cpus: float = Field(default=1.0, gt=0)
    gpus: float = Field(default=0.0, ge=0)
    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(default=1, ge=1)
    target_audio_seconds: float = Field(default=20.0, gt=0)
    """Predicted seconds of speech in flight for which one replica is enough; more makes another."""
    upscale_delay_s: float = Field(default=2.0, ge=0)
    """How long more must be needed before a replica is added."""
    downscale_delay_s: float = Field(default=60.0, ge=0)
    """How long fewer must be enough before one is drained."""
    load_window_s: float = Field(default=10.0, gt=0)
    """Over how long the load is averaged for both; replicas report it three times in that while."""

    @property
    def scaling(self) -> tuple[float, ...]:
        """What decides how many replicas there are."""
        delays = self.upscale_delay_s, self.downscale_delay_s, self.load_window_s
        return self.min_replicas, self.max_replicas, self.target_audio_seconds, *delays

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is less than min_replicas {self.min_replicas}")
        return self


class Limits(Config):
    """What a request may ask for, and how much may wait."""

    max_characters: int = Field(default=4096, ge=1)
    max_body_bytes: int = Field(default=65_536, ge=1024)
    body_timeout_s: float = Field(default=10.0, gt=0)
    """Longest pause while a body arrives, and, behind HAProxy, longest wait for a request's headers."""
    max_connections: int = Field(default=16_384, ge=16)
    """That HAProxy keeps at once, idle ones too, if the machine lets it open five files for every two of them; half of
    them may be of one address elsewhere."""
    max_seconds: float = Field(default=30.0, gt=0)
    """Longest speech of one part; see ``part_characters``."""
    max_text_tokens: int = Field(default=2048, ge=16)
    """Longest part after normalisation, which spells numbers out."""
    max_waiting_seconds: float = Field(default=5.0, gt=0)
    """Predicted seconds of speech that may wait at a replica; more is refused with 429."""
    deadline_s: float = Field(default=60.0, gt=0)
    """Longest wait for the first sound."""
    slow_reader_s: float = Field(default=30.0, gt=0)
    """How long a client may take to accept one piece of a stream, once the kernels' buffers are full; a slower one is
    cut off. Not with ``proxy: python``, which takes every piece at once and keeps it: there, ``max_characters`` bounds
    what is kept for whoever reads nothing."""


class VoiceUploads(Config):
    """Voices that clients may add. Each one is somebody's: they must say that they agree."""

    folder: Path
    """Where voices are kept; several front ends share it."""
    consent_statement: str = Field(
        default="I am the owner of this voice and I consent to its use for speech synthesis.", min_length=1
    )
    """What a client must send word for word; it is kept with the voice."""
    max_bytes: int = Field(default=10 * 2**20, ge=1024)
    min_seconds: float = Field(default=1.0, gt=0)
    max_seconds: float = Field(default=30.0, gt=0)
    max_voices: int = Field(default=1000, ge=1)


class ServeConfig(Config):
    """An application."""

    job: Literal["serve"] = "serve"
    models: tuple[ServedModel, ...] = Field(min_length=1)
    default_model: str | None = None
    """Answers to whatever looks like a name of OpenAI's (``tts-1``, ``gpt-4o-mini-tts-2025-12-15``), and to requests
    without a model; None is the only model, and of several refuses them."""
    model_aliases: dict[str, str] = Field(default_factory=dict)
    """More names that clients may use, and the models that answer to them."""
    default_voice: str | None = None
    """Of requests that name no voice; None refuses them."""
    voice_aliases: dict[str, str] = Field(default_factory=dict)
    """More names of voices, and the voices behind them, which may be added ones. OpenAI's thirteen, unless they are
    named here, stand for the model's own in the order of the alphabet."""
    lenient: bool = False
    """Ignore unknown fields of requests, and name them in the header ``X-Ignored-Fields``, rather than refuse them."""
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    proxy: Literal["auto", "haproxy", "python"] = "auto"
    """What takes connections: HAProxy, which comes with Ray on Linux, or Ray Serve's own proxy, which is slower and
    takes more than a slow client reads; ``auto`` is HAProxy where it is there."""
    counters_port: int = Field(default=0, ge=0, le=65535)
    """Of HAProxy's counters for Prometheus (``/metrics``), at ``host``; 0 is any free port."""
    stats_port: int = Field(default=0, ge=0, le=65535)
    """Of HAProxy's page of its counters (``/stats``), at ``host``; 0 is any free port."""
    client_header: str | None = Field(default=None, pattern=r"^[A-Za-z][A-Za-z0-9-]{0,63}$")
    """Header in which a proxy before this server says whose request it is; the last address in it counts. Only for a
    proxy that replaces, or appends to, what the client wrote there, and that nobody gets past. None takes the address
    that the connection comes from."""
    cors_origins: tuple[str, ...] = ()
    """Websites whose pages may use this server, as ``https://name``; ``*`` is any website. Its own page always may."""
    hosts: tuple[str, ...] | None = None
    """Names that this server is reached by, beside addresses and names without a dot; others are refused. None takes
    every name, but ``retort serve`` takes no others at an address of the loopback device."""
    layout: Literal["apart", "together"] = "apart"
    """``apart``: each model scales by itself behind a front end that they share. ``together``: the API runs in the
    models' own process, without a hop between them, and everything scales as one."""
    limits: Limits = Limits()
    guard: GuardConfig = GuardConfig()
    api_keys: Path | None = None
    """File of API keys, one a line; None lets everybody in who can reach the port."""
    voice_uploads: VoiceUploads | None = None
    """None refuses uploads."""
    provenance: ProvenanceConfig | None = None
    """How speech says that a machine made it; None leaves it unmarked. What is asked for and cannot be done keeps the
    application from starting."""
    drain_s: float = Field(default=60.0, gt=0)
    """How long running requests may go on when a replica stops."""

    @property
    def answering_model(self) -> str | None:
        """Name of the model that ``default_model`` means."""
        return self.models[0].name if len(self.models) == 1 else self.default_model

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """Also from the plain tree that Ray Serve reads from a file and gives to the builder.

        Raises:
            ConfigError: told as for any run file.
        """
        if isinstance(obj, dict):
            return validate(obj, cls, where="the application's args")
        return super().model_validate(obj, **options)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [model.name for model in self.models]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two models are called {twice!r}")
        if self.layout == "together" and len({model.scaling for model in self.models}) > 1:
            raise ValueError(
                "layout: together scales all models as one; give them the same replicas, target and delays"
            )
        if self.default_model is not None and self.default_model not in names:
            raise ValueError(f"default_model {self.default_model!r} is none of {', '.join(names)}")
        lost = next((alias for alias, name in self.model_aliases.items() if name not in names), None)
        if lost is not None:
            raise ValueError(
                f"model_aliases: {lost!r} leads to {self.model_aliases[lost]!r}, none of {', '.join(names)}"
            )
        return self
