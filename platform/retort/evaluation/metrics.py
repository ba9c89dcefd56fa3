"""Every figure that is told of a system: one table, read by summary, report, Pareto front, gate and model card.

To add one, add its row here, and what computes it: a value of each utterance (``ItemResult.values``) or a fact of the
system (``SystemInfo.facts``). Nothing else names it.

Where several recognisers judge, plain names are figures of the first of them, and each one has its own beside them:
``wer@LABEL``, wherever ``wer`` may stand (:func:`metrics_of`).
"""

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from retort.errors import ConfigError
from retort.evaluation.items import Heard, ItemResult

Averaging = Literal["corpus", "mean", "rate", "fact", "timed", "measured"]
"""How a figure of a system comes about.

``corpus``: sum of the utterances' values over the sum of their weights. ``mean``: over the utterances that have it.
``rate``: share of utterances. ``fact``: known of the system without its utterances. ``timed``: a median over rounds of
a measurement of speed, with an interval. ``measured``: a fact that the same measurement gives once.
"""

ABSENT = "\N{EN DASH}"
JUDGED = "wer_capped"
"""By what two systems are compared where nobody says otherwise: a recogniser's loop counts no more than its words."""
TARGET_KL = "target_kl"
"""Name of the distance from what a student should say: KL(target || model) on held-out tokens."""
TARGET_TOKENS = "target_tokens"
"""In :attr:`ItemResult.values`: how many tokens :data:`TARGET_KL` was summed over there. A weight, and no figure."""
_MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Metric:
    """One figure.

    Attributes:
        name: what run files, gates and ``--best`` call it.
        title: for tables, without the unit.
        unit: of what is shown; a percentage is kept as a fraction and shown times 100. Empty for none.
        better: which direction is the better one; None if neither is.
        averaging: how it comes about.
        table: of the report, in which it has a column.
        digits: behind the point; None shows three leading digits with k, M or B.
        field: its key in ``summary.json`` where that is not its name.
        value: of one utterance, None where it has none; for facts there is none.
        weight: of one utterance, where utterances do not count alike.
        compared: whether every comparison of two systems has it, asked for or not; without a better side it tells how
            far they are apart.
        is_objective: whether sweeps may search by it.
        gates: whether a promotion may be refused by it.
        word: what a person may say for the best of it.
        deeds: what the better and the worse one of two systems do, in words.
        heard: of what a recogniser heard, where each recogniser has a figure of its own.
        margin_of: name of the metric whose margin is meant for this one too.
        recogniser: label of the one that it belongs to, where that is not the first.
    """

    name: str
    title: str
    unit: str
    better: Literal["lower", "higher"] | None
    averaging: Averaging
    table: Literal["quality", "cost"]
    digits: int | None = 2
    field: str = ""
    value: Callable[[ItemResult], float | None] | None = None
    weight: Callable[[ItemResult], float] = lambda _: 1.0
    compared: bool = False
    is_objective: bool = False
    gates: bool = False
    word: str | None = None
    deeds: tuple[str, str] | None = None
    heard: Callable[[Heard], float] | None = None
    margin_of: str = ""
    recogniser: str | None = None

    def __post_init__(self) -> None:
        if not self.field:
            object.__setattr__(self, "field", self.name)
        if self.heard is not None:
            object.__setattr__(self, "value", _of_heard(self.heard, self.recogniser))
        assert (self.value is not None) == self.is_of_items, f"{self.name}: facts have no value of an utterance"

    @property
    def margins(self) -> tuple[str, ...]:
        """Names by which a margin may be stated that is meant for this one, the nearest first."""
        names = []
        for base in filter(None, (self.name.partition("@")[0], self.margin_of)):
            names += [base] if self.recogniser is None else [f"{base}@{self.recogniser}", base]
        return tuple(dict.fromkeys(names))

    @property
    def is_of_items(self) -> bool:
        """Whether utterances have it, so that it has intervals and can be compared in pairs."""
        return self.averaging in ("corpus", "mean", "rate")

    @property
    def is_of_speed(self) -> bool:
        """Whether only a measurement of speed and memory gives it."""
        return self.averaging in ("timed", "measured")

    @property
    def is_of_first(self) -> bool:
        """Whether it is told of the first recogniser, and of each one again under its label where there are several."""
        return self.heard is not None and self.recogniser is None

    @property
    def interval(self) -> str | None:
        """Key of its 95 % interval in ``summary.json``; what was timed may lack it, as summaries of old do."""
        return f"{self.name}_ci95" if self.is_of_items or self.averaging == "timed" else None

    @property
    def higher_is_better(self) -> bool:
        """Its direction."""
        return self.better == "higher"

    @property
    def label(self) -> str:
        """Title and unit."""
        return f"{self.title}, {self.unit}" if self.unit else self.title

    @property
    def noun(self) -> str:
        """What stands in a sentence."""
        first = self.title.split(",")[0]
        is_name = first[1:2].isdigit() or any(letter.isupper() for letter in first[1:])  # F0, WER, DistillMOS
        return first if is_name else first.lower()

    def text(self, value: float | None) -> str:
        """A value as tables show it, without its unit."""
        if value is None:
            return ABSENT
        if self.digits is None:
            return _short(value)
        return f"{self._scale * value:,.{self.digits}f}".replace("-", _MINUS)

    def signed(self, difference: float) -> str:
        """A difference as tables show it."""
        if self.digits is None:
            return f"{'+' if difference >= 0 else _MINUS}{_short(abs(difference))}"
        return f"{self._scale * difference:+,.{self.digits}f}".replace("-", _MINUS)

    def amount(self, shown: str) -> str:
        """What is shown, with its unit, as a sentence says it: "+1.0 points of WER"."""
        unit = "points" if self.unit == "%" else self.unit
        return " ".join(filter(None, (shown, unit, "of", self.noun)))

    @property
    def _scale(self) -> float:
        return 100.0 if self.unit == "%" else 1.0


def _of_heard(take: Callable[[Heard], float], label: str | None) -> Callable[[ItemResult], float | None]:
    def value(row: ItemResult) -> float | None:
        heard = row.heard_by(label)
        return None if heard is None else take(heard)

    return value


def of_values(name: str) -> Callable[[ItemResult], float | None]:
    """What :attr:`ItemResult.values` has under ``name``."""
    return lambda row: row.values.get(name)


_ROWS = (
    Metric("guidance_scale", "Guidance", "", None, "fact", "quality", digits=1),
    Metric("temperature", "Temperature", "", None, "fact", "quality"),
    Metric("guidance_text", "Guidance by the text", "", None, "fact", "quality", digits=1),
    Metric("guidance_speaker", "Guidance by the voice", "", None, "fact", "quality", digits=1),
    Metric(
        "wer", "WER, corpus", "%", "lower", "corpus", "quality", digits=1, field="wer_corpus", compared=True,
        heard=lambda found: found.word_errors.errors, weight=lambda row: row.words, is_objective=True, gates=True,
        deeds=("makes fewer word errors than", "makes more word errors than"),
    ),
    Metric(
        "wer_capped", "WER, capped", "%", "lower", "corpus", "quality", digits=1, compared=True,
        heard=lambda found: found.word_errors.capped, weight=lambda row: row.words, is_objective=True, gates=True,
        deeds=("makes fewer word errors than", "makes more word errors than"), margin_of="wer",
    ),
    Metric(
        "wer_mean", "WER, mean of utterances", "%", "lower", "mean", "quality", digits=1, compared=True,
        heard=lambda found: found.word_errors.wer, margin_of="wer",
    ),
    Metric(
        "heard_loops", "Loops heard", "%", "lower", "rate", "quality", digits=1,
        heard=lambda found: float(found.loop),
    ),
    Metric(
        "failure_rate", "Failures", "%", "lower", "rate", "quality", digits=1, compared=True,
        value=lambda row: float(row.failure), is_objective=True, gates=True,
    ),
    Metric(
        "speaker_similarity", "Speaker similarity", "", "higher", "mean", "quality", digits=3, compared=True,
        value=lambda row: row.speaker_similarity, is_objective=True, gates=True,
    ),
    Metric(
        "mel_distance", "Mel distance", "dB", "lower", "mean", "quality", value=of_values("mel_distance"),
        is_objective=True, gates=True,
    ),
    Metric(
        "distillmos", "DistillMOS, a model's guess", "", "higher", "mean", "quality", value=of_values("distillmos"),
        compared=True, is_objective=True, gates=True,
    ),
    Metric(
        "dnsmos", "DNSMOS overall, a model's guess", "", "higher", "mean", "quality", value=of_values("dnsmos"),
        compared=True, is_objective=True, gates=True,
    ),
    Metric("dnsmos_signal", "DNSMOS signal", "", "higher", "mean", "quality", value=of_values("dnsmos_signal")),
    Metric(
        "dnsmos_background", "DNSMOS background", "", "higher", "mean", "quality",
        value=of_values("dnsmos_background"),
    ),
    Metric("dnsmos_p808", "DNSMOS P.808", "", "higher", "mean", "quality", value=of_values("dnsmos_p808")),
    Metric(
        "f0_spread", "F0 spread in an utterance", "semitones", None, "mean", "quality", value=of_values("f0_spread"),
        compared=True,
    ),
    Metric(
        "energy_spread", "Energy spread in an utterance", "dB", None, "mean", "quality",
        value=of_values("energy_spread"), compared=True,
    ),
    Metric(
        "speaking_rate", "Speaking rate", "words/s", None, "mean", "quality", value=of_values("speaking_rate"),
        compared=True,
    ),
    Metric(
        "sample_spread", "Spread between samples of a text", "dB", None, "mean", "quality",
        value=of_values("sample_spread"), compared=True,
    ),
    Metric(
        TARGET_KL, "KL from the target", "nats a token", "lower", "corpus", "quality", digits=4,
        value=of_values(TARGET_KL), weight=lambda row: row.values[TARGET_TOKENS], is_objective=True, gates=True,
        deeds=("is nearer to the target than", "is further from the target than"),
    ),
    Metric("entropy", "Entropy", "nats", None, "fact", "quality"),
    Metric("top1_probability", "Top-1 probability", "", None, "fact", "quality"),
    Metric(
        "parameters", "Parameters", "", "lower", "fact", "cost", digits=None, is_objective=True, gates=True,
        word="smallest",
    ),
    Metric("frozen_parameters", "Frozen beside them", "", "lower", "fact", "cost", digits=None),
    Metric("vocoder_parameters", "Vocoder", "", "lower", "fact", "cost", digits=None),
    Metric("num_layers", "Layers", "", "lower", "fact", "cost", digits=0),
    Metric("training_tokens", "Training tokens", "", "lower", "fact", "cost", digits=None),
    Metric(
        "tokens_per_second", "Tokens/s", "", "higher", "timed", "cost", digits=1, is_objective=True, gates=True,
        word="fastest",
    ),
    Metric("rtf", "RTF", "", "lower", "timed", "cost", digits=3, is_objective=True, gates=True),
    Metric("tokens_per_second_batch1", "Tokens/s, one at a time", "", "higher", "timed", "cost", digits=1),
    Metric("rtf_batch1", "RTF, one at a time", "", "lower", "timed", "cost", digits=3),
    Metric("timbre_seconds", "Timbre of a new voice", "s", "lower", "timed", "cost", digits=3),
    Metric("diffusion_seconds", "Diffusion alone", "s", "lower", "timed", "cost", digits=3),
    Metric(
        "diffusion_rtf", "RTF of the diffusion alone", "", "lower", "timed", "cost", digits=4, is_objective=True,
        gates=True,
    ),
    Metric(
        "first_audio_s", "First audio", "s", "lower", "timed", "cost", digits=3, is_objective=True, gates=True
    ),
    Metric("nfe", "NFE", "", "lower", "measured", "cost", digits=0, is_objective=True, gates=True),
    Metric(
        "memory", "Peak memory", "MiB", "lower", "measured", "cost", digits=0, field="peak_memory_mb",
        is_objective=True, gates=True, word="lightest",
    ),
)  # fmt: skip


def _named(rows: Iterable[Metric]) -> Mapping[str, Metric]:
    return MappingProxyType({metric.name: metric for metric in rows})


METRICS = _named(_ROWS)
"""Every figure, in the order of the report's tables."""
OF_ITEMS = _named(metric for metric in _ROWS if metric.is_of_items)
"""Those that utterances have, with intervals."""
COMPARABLE = _named(metric for metric in OF_ITEMS.values() if metric.better is not None)
"""Those by which two systems may be compared."""
FACTS = _named(metric for metric in _ROWS if not metric.is_of_items)
"""Those that a system is told with."""
OBJECTIVES = _named(metric for metric in _ROWS if metric.is_objective)
"""Those that sweeps may search by, and ``--best`` may ask for."""
GATES = _named(metric for metric in _ROWS if metric.gates)
"""Those that a gate may hold."""
BY_FIELD = MappingProxyType({metric.field: metric for metric in _ROWS})
"""Those of :data:`METRICS`, by their keys in ``summary.json``."""


def metrics_of(labels: Iterable[str], among: Mapping[str, Metric] = METRICS) -> Mapping[str, Metric]:
    """``among``, and behind each figure of what was heard the same of every recogniser in ``labels``."""
    rows = []
    for metric in among.values():
        rows.append(metric)
        if metric.is_of_first:
            rows += [_of_recogniser(metric, label) for label in labels]
    return _named(rows)


def labels_of(system: Mapping[str, object]) -> tuple[str, ...]:
    """Labels of the recognisers that a system of a summary has figures of its own of; none where one judged."""
    field = METRICS["wer"].field + "@"
    return tuple(key.removeprefix(field) for key in system if key.startswith(field))


def metric_of_field(field: str) -> Metric:
    """The metric of a key in ``summary.json``."""
    base, _, label = field.partition("@")
    return _of_recogniser(BY_FIELD[base], label) if label else BY_FIELD[base]


def find_metric(name: str, among: Mapping[str, Metric]) -> Metric:
    """The metric of that name; ``NAME@LABEL`` is that of one of several recognisers.

    Raises:
        ConfigError: there is none among these; the nearest name is given.
    """
    if name in among:
        return among[name]
    base, _, label = name.partition("@")
    if label.isidentifier() and base in among and among[base].heard is not None:
        return _of_recogniser(among[base], label)
    near = difflib.get_close_matches(base, among, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(f"unknown figure {name!r}; {hint}There are {', '.join(among)}")


def _of_recogniser(metric: Metric, label: str) -> Metric:
    title, _, rest = metric.title.partition(",")
    return dataclasses.replace(
        metric,
        name=f"{metric.name}@{label}",
        field=f"{metric.field}@{label}",
        title=f"{title} by {label}{',' if rest else ''}{rest}",
        margin_of=metric.margin_of or metric.name,
        recogniser=label,
        compared=metric.compared and metric.deeds is not None,
        word=None,
    )


def _short(value: float) -> str:
    """1,300,000,000 as 1.30B."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:g}"
