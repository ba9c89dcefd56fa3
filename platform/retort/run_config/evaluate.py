"""Systems → results, summary and report."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from retort.config import Config
from retort.evaluation.asr import AnyRecogniserConfig, RecogniserConfig, label_of
from retort.evaluation.leakage import LeakageConfig
from retort.evaluation.long_text import LongTextConfig
from retort.evaluation.metrics import JUDGED
from retort.evaluation.naturalness import NaturalnessConfig
from retort.evaluation.prosody import ProsodyConfig
from retort.evaluation.results import Role
from retort.evaluation.service import ServiceConfig
from retort.evaluation.slices import SliceName
from retort.evaluation.speaker import SpeakerEncoderConfig
from retort.evaluation.stability import StabilityConfig
from retort.evaluation.temperatures import TemperaturesConfig
from retort.evaluation.turns import Turns
from retort.inference.black_box.opening import LocalBlackBoxConfig
from retort.inference.decoding import Decoding
from retort.location import Location
from retort.run_config.machines import PoolConfig
from retort.run_config.metric_names import ComparableName
from retort.run_config.output import Output

SPEAKING = ("model", "endpoint", "black_box")
"""Kinds of systems that say any text."""


class SystemConfig(Config):
    """One system of an evaluation."""

    name: str = Field(min_length=1)
    kind: Literal["recordings", "resynthesis", "model", "endpoint", "black_box"]
    role: Role = "reference"
    """What it is there for. Recordings and their resynthesis are references; of what speaks the file must say it."""
    model: Location | None = None
    endpoint: ServiceConfig | None = None
    """A speech service, asked over HTTP for the same texts."""
    teacher: LocalBlackBoxConfig | None = None
    """A teacher of this machine that only speaks, as ``retort generate`` asks it for a corpus."""
    decoding: Decoding | None = None
    """``None`` is the plain way of the model's family."""

    @model_validator(mode="after")
    def _consistent(self) -> "SystemConfig":
        if self.kind in SPEAKING and "role" not in self.model_fields_set:
            raise ValueError(
                f"system {self.name!r} does not say its role; add `role: teacher`, `role: student`, or "
                "`role: control` for one that is there to be beaten"
            )
        if self.kind not in SPEAKING and self.role != "reference":
            raise ValueError(f"`role` of {self.kind} is reference, not {self.role}; leave it out")
        if (self.kind == "model") != (self.model is not None):
            raise ValueError("`model` is the path of a system of kind: model, and of no other")
        if (self.kind == "endpoint") != (self.endpoint is not None):
            raise ValueError("`endpoint` says how a system of kind: endpoint is asked, and no other")
        if (self.kind == "black_box") != (self.teacher is not None):
            raise ValueError("`teacher` is what speaks as a system of kind: black_box, and as no other")
        if self.decoding is not None and self.model is None:
            raise ValueError("`decoding` belongs to a system of kind: model, and to no other")
        return self

    @property
    def said_by(self) -> Mapping[str, Any]:
        """What decides what it says, but for the weights behind its path: not its role, nor how fast it is asked."""
        told = self.model_dump(mode="json", exclude={"role", "endpoint", "teacher"})
        if self.endpoint is not None:
            told["endpoint"] = self.endpoint.asked
        if self.teacher is not None:
            told["teacher"] = self.teacher.model_dump(mode="json", exclude={"timeout_s", "concurrency"})
        return told


class SpeedConfig(Config):
    """Speed measurement: tokens per second and real-time factor at batch 1 and at saturation, and first audio.

    Each of these takes a window of every system, and the systems take turns within it.
    """

    batch_sizes: tuple[int, ...] = (1, 64)
    """The last one is taken as saturating."""
    num_frames: int = Field(default=80, ge=2)
    rounds: int = Field(default=10, ge=1)
    """Turns of each system. The median round counts; with fewer than six it has no interval."""
    window_s: float = Field(default=2.0, gt=0)
    """Seconds that all turns of one system take together, at least."""
    budget_s: float = Field(default=60.0, gt=0)
    """Seconds after which no further round begins, at each batch size and for first audio: slow systems then have
    fewer."""
    noise_floor: bool = True
    """Time the first model twice, as two openings of the same weights: what differs by less is said to be equal."""
    threads: int = Field(default=1, ge=1)

    @property
    def turns(self) -> Turns:
        """How long each system is timed."""
        return Turns(self.rounds, self.window_s, self.budget_s)


class ComparisonConfig(Config):
    """How much better ``b`` is than ``a``; ``[a, b]`` says the same by word errors."""

    a: str
    b: str
    metric: ComparableName | None = None
    """``None`` judges by the word errors, and tells failures and voices beside them."""

    @model_validator(mode="before")
    @classmethod
    def _from_pair(cls, tree: Any) -> Any:
        if not isinstance(tree, list | tuple):
            return tree
        if len(tree) != 2:
            raise ValueError(f"a comparison is [a, b], or a mapping with a, b and metric; this has {len(tree)} entries")
        return {"a": tree[0], "b": tree[1]}

    @model_validator(mode="after")
    def _of_two(self) -> "ComparisonConfig":
        if self.a == self.b:
            raise ValueError(f"[{self.a}, {self.b}] compares a system with itself; name two")
        return self

    @property
    def judged_by(self) -> str:
        """Name of the metric, without the recogniser of several by whom it is heard."""
        return JUDGED if self.metric is None else self.metric.partition("@")[0]


class EvaluateConfig(Config):
    """Systems → results.jsonl, summary.json and report.html."""

    job: Literal["evaluate"] = "evaluate"
    output: Output
    data: Location
    split: Literal["test", "validation", "train"] = "test"
    """``train`` is for choosing between candidates where no validation rows are held out; the summary says so."""
    num_strings: int = Field(default=300, ge=1)
    systems: tuple[SystemConfig, ...] = Field(min_length=1)
    comparisons: tuple[ComparisonConfig, ...] = ()
    margins: dict[ComparableName, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """How much worse still counts as good, by metric, as ``summary.json`` has it (``wer: 0.02`` is two points). Only
    with one is it said that two systems are equally good. Of several that are meant the nearest counts:
    ``wer_capped@LABEL``, ``wer_capped``, ``wer@LABEL``, ``wer``. A later one than the first report is told so."""
    confidence_teacher: str | None = None
    """System whose distribution, guided as it is decoded and at temperature 1, the others' confidence is compared with.
    It is the target of ``target_kl``, to which every student should be nearer than the same model without guidance."""
    temperatures: TemperaturesConfig | None = None
    """Also judge each model at a temperature of its own, chosen on other strings, under the name ``SYSTEM@best``; the
    comparisons are then made at the file's settings and at each one's best."""
    mel_reference: str | None = None
    """System that the mels of all other denoisers are compared with, utterance by utterance (``mel_distance``): of the
    same codec LM with the same ``decoding.lm``, so that they share their codes and their noise."""
    recogniser: RecogniserConfig | None = None
    """Who listens, where it is one."""
    recognisers: tuple[RecogniserConfig, ...] = ()
    """Who listens, where there are several. By the first one failures are told, and plain names are its figures; each
    has figures of its own, called by its label (``wer@whisper``)."""
    speaker_encoder: SpeakerEncoderConfig | None = None
    naturalness: tuple[NaturalnessConfig, ...] = ()
    """Models that guess how natural the systems sound; their figures are not MOS."""
    naturalness_strings: int | None = Field(default=None, ge=1)
    """How many of the strings they hear, the same of every system; ``None`` is all."""
    prosody: ProsodyConfig | None = None
    """Melody, stress, pace, and variety between samples of a text: what distillation may take away."""
    slices: tuple[SliceName, ...] = ()
    """Ways to ask models and services for the same strings that are harder, each told beside the plain one in pairs.
    ``no_final_punctuation`` takes the strings that end in some; ``cut_prompt`` is for models: their voice's recording
    breaks off in the middle of a word."""
    long_text: LongTextConfig | None = None
    """A text of many minutes, said by models and services in parts, and judged by the minute."""
    leakage: LeakageConfig | None = None
    """What the content of zero-shot models tells of the speaker that it was heard from."""
    stability: StabilityConfig = StabilityConfig()
    max_missing_fraction: float = Field(default=0.0, ge=0, le=1)
    """Share of its strings that a system may fail to deliver. They are failures in every table; beyond this share the
    job ends with exit code 3, after the report is written."""
    max_frames: int = Field(default=400, ge=1)
    batch_size: int = Field(default=64, ge=1)
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    num_resamples: int = Field(default=10_000, ge=100)
    cluster_by_speaker: bool = False
    speed: SpeedConfig | None = SpeedConfig()
    num_samples: int = Field(default=4, ge=0)
    """Test strings with audio players in the report."""
    pool: PoolConfig = PoolConfig()
    seed: int = Field(default=0, ge=0)

    @property
    def listening(self) -> tuple[AnyRecogniserConfig, ...]:
        """Every recogniser, the first of them first."""
        return self.recognisers if self.recogniser is None else (self.recogniser,)

    @model_validator(mode="after")
    def _scorers_have_names(self) -> "EvaluateConfig":
        if (self.recogniser is None) == (not self.recognisers):
            raise ValueError("who listens? give one `recogniser`, or several `recognisers`, and not both")
        labels = [label_of(config) for config in self.listening]
        if len(set(labels)) != len(labels):
            raise ValueError(f"recognisers: their labels must differ, got {labels}; give them a `label` each")
        if len(set(self.slices)) != len(self.slices):
            raise ValueError(f"slices: {', '.join(self.slices)} names one of them twice")
        kinds = [config.kind for config in self.naturalness]
        if len(set(kinds)) != len(kinds):
            raise ValueError(f"naturalness: {kinds} names one of them twice")
        self.check_labels(name for name in (*(pair.metric for pair in self.comparisons), *self.margins) if name)
        return self

    def check_labels(self, names: Iterable[str]) -> None:
        """Refuse names of metrics, ``NAME@LABEL``, of recognisers that do not listen here.

        Raises:
            ValueError: names the labels that there are.
        """
        labels = [label_of(config) for config in self.listening] if len(self.listening) > 1 else []
        unknown = [name for name in names if "@" in name and name.partition("@")[2] not in labels]
        if unknown:
            there = f"there are {', '.join(labels)}" if labels else "one recogniser has no label: leave it out"
            raise ValueError(f"{unknown[0]!r} names no recogniser of several; {there}")

    @model_validator(mode="after")
    def _leakage_can_be_measured(self) -> "EvaluateConfig":
        leakage = self.leakage
        if leakage is not None and leakage.num_revoiced > leakage.num_utterances:
            raise ValueError(
                f"leakage.num_revoiced is {leakage.num_revoiced}, more than num_utterances {leakage.num_utterances}, "
                "of which they are; lower it"
            )
        if leakage is not None and leakage.num_revoiced and self.speaker_encoder is None:
            raise ValueError(
                "leakage.num_revoiced needs a `speaker_encoder`, who judges voices; give one, or make it 0"
            )
        return self

    @model_validator(mode="after")
    def _known_systems(self) -> "EvaluateConfig":
        names = [system.name for system in self.systems]
        if len(set(names)) != len(names):
            raise ValueError(f"systems: names must differ, got {names}")
        asked = {name for pair in self.comparisons for name in (pair.a, pair.b)} | {self.confidence_teacher} - {None}
        unknown = sorted(str(name) for name in asked if name not in names)
        if unknown:
            raise ValueError(f"comparisons or confidence_teacher name {unknown}; the systems are {names}")
        twice = [pair for pair, count in Counter(self.comparisons).items() if count > 1]
        if twice:
            told = ", ".join(f"[{pair.a}, {pair.b}]" for pair in twice)
            raise ValueError(f"comparisons: {told} stands there more than once; once is enough")
        whole = {(pair.a, pair.b) for pair in self.comparisons if pair.metric is None}
        parts = [pair for pair in self.comparisons if pair.metric is not None and pair.judged_by == JUDGED]
        twice = [pair for pair in parts if (pair.a, pair.b) in whole]
        if twice:
            pair = twice[0]
            raise ValueError(
                f"comparisons: [{pair.a}, {pair.b}] says the same by {JUDGED}, by each recogniser; leave out the one "
                f"with metric: {pair.metric}"
            )
        if self.temperatures is not None and any("@" in name for name in names):
            raise ValueError(f"temperatures: SYSTEM@best is what they add, so no system has an @ in its name: {names}")
        if self.temperatures is not None and self.temperatures.split == self.split:
            raise ValueError(
                f"temperatures.split is {self.split}, and so is split: what was chosen on some strings must be judged "
                "on others"
            )
        kinds = {system.name: system.kind for system in self.systems}
        spoken = set(kinds.values()) & set(SPEAKING)
        if "cut_prompt" in self.slices and "model" not in spoken:
            raise ValueError("slices: cut_prompt is for systems of kind: model, and there is none")
        if (self.slices or self.long_text is not None) and not spoken:
            kinds_that_do = " or ".join(SPEAKING)
            raise ValueError(f"slices and long_text are for systems of kind: {kinds_that_do}, and there is none")
        if self.mel_reference is not None and kinds.get(self.mel_reference) != "model":
            raise ValueError(
                f"mel_reference names {self.mel_reference!r}, which is no system of kind: model; the systems are "
                f"{names}"
            )
        return self


class ReportConfig(Config):
    """Write the report of an evaluation again, from its results."""

    job: Literal["report"] = "report"
    evaluation: Location
    output: Output
    votes: tuple[Path, ...] = ()
    """What listeners saved on the listening page of this evaluation."""
