"""What ``/metrics`` shows. Labels are model names and fixed words: nothing that a client sends becomes one."""

from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_RATIOS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


def _registry() -> CollectorRegistry:
    return CollectorRegistry()


@dataclass
class Metrics:
    """Metrics of one front end."""

    registry: CollectorRegistry = field(default_factory=_registry)

    def __post_init__(self) -> None:
        kept = self.registry
        self.requests = Counter(
            "retort_requests_total",
            "Speech by status, and refusals of every route; those before a model was chosen have none.",
            ("model", "status"),
            registry=kept,
        )
        self.first_audio = Histogram(
            "retort_first_audio_seconds", "Arrival to the first sound.", ("model",), buckets=_SECONDS, registry=kept
        )
        self.real_time_factor = Histogram(
            "retort_real_time_factor",
            "Seconds of work per second of audio.",
            ("model",),
            buckets=_RATIOS,
            registry=kept,
        )
        self.audio = Counter("retort_audio_seconds_total", "Speech that was sent.", ("model",), registry=kept)
        self.cancelled = Counter("retort_cancelled_total", "Requests that the client left.", ("model",), registry=kept)
        self.runaways = Counter("retort_runaways_total", "Utterances that failed.", ("model", "outcome"), registry=kept)
        self.in_flight = Gauge(
            "retort_audio_seconds_in_flight", "Predicted, being spoken or waiting.", ("model",), registry=kept
        )
        self.waiting = Gauge(
            "retort_audio_seconds_waiting", "Predicted, waiting for a slot.", ("model",), registry=kept
        )
        self.after_cancel = Gauge(
            "retort_frames_after_cancel",
            "Frames that were computed for clients that had left.",
            ("model",),
            registry=kept,
        )

    def count(self, name: str, status: str) -> None:
        """Note how a request for a model ended; 499 is a client that left."""
        self.requests.labels(name, status).inc()
        if status == "499":
            self.cancelled.labels(name).inc()

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
