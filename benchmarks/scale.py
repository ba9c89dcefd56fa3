"""What papers 1 to 4 cost at full size, and what serving them to many costs: on paper, from unit costs with a source.

``python -m benchmarks.scale`` prints docs/scale.md, ``--write`` writes it. Nothing in the document is typed by hand: a
test compares it with what this script prints.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.autoscaling import DAY_S, Machine, demand, simulate
from retort.serving.settings import Limits, ServedModel

DOCUMENT = Path(__file__).parents[1] / "docs" / "scale.md"

_LISTENERS, _MINUTES, _PEAK = 1_000_000, 20, 1.8
_SLOTS, _UTTERANCE_S, _TARGETS = 64, 10.0, (120.0, 320.0, 480.0, 600.0)

Kind = Literal["cited", "measured", "derived", "chosen"]


@dataclass(frozen=True)
class Unit:
    """A unit cost and where it comes from."""

    value: float
    what: str
    kind: Kind
    source: str


UNITS = {
    "peak_flops": Unit(989e12, "bf16 FLOP/s of one H100", "cited", "NVIDIA's datasheet (PERFORMANCE.md, section 1)"),
    "train_mfu": Unit(
        0.41, "share of it that plain training reaches", "cited", "nanochat dev/LOG.md: 41 to 46 % on H100"
    ),
    "live_kd_mfu": Unit(
        0.176,
        "share of it that distillation with a live teacher reaches",
        "cited",
        "ModelOpt Minitron 9B to 7B: 600 H100-hours for 6.3 G tokens",
    ),
    "denoiser_mfu": Unit(
        0.17, "share of it that a denoiser in plain PyTorch reaches", "cited", "F5-TTS on L20, PyTorch"
    ),
    "speak_audio_per_s": Unit(
        99.0,
        "audio seconds a second and GPU, a guided 1 to 4B teacher free-running",
        "cited",
        "sglang-omni #756 (Higgs 4B)",
    ),
    "stream_audio_per_s": Unit(
        216.0, "audio seconds a second and GPU, serving streams in real time", "cited", "Baseten, Orpheus 3B on H100"
    ),
    "goal_audio_per_s": Unit(
        530.0,
        "the same by goal G4 for a 500M student, **not measured**",
        "derived",
        "PERFORMANCE.md, G4: 40 % of the floor",
    ),
    "denoiser_flops": Unit(
        0.953e12, "FLOP of one evaluation over 10 s, F5-class", "derived", "61 TFLOP / 64 evaluations"
    ),
    "token_hz": Unit(50.0, "tokens a second of audio", "cited", "LLaSA: xcodec2, one codebook of 65,536"),
    "dense_gb_per_h": Unit(23.6, "GB an hour of audio, all logits in fp16", "derived", "50 Hz x 65,536 x 2 bytes"),
    "top_gb_per_h": Unit(0.069, "GB an hour of audio, top 64 (id and fp16)", "derived", "50 Hz x 64 x 6 bytes"),
    "get_per_s": Unit(5_500, "GET a second and prefix of S3", "cited", "AWS, S3 user guide, optimising performance"),
    "put_per_s": Unit(3_500, "PUT a second and prefix of S3", "cited", "AWS, S3 user guide, optimising performance"),
    "part_mb": Unit(64.0, "MB of a shard, and of a request", "chosen", ""),
    "cached_cost": Unit(1.07, "step on cached targets, over cross-entropy alone", "measured", "docs/log.md, C9"),
    "ray_data": Unit(
        0.853, "of a bare loop's speed through Ray Data, start-up included", "measured", "docs/log.md, C12"
    ),
    "ray_train": Unit(1.08, "step under Ray Train, two workers, over torchrun", "measured", "docs/log.md, C11"),
    "ready_s": Unit(30.5, "s until a replica is ready, layout `apart`", "measured", "docs/log.md, 2026-11-22"),
    "node_s": Unit(180.0, "s until a cloud gives a GPU node", "chosen", ""),
    "gpu_price": Unit(3.0, "dollars a GPU-hour", "chosen", ""),
    "store_price": Unit(0.023, "dollars a GB and month", "cited", "AWS, S3 Standard"),
    "gpus": Unit(256, "GPUs that a job runs on", "chosen", ""),
}


@dataclass(frozen=True)
class Work:
    """One job of a paper at full size."""

    paper: int
    job: str
    how: str
    gpu_hours: float
    stored_gb: float = 0.0
    read_gb: float = 0.0

    @property
    def written_gb(self) -> float:
        """Chunks by the workers, and the result by the driver."""
        return 2 * self.stored_gb


def papers(hours: float = 200_000.0) -> list[Work]:
    """The jobs of all papers; ``hours`` of audio are those of paper 1's corpus."""
    return [*_paper_1(hours), *_paper_2(), *_paper_3(), *_paper_4()]


def _paper_1(hours: float) -> Iterator[Work]:
    teacher, students = 1.3e9, {"large": 1.3e9, "medium": 0.5e9, "small": 0.18e9}
    tokens, stored = hours * 3600 * _u("token_hz"), hours * _u("top_gb_per_h")
    yield Work(1, "pretrain", f"1.3B, one pass of {hours:,.0f} h", _training(6 * teacher * tokens))
    label = _hours(2 * teacher * 3 * tokens, "train_mfu") / _u("ray_data")
    yield Work(1, "generate", "guided by three terms, top 64 of each token", label, stored_gb=stored, read_gb=stored)
    for name, size in students.items():
        cached = _training(6 * size * tokens) * _u("cached_cost")
        yield Work(1, "distill", f"{name}, cached targets", cached, read_gb=_copied(stored))
    live = _hours((6 * students["medium"] + 2 * teacher * 3) * tokens, "live_kd_mfu") * _u("ray_train")
    yield Work(1, "distill", "medium, live teacher instead", live)


def _paper_2(mels: int = 100_000, steps: int = 50_000, batch: int = 128) -> Iterator[Work]:
    evaluation, mel_gb = _u("denoiser_flops"), 10 * 100 * 80 * 4 / 1e9
    made = _hours(mels * 160 * evaluation, "denoiser_mfu") / _u("ray_data")
    yield Work(
        2,
        "generate",
        f"{mels:,} mels of 10 s, 2 x 80 evaluations",
        made,
        stored_gb=mels * mel_gb,
        read_gb=mels * mel_gb,
    )
    read = _copied(mels * mel_gb)
    # A gradient costs three evaluations; a guided teacher two, two halves of a step two.
    guided = _hours(steps * batch * (3 + 2) * evaluation, "denoiser_mfu") * _u("ray_train")
    yield Work(2, "distill", f"guided, {steps:,} steps of {batch}", guided, read_gb=read)
    yield Work(2, "distill", f"seven halvings, {steps:,} steps of {batch} each", 7 * guided, read_gb=read)


def _paper_3(hours: float = 12_500.0, epochs: int = 7, layers: int = 16, kept: int = 8) -> Iterator[Work]:
    teacher, a_layer = 1.37e9, 60.8e6
    student = teacher - (layers - kept) * a_layer
    judged = layers * 100 * 10.0 / _u("speak_audio_per_s") / 3600 / _u("ray_data")
    yield Work(3, "prune", f"{layers} layers, 100 utterances of 10 s each", judged)
    tokens = hours * 3600 * _u("token_hz") * epochs
    healed = _hours((6 * student + 2 * teacher) * tokens, "live_kd_mfu") * _u("ray_train")
    yield Work(3, "distill", f"{layers} to {kept} layers, {hours:,.0f} h, {epochs} epochs, live", healed)


def _paper_4(hours: float = 531.0, share: float = 0.8, epochs: int = 100) -> Iterator[Work]:
    frames, size = hours * 3600 * 86, 22.5e6
    made = hours * share / (1 - share)
    yield Work(4, "pretrain", f"22.5M, {hours:g} h, {epochs} epochs", _training(6 * size * frames * epochs))
    speak = made * 0.012 / _u("ray_data")
    gb = made * 0.115
    yield Work(4, "generate", f"{made:,.0f} h of pairs at a real-time factor of .012", speak, stored_gb=gb, read_gb=gb)
    both = _training(6 * size * (frames / (1 - share)) * epochs)
    yield Work(4, "distill", f"{share:.0%} made, {epochs} epochs", both, read_gb=_copied(gb))


def _copied(gb: float) -> float:
    """Data that each rank brings to its node's disk whole, once, however many epochs there are."""
    return gb * _u("gpus")


def _training(flops: float) -> float:
    return _hours(flops, "train_mfu") * _u("ray_train")


def _hours(flops: float, mfu: str) -> float:
    return flops / (_u("peak_flops") * _u(mfu)) / 3600


def _u(name: str) -> float:
    return UNITS[name].value


def document() -> str:
    """docs/scale.md."""
    parts = [_HEAD, _papers_table(), _STORE, _store_table(), _SERVE, _serving_table(), _DAY, _day_table(), _UNITS_HEAD]
    return "\n\n".join([*parts, _units_table()]) + "\n"


def _papers_table() -> str:
    rows = [
        (
            str(work.paper), work.job, work.how, _n(work.gpu_hours), _n(work.gpu_hours / _u("gpus")),
            _n(work.gpu_hours * _u("gpu_price")), _n(work.written_gb), _n(work.read_gb),
        )
        for work in papers()
    ]  # fmt: skip
    wall = f"hours on {_u('gpus'):.0f} GPUs"
    return _table(("paper", "job", "what", "GPU-hours", wall, "dollars", "GB written", "GB read"), rows)


def _store_table() -> str:
    rows = []
    for work in papers():
        if not (work.stored_gb or work.read_gb):
            continue
        seconds = work.gpu_hours / _u("gpus") * 3600
        shards, puts, gets = (gb * 1000 / _u("part_mb") for gb in (work.stored_gb, work.written_gb, work.read_gb))
        puts, gets = puts / seconds, gets / seconds
        share = max(puts / _u("put_per_s"), gets / _u("get_per_s"))
        rate = (work.written_gb + work.read_gb) * 1000 / seconds
        kept = _n(work.stored_gb * _u("store_price"))
        told = _n(shards) if work.stored_gb else ""
        rows.append((f"{work.paper} {work.job}, {work.how}", told, _n(rate), _n(puts), _n(gets), f"{share:.2%}", kept))
    heads = ("job", "shards", "MB/s", "PUT/s", "GET/s", "of one prefix's rate", "dollars a month to keep")
    dense = 200_000 * _u("dense_gb_per_h") / 1e6
    return _table(heads, rows) + f"\n\nAll logits of paper 1 instead of the top 64: {dense:.1f} PB."


def _serving_table() -> str:
    rows = []
    for listeners in (100_000, _LISTENERS, 10_000_000, 50_000_000):
        mean = listeners * _MINUTES * 60 / DAY_S
        peak = _PEAK * mean
        wide = peak * 64_000 / 8 / 1e9
        gpus = [_n(-(-peak // _u(name))) for name in ("stream_audio_per_s", "goal_audio_per_s")]
        rows.append((f"{listeners:,}", _n(mean), _n(peak), *gpus, f"{_n(wide)}", _n(peak / _UTTERANCE_S)))
    heads = (
        "listeners",
        "streams, mean",
        "at the peak",
        "GPUs as published",
        "by goal G4",
        "GB/s of MP3",
        "requests/s",
    )
    return _table(heads, rows)


def _day_table() -> str:
    machine = Machine(_u("stream_audio_per_s"), _SLOTS, _u("ready_s") + _u("node_s"), _UTTERANCE_S)
    warm = Machine(_u("stream_audio_per_s"), _SLOTS, _u("ready_s"), _UTTERANCE_S)
    mean = _LISTENERS * _MINUTES * 60 / DAY_S
    rows = []
    for target in _TARGETS:
        for name, kind, burst in (
            ("calm", machine, 1.0),
            ("burst x1.5, nodes to be had", machine, 1.5),
            ("burst x1.5, nodes there", warm, 1.5),
        ):
            model = _model(target)
            day = simulate(demand(mean, peak=_PEAK, burst=burst), kind, model, Limits())
            dollars = _n(day.replica_hours * _u("gpu_price"))
            cells = (_n(day.replica_hours), str(day.most), f"{day.busy:.0%}", f"{day.refused:.3%}", dollars)
            rows.append((f"{target:g}", name, *cells))
    heads = ("target_audio_seconds", "day", "replica-hours", "most at once", "busy", "refused", "dollars")
    return _table(heads, rows)


def _model(target: float) -> ServedModel:
    return ServedModel(
        name="medium", path=Path(), slots=_SLOTS, min_replicas=10, max_replicas=2000, target_audio_seconds=target
    )


def _units_table() -> str:
    rows = [(f"{u.value:,.10g}", u.what, u.kind, u.source) for u in UNITS.values()]
    return _table(("value", "what", "kind", "source"), rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _n(value: float) -> str:
    """Three digits, which is more than any of these is known to."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


_HEAD = """# Scale, on paper

Nothing of this was run: no machine here has a GPU. `python -m benchmarks.scale --write` computes every number below
from the unit costs at the end, each of which says where it comes from; the sizes, hours and steps of the papers are in
the script. Where a paper does not say (paper 1's passes, paper 2's mels and steps, paper 4's epochs), a number is
chosen, and the cost grows with it in proportion. Bandwidth, failures and idle time are left out, so these are lower
bounds of an honest bill.

## The papers"""
_STORE = """## The object store

If the job runs on that many GPUs at the pace above. Shards lie under one prefix; a store that gives a prefix less than
S3 does needs more prefixes, not another layout.

A `generate` writes its chunks; at the end its driver brings all of them to its own node and writes them again as the
result. A `distill` brings its data whole to each node's disk before its first step, and reads them there in each epoch;
ranks of one node that begin at once each bring them, and one copy is kept. What the table spreads over the run is asked
for at its beginning, and these disks must hold the data: nothing here is made for that at the size of paper 1, whose
students ask a prefix for more than it gives."""
_SERVE = f"""## Serving

{_MINUTES} minutes a day each, {_PEAK} times as many at the peak as in the mean, utterances of {_UTTERANCE_S:g} s, each
stream in real time."""
_DAY = f"""## A day of the autoscaler

{_LISTENERS:,} listeners, `serving/replica.py`'s own policy behind Ray Serve's delays (`benchmarks/autoscaling.py`),
replicas of {_SLOTS} slots. The burst comes from one second to the next, at the peak, for ten minutes.
`target_audio_seconds` counts whole utterances from their first to their last sample: a replica with every slot taken
holds {_SLOTS * _UTTERANCE_S:g} of them, so `target_audio_seconds: {_TARGETS[0]:g}` pays for
{_SLOTS * _UTTERANCE_S / _TARGETS[0]:.1f} replicas where one would do, and a target near
{_SLOTS * _UTTERANCE_S:g} notices too late that it is short."""
_UNITS_HEAD = "## Unit costs"


def main() -> None:
    """Print or write the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/scale.md")
    if parser.parse_args().write:
        DOCUMENT.write_text(document())
    else:
        print(document(), end="")


if __name__ == "__main__":
    main()
