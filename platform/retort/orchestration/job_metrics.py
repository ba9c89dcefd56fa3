"""Jobs for Prometheus: a text file for node-exporter's textfile collector, made from what lies on the disk."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from retort.orchestration.outputs_seen import OutputSeen

_LABELS = ("output", "job")
_STATES = ("finished", "running", "failed", "stopped", "damaged")


def exposition(seen: Sequence[OutputSeen]) -> bytes:
    """The exposition format; a figure that an output does not have is left out."""
    kept = CollectorRegistry()
    state = Gauge("retort_job_state", "1 for the state that an output is in.", (*_LABELS, "state"), registry=kept)
    step = Gauge("retort_job_step", "Steps that are reported.", _LABELS, registry=kept)
    steps = Gauge("retort_job_steps", "Steps that the job will do.", _LABELS, registry=kept)
    checkpoint = Gauge("retort_job_checkpoint_step", "Step of the newest checkpoint.", _LABELS, registry=kept)
    loss = Gauge("retort_job_loss", "Last loss that is reported.", _LABELS, registry=kept)
    speed = Gauge("retort_job_steps_per_second", "Last speed that is reported.", _LABELS, registry=kept)
    alerts = Gauge("retort_job_alerts", "Things that look wrong.", _LABELS, registry=kept)
    for one in seen:
        labels = one.path, one.job
        for name in _STATES:
            state.labels(*labels, name).set(one.state == name)
        alerts.labels(*labels).set(len(one.alerts))
        figures = (
            (step, one.last.get("step")),
            (steps, one.steps),
            (checkpoint, max(one.checkpoints, default=None)),
            (loss, one.last.get("loss")),
            (speed, one.last.get("steps_per_s")),
        )
        for gauge, value in figures:
            if isinstance(value, int | float):
                gauge.labels(*labels).set(value)
    return generate_latest(kept)
