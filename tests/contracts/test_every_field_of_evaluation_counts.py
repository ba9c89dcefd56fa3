"""Every field of an evaluation: changing it changes what is judged, measured or said, on toys and without Ray.

What a summary repeats of its own run file (``environment``, ``bootstrap``) does not count.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from retort.config import Config
from retort.data.phone_mels import PhoneMelRow
from retort.evaluation.asr import FasterWhisperConfig, PocketSphinxConfig
from retort.evaluation.leakage import LeakageConfig
from retort.evaluation.service import ServiceConfig
from retort.evaluation.speaker import TransformersSpeakerConfig
from retort.evaluation.speed import SpeedCase
from retort.evaluation.stability import StabilityConfig, assess
from retort.evaluation.temperatures import TemperaturesConfig
from retort.evaluation.wheels import WHISPER_WEIGHTS, folder_of, missing
from retort.inference.black_box.opening import LocalBlackBoxConfig
from retort.inference.decoding import CodecLMDecoding, Decoding
from retort.inference.sampling import SamplerConfig
from retort.inference.speaker import Timing
from retort.models.weights import load_zero_shot
from retort.orchestration.evaluate import job
from retort.orchestration.evaluate.worker import EvaluationWorker
from retort.run_config import EvaluateConfig, ReportConfig, SystemConfig
from retort.run_config.evaluate import ComparisonConfig, SpeedConfig
from retort.run_config.machines import PoolConfig
from tests.contracts.evaluation_toys import QUIET, Case, World, evaluated, evaluation, model, of_systems, write_strings
from tests.contracts.scorer_fields import SCORER_CASES
from tests.contracts.service_fields import REASONS_OF_SERVICES, SERVICE_CASES
from tests.contracts.test_every_field_counts import changing_nothing
from tests.contracts.test_every_field_of_decoding_counts import kinds_in
from tests.evaluation.leaking import tilted_rows, write_tilted
from tests.evaluation.test_asr import write_ctc, write_whisper
from tests.evaluation.test_listening import data_of
from tests.evaluation.test_speaker import write_wavlm_sv
from tests.evaluation.test_turns import Clock
from tests.inference.speaking import speaking_denoiser, speaking_model, speaking_zero_shot
from tests.orchestration.evaluate.test_report_with_votes import ballot, finished

REASONS = {
    (EvaluateConfig, "output"): "where the same is written",
    (EvaluateConfig, "pool"): "where and how fast, never what: test_room.py, test_placing.py",
    (FasterWhisperConfig, "language"): "the wheel's weights know English alone, and there are no others here",
    (ReportConfig, "output"): "where the same is written",
    **{(ServiceConfig, name): reason for name, reason in REASONS_OF_SERVICES.items()},
}
"""Why no other result can show a field."""
NAMES_OF_UNIONS = {"kind", "job"}


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
    zero_shot = speaking_zero_shot(root)
    for seed in (1, 2):
        write_tilted(root / f"mels_{seed}", zero_shot, sources(load_zero_shot(zero_shot).lineage.phones, seed))
    if missing(WHISPER_WEIGHTS) is None:
        (root / "tiny").symlink_to(folder_of(*WHISPER_WEIGHTS) / "model")
    return World(root)


def on_one_actor(config: EvaluateConfig, method: str, threads: int, *arguments: str) -> Any:
    """What the job does in a process of its own, in this one."""
    return getattr(EvaluationWorker(config.model_dump(mode="json"), threads), method)(*arguments)


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(job, "on_one_actor", on_one_actor)
    monkeypatch.setattr(job, "each_on_one_actor", on_one_actor)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def of_one_system(world: World, system: Any, folder: Path) -> Any:
    return evaluated(of_systems(world, system.model_dump(mode="json")), folder)


def of_comparison(world: World, comparison: Any, folder: Path) -> Any:
    systems = [{"name": name, "kind": "resynthesis"} for name in "abc"]
    return evaluated(of_systems(world, *systems, comparisons=[comparison.model_dump(mode="json")]), folder)


def of_speed(world: World, speed: Any, folder: Path) -> Any:
    """How many utterances of how many seconds were timed, and with how many threads; a call takes a second."""
    timed: list[Any] = []
    clock = Clock()

    def time(case: SpeedCase, *, batch_size: int, seconds: float) -> Timing:
        timed.append((batch_size, seconds, torch.get_num_threads()))
        clock.now += 1.0
        return Timing(1.0, 1.0, seconds)

    def first_audio(case: SpeedCase, *, seed: int, clock: Clock) -> float:
        timed.append(seed)
        clock.now += 1.0
        return 1.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SpeedCase, "time", time)
        patch.setattr(SpeedCase, "first_audio", first_audio)
        patch.setattr(EvaluationWorker, "clock", staticmethod(clock))
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


def of_report(world: World, report: Any, folder: Path) -> Any:
    job.run_report(report.replace(output=folder), QUIET)
    return json.loads((folder / "summary.json").read_text())


def votes(world: World) -> str:
    """A file of one listener of the evaluation ``finished``."""
    file, first = world.root / "ann.json", world.root / "first"
    job.run_report(ReportConfig(evaluation=Path(world / "finished"), output=first), QUIET)
    told = ballot(data_of(first / "listen.html")["report"], "ann", 6)
    file.write_text(json.dumps(told).replace('"student"', '"finished"'))
    return str(file)


TEMPERATURES = TemperaturesConfig(values=(0.5, 1.0), split="train", num_strings=4)


def of_temperatures(world: World, temperatures: Any, folder: Path) -> Any:
    systems = [model("lm", world / "model")]
    return evaluated(of_systems(world, *systems, temperatures=temperatures.model_dump(mode="json")), folder)


def sources(phones: tuple[str, ...], seed: int) -> list[PhoneMelRow]:
    """Of two speakers, in two splits."""
    return [row for split in ("train", "test") for row in tilted_rows(phones, "ab", each=8, split=split, seed=seed)]


def leakage(world: World) -> LeakageConfig:
    return LeakageConfig(mels=Path(world / "mels_1"), num_utterances=12, folds=2, num_revoiced=3)


def of_leakage(world: World, leakage: Any, folder: Path) -> Any:
    encoder = {"kind": "wavlm_sv", "path": world / "wavlm_0"}
    asked = leakage.model_dump(mode="json")
    return evaluated(zero_shot(world, leakage=asked, speaker_encoder=encoder), folder)


def zero_shot(world: World, **changes: Any) -> EvaluateConfig:
    return of_systems(world, model("z", world / "zero_shot"), **changes)


SLOW = ("evaluation", "naturalness", "faster_whisper")
CASES: dict[str, Callable[[World], Case]] = {
    **SCORER_CASES,
    **SERVICE_CASES,
    "evaluation": lambda world: Case(
        evaluation(world),
        {
            "data": world / "strings_2",
            "split": "train",
            "num_strings": 8,
            "systems": evaluation(world).systems[1:],
            "comparisons": (ComparisonConfig(a="guided", b="lm"),),
            "confidence_teacher": "guided",
            "temperatures": TEMPERATURES,
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
            "speed": SpeedConfig(batch_sizes=(1,), num_frames=2, rounds=1, window_s=0.01),
            "num_samples": 2,
            "seed": 1,
        },
        lambda world, config, folder: evaluated(config, folder),
    ),
    "temperatures": lambda world: Case(
        TEMPERATURES,
        {"values": (0.25, 1.0), "split": "validation", "num_strings": 5, "metric": "failure_rate"},
        of_temperatures,
    ),
    "leakage": lambda world: Case(
        leakage(world),
        {"mels": world / "mels_2", "split": "train", "num_utterances": 13, "folds": 3, "num_revoiced": 4},
        of_leakage,
    ),
    "leakage of an evaluation": lambda world: Case(
        zero_shot(world),
        {"leakage": leakage(world).replace(num_revoiced=0)},
        lambda world, config, folder: evaluated(config, folder),
    ),
    "margins": lambda world: Case(
        of_comparison_config(world), {"margins": {"wer": 0.5}}, lambda world, config, folder: evaluated(config, folder)
    ),
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
        SpeedConfig(batch_sizes=(1, 2), num_frames=2, rounds=3, window_s=6.0),
        {
            "batch_sizes": (1, 3),
            "num_frames": 4,
            "rounds": 2,
            "window_s": 9.0,
            "budget_s": 1.0,
            "noise_floor": False,
            "threads": 2,
        },
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
    elsewhere = kinds_in(Decoding) | kinds_in(LocalBlackBoxConfig) | {PoolConfig}
    kinds = (kinds_in(EvaluateConfig) | kinds_in(ReportConfig)) - elsewhere
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
